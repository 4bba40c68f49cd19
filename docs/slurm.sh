#!/bin/bash
# Curates on a SLURM allocation: one Ray node per machine, the command on the first of them.
#
#   sbatch docs/slurm.sh
#
# The checkout with its .venv, the weights, INPUT and RUN must lie on storage that every machine sees at the same path.
#SBATCH --job-name=nava-curate
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --cpus-per-task=32
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --output=nava-curate-%j.log
# With GPUs: #SBATCH --gpus-per-task=8, and --num-gpus="$SLURM_GPUS_PER_TASK" behind --num-cpus below.
set -euo pipefail

ENGINE=${ENGINE:-$HOME/nava-engine}
INPUT=${INPUT:-/data/raw}
RUN=${RUN:-/data/run}
PORT=6379
export PATH="$ENGINE/.venv/bin:$PATH"

# One secret for this job, in a file that only its user can read.
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$HOME/.nava-ray-token-$SLURM_JOB_ID"
(umask 077 && python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT

# A lost machine is noticed within seconds instead of minutes.
export RAY_grpc_client_keepalive_time_ms=5000 RAY_grpc_client_keepalive_timeout_ms=5000
export RAY_health_check_period_ms=2000 RAY_health_check_failure_threshold=3 RAY_health_check_timeout_ms=3000
export RAY_USAGE_STATS_ENABLED=0 HF_HUB_OFFLINE=1 PYANNOTE_METRICS_ENABLED=0 OMP_NUM_THREADS=1
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Starts Ray on every machine, runs what follows `--` on the first, and ends Ray with it.
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --kill-on-bad-exit=0 \
  ray symmetric-run --address "$HEAD:$PORT" --min-nodes "$SLURM_JOB_NUM_NODES" --num-cpus="$SLURM_CPUS_PER_TASK" \
  -- nava-curate run quickstart --address auto --input "$INPUT" --out "$RUN"
