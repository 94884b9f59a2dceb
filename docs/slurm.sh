#!/usr/bin/env bash
# A launcher on one or several nodes of a SLURM cluster, from the repository's root:
#   sbatch docs/slurm.sh train_dbae.sh ffhq vp true [OPTION...]
# Edit the lines below for your cluster: this was written without one at hand. The job is requeued at its time limit and goes on from its last checkpoint.
#SBATCH --job-name=dbae
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --signal=TERM@300
#SBATCH --requeue
#SBATCH --output=slurm_%j.log
#SBATCH --open-mode=append
set -euo pipefail
(($#)) || { echo "error: expected a launcher and its arguments, e.g. train_dbae.sh ffhq vp true; got nothing" >&2; exit 2; }
cd "${SLURM_SUBMIT_DIR:?expected to be started by sbatch}"
# shellcheck disable=SC1091
[[ ! -f .venv/bin/activate ]] || source .venv/bin/activate

export NNODES=$SLURM_JOB_NUM_NODES
export RDZV_ID=$SLURM_JOB_ID
if ((NNODES > 1)); then
    RDZV_ENDPOINT=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):$((20000 + SLURM_JOB_ID % 10000))
    export RDZV_ENDPOINT
fi

# One launcher on each node, which starts a process for each GPU. SIGTERM, 5 minutes before the limit, saves and ends with 143.
status=0
srun bash "$@" || status=$?
if ((status == 143)); then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$status"
