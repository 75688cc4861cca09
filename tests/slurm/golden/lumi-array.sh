#!/bin/bash -l
#SBATCH --job-name=generate.abc123def456.0f0f0f.array
#SBATCH --output="/scratch/lab/.factory/slurm/lab-croco/1/logs/generate-array-%A_%a.log"
#SBATCH --open-mode=append
#SBATCH --export=HOME,USER,LOGNAME,PATH,LANG
#SBATCH --account=project_465000000
#SBATCH --partition=standard-g
#SBATCH --time=24:00:00
#SBATCH --mem=480G
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=8
#SBATCH --cpus-per-task=7
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --signal=B:USR1@300
#SBATCH --requeue

# generate: 32 tasks. Rendered for the site lumi by croco-factory X; its one argument is added to
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
export VLLM_ROCM_USE_AITER="0"
export FACTORY_HOME=/scratch/lab/.factory

# Caches of compiled kernels lie on each node, and go when the job ends.
caches="/tmp/$USER-$SLURM_JOB_ID"
mkdir -p "$caches/miopen"

index=$(( ${SLURM_ARRAY_TASK_ID:-0} + ${1:-0} ))
echo "factory: generate task $index, job ${SLURM_JOB_ID:-none} on $(hostname), start $(( ${SLURM_RESTART_COUNT:-0} + 1 ))"

# Keep what the task said of itself when it ended: where and with which code.
ended() {
  printf '%s %s %s %s\n' "$1" "$(hostname)" "${SLURM_JOB_ID:-0}" "$(date +%s)" > /scratch/lab/.factory/slurm/lab-croco/1/ends/generate-array".$index"
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

srun --nodes=1 --ntasks=8 --cpus-per-task=7 --kill-on-bad-exit=0 --cpu-bind=mask_cpu:0xfe000000000000,0xfe00000000000000,0xfe0000,0xfe000000,0xfe,0xfe00,0xfe00000000,0xfe0000000000 \
singularity exec --bind /scratch/lab/.factory,/pfs,/scratch/project_465000000,/project/project_465000000 \
/images/generate.sif \
factory task /scratch/lab/.factory/slurm/lab-croco/1 generate --shard "$index/32" --engines 8 --gpus 1 &
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
rm -rf -- "$caches" || true

# After a warning of SLURM's alone: who is cancelled stays away, and who is preempted is put back by
# SLURM itself.
if [ "$code" = 75 ] && [ "$by" = USR1 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 5 ] \
  && command -v scontrol >/dev/null; then
  echo "factory: time is nearly over; back into the queue"
  scontrol requeue "$SLURM_JOB_ID" || echo "factory: not requeued; submit again to go on"
fi
exit "$code"
