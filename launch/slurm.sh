#!/usr/bin/env bash
# SLURM with GPUs: one task a GPU, joined by JAX from SLURM's own variables. Fill in the five lines
# below (or give them to sbatch); arguments go to lares_jax.main. The directory must be shared.
#
#   sbatch launch/slurm.sh --config=configs/beauty.py --workdir=runs/beauty
#
#SBATCH --job-name=lares
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --signal=TERM@120
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"

export PLATFORM=${PLATFORM:-gpu}
if [[ -z ${PYTHON:-} ]]; then # once, before the tasks would do it all at the same time
  bash launch/setup.sh
  export PYTHON=.venv/bin/python
fi
export LARES_PROCESSES=auto
# If one task fails the others are ended, rather than left waiting for it.
srun --kill-on-bad-exit=1 bash launch/train.sh "$@"
