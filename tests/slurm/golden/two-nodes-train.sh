#!/bin/bash -l
#SBATCH --job-name=dpo[all].abc123def456.0f0f0f.whole
#SBATCH --output="/scratch/lab/.factory/slurm/lab-croco/1/logs/dpo-all-whole-%j.log"
#SBATCH --open-mode=append
#SBATCH --export=HOME,USER,LOGNAME,PATH,LANG
#SBATCH --account=project_465000000
#SBATCH --partition=standard-g
#SBATCH --time=48:00:00
#SBATCH --mem=480G
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=56
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --signal=B:USR1@300
#SBATCH --requeue

# dpo[all]. Rendered for the site two-nodes by croco-factory X; its one argument is added to
# the number of an array's task.

export SLURM_EXPORT_ENV=ALL  # to srun: all that is set here, not only what sbatch was let through
module use /appl/local/laifs/modules
module load lumi-aif-singularity-bindings
set -euo pipefail
export HF_HUB_OFFLINE="1"
export HF_DATASETS_OFFLINE="1"
export TRANSFORMERS_OFFLINE="1"
export HF_HUB_DISABLE_TELEMETRY="1"
export VLLM_NO_USAGE_STATS="1"
export PYTHONUNBUFFERED="1"
export TRITON_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/triton"
export TORCHINDUCTOR_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/inductor"
export VLLM_CACHE_ROOT="/tmp/$USER-$SLURM_JOB_ID/vllm"
export MIOPEN_USER_DB_PATH="/tmp/$USER-$SLURM_JOB_ID/miopen"
export MIOPEN_CUSTOM_CACHE_DIR="/tmp/$USER-$SLURM_JOB_ID/miopen"
export NCCL_SOCKET_IFNAME="hsn0,hsn1,hsn2,hsn3"
export GLOO_SOCKET_IFNAME="hsn0"
export FI_MR_CACHE_MONITOR="userfaultfd"
export FACTORY_HOME=/scratch/lab/.factory

# Caches of compiled kernels lie on each node, and go when the job ends.
caches="/tmp/$USER-$SLURM_JOB_ID"
srun --nodes=2 --ntasks=2 --ntasks-per-node=1 mkdir -p "$caches/miopen"

# Where the processes of several nodes meet: this script runs on the first of them.
FACTORY_MEET="$(hostname):$(( 20000 + SLURM_JOB_ID % 20000 ))"
export FACTORY_MEET

index=$(( ${SLURM_ARRAY_TASK_ID:-0} + ${1:-0} ))
echo "factory: dpo[all] task $index, job ${SLURM_JOB_ID:-none} on $(hostname), start $(( ${SLURM_RESTART_COUNT:-0} + 1 ))"

# Keep what the task said of itself when it ended: where and with which code.
ended() {
  printf '%s %s %s %s\n' "$1" "$(hostname)" "${SLURM_JOB_ID:-0}" "$(date +%s)" > /scratch/lab/.factory/slurm/lab-croco/1/ends/dpo-all-whole".$index"
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

srun --nodes=2 --ntasks=2 --ntasks-per-node=1 --cpus-per-task=56 --kill-on-bad-exit=1 \
singularity exec --bind /scratch/lab/.factory,/pfs,/scratch/project_465000000,/project/project_465000000 \
/images/train.sif \
factory task /scratch/lab/.factory/slurm/lab-croco/1 'dpo[all]' --gpus 8 &
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
srun --nodes=2 --ntasks=2 --ntasks-per-node=1 rm -rf -- "$caches" || true

# After a warning of SLURM's alone: who is cancelled stays away, and who is preempted is put back by
# SLURM itself.
if [ "$code" = 75 ] && [ "$by" = USR1 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 5 ] \
  && command -v scontrol >/dev/null; then
  echo "factory: time is nearly over; back into the queue"
  scontrol requeue "$SLURM_JOB_ID" || echo "factory: not requeued; submit again to go on"
fi
exit "$code"
