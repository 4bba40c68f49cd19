#!/bin/bash
# Trains on a SLURM allocation: one torchrun per machine, which start a rank per GPU and meet at the first of them.
#
#   sbatch docs/slurm_train.sh
#
# The checkout with its .venv, DATA and OUT must lie on storage that every machine sees at the same path. A job that is
# cancelled, requeued or loses a machine goes on from the newest checkpoint; so does another sbatch of the same.
#SBATCH --job-name=nava-train
#SBATCH --nodes=8
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=48:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=nava-train-%j.log
set -euo pipefail

ENGINE=${ENGINE:-$HOME/nava-engine}
RECIPE=${RECIPE:-stage2_joint}
DATA=${DATA:-/data/latents}
OUT=${OUT:-/data/runs/$RECIPE}
RANKS_PER_NODE=${RANKS_PER_NODE:-8}
PORT=${PORT:-29400}
export PATH="$ENGINE/.venv/bin:$PATH" OMP_NUM_THREADS=${OMP_NUM_THREADS:-8} HF_HUB_OFFLINE=1
cd "$ENGINE"

HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$SLURM_JOB_NUM_NODES" --kill-on-bad-exit=1 \
  python -m torch.distributed.run \
  --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$RANKS_PER_NODE" --max-restarts=3 \
  --rdzv-backend=c10d --rdzv-endpoint="$HEAD:$PORT" --rdzv-id="$SLURM_JOB_ID" \
  -m model.cli train "$RECIPE" --set data.shards="$DATA/shards" --out "$OUT"
