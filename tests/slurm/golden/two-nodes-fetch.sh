#!/bin/bash -l
#SBATCH --job-name=fetch.abc123def456.0f0f0f.fetch
#SBATCH --output="/scratch/lab/.factory/slurm/lab-croco/1/logs/fetch-fetch-%j.log"
#SBATCH --open-mode=append
#SBATCH --export=HOME,USER,LOGNAME,PATH,LANG
#SBATCH --account=project_465000000
#SBATCH --partition=small
#SBATCH --time=4:00:00
#SBATCH --mem=64G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=16
#SBATCH --no-requeue

# What every step reads, brought to the shared disk. Rendered for the site two-nodes by croco-factory X; its one argument is added to
# the number of an array's task.

export SLURM_EXPORT_ENV=ALL  # to srun: all that is set here, not only what sbatch was let through
module use /appl/local/laifs/modules
module load lumi-aif-singularity-bindings
set -euo pipefail
export PYTHONUNBUFFERED="1"
export NCCL_SOCKET_IFNAME="hsn0,hsn1,hsn2,hsn3"
export GLOO_SOCKET_IFNAME="hsn0"
export FI_MR_CACHE_MONITOR="userfaultfd"
export FACTORY_HOME=/scratch/lab/.factory

# Tokens come from a file that only its owner may read, never from the queue.
secrets=/home/lab/.config/factory/token
if [ "$(stat -c %a "$secrets")" != 600 ]; then
  echo "error: $secrets is not closed to others"
  echo "  fix: chmod 600 $secrets"
  exit 1
fi
set -a
# shellcheck disable=SC1090  # nobody else knows what is in it
. "$secrets"
set +a

index=$(( ${SLURM_ARRAY_TASK_ID:-0} + ${1:-0} ))
echo "factory: fetch task $index, job ${SLURM_JOB_ID:-none} on $(hostname), start $(( ${SLURM_RESTART_COUNT:-0} + 1 ))"

# Keep what the task said of itself when it ended: where and with which code.
ended() {
  printf '%s %s %s %s\n' "$1" "$(hostname)" "${SLURM_JOB_ID:-0}" "$(date +%s)" > /scratch/lab/.factory/slurm/lab-croco/1/ends/fetch-fetch".$index"
}

# A warning that time is nearly over goes to the task, which ends with 75 when it has kept what is
# finished. `wait` returns early for a signal, so it is asked again.
child=''
told=0
by=''
code=1
# shellcheck disable=SC2329  # the traps call it
pass_on() {
  told=1
  by=$1
  if [ -n "$child" ]; then kill -s "$1" "$child" 2>/dev/null || true; fi
}
trap 'pass_on USR1' USR1
trap 'pass_on TERM' TERM

singularity exec --bind /scratch/lab/.factory,/pfs,/scratch/project_465000000,/project/project_465000000 \
/images/train.sif \
factory task /scratch/lab/.factory/slurm/lab-croco/1 fetch --fetch &
child=$!
if [ "$told" = 1 ]; then kill -s "$by" "$child"; fi
while :; do
  told=0
  last=0
  wait "$child" || last=$?
  if [ "$told" = 0 ] || [ "$last" -le 128 ]; then code=$last; fi
  if [ "$told" = 0 ]; then break; fi
  if ! kill -0 "$child" 2>/dev/null; then
    last=0
    wait "$child" || last=$?
    if [ "$last" != 127 ]; then code=$last; fi
    break
  fi
done
ended "$code"
exit "$code"
