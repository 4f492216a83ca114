#!/bin/bash
# Extract on many machines that share a folder: each task of the array computes a part, and the job after it ends the work.
#
#   array=$(sbatch --parsable --array=1-16 docs/how-to/slurm.sh pictures)
#   sbatch --dependency=afterany:$array docs/how-to/slurm.sh pictures
#
#SBATCH --cpus-per-task=8
#SBATCH --mem=16G
set -euo pipefail
part=()
if [[ -n "${SLURM_ARRAY_TASK_ID:-}" ]]; then
    part=(--part "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT")
fi
exec tlpipe extract "$@" "${part[@]}"
