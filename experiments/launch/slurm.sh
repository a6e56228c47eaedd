#!/usr/bin/env bash
# One process per node with all its GPUs; put back into the queue when it is preempted or its time is over.
#
#   sbatch --nodes 4 experiments/launch/slurm.sh python -m experiments.imagenet --data /data/packed --workdir runs/imagenet
#
# The workdir lies on a file system that all nodes share. jax reads the cluster from SLURM's variables.
# SLURM sends SIGTERM two minutes before it takes the nodes away: the state is saved, the job ends with 143 and is requeued.
#SBATCH --job-name=jaxfast
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail
if (($# == 0)); then
    echo "usage: sbatch [--nodes N] $0 COMMAND..." >&2
    exit 2
fi
code=0
srun --kill-on-bad-exit=1 "$@" || code=$?
if ((code == 143)); then
    echo "preempted at $(date): back into the queue" >&2
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
