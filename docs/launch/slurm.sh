#!/bin/bash
# Training on several machines under SLURM: sbatch docs/launch/slurm.sh
# docs/scale.md explains the parts. This script was never run on a cluster.
#SBATCH --job-name=mdm
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@180

export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1
export OMP_NUM_THREADS=4
first=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)

# Three minutes before the end this script alone gets SIGTERM. It passes it on to torchrun, waits
# until mdm has saved, and puts the job back into the queue.
again() {
    kill -TERM "$run"
    wait "$run"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
}
trap again TERM

srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 8 --max-restarts 100 --shutdown-timeout 120 \
    --rdzv-backend c10d --rdzv-endpoint "$first:29400" --rdzv-id "$SLURM_JOB_ID" \
    --rdzv-conf read_timeout=600 --no-python \
    mdm train --preset mdm64 --data /shared/train.index --text-encoder /shared/flan-t5-xl \
    --batch-size 2048 --steps 400000 --save-every 500 --workers 4 --backend torch --quiet \
    --out /shared/runs/mine --resume auto &
run=$!
wait "$run"
