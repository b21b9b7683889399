#!/usr/bin/env bash
# SLURM with GPUs: one task a GPU, joined by JAX from SLURM's own variables. Fill in the lines
# below (or give them to sbatch); arguments go to lares_jax.main. The directory must be shared. Where
# compute nodes reach no package index, first on the login node: PLATFORM=gpu bash launch/setup.sh
#
#   sbatch launch/slurm.sh --config=configs/beauty.py --workdir=runs/beauty \
#     --config.data.path=PATH/beauty.txt
#
#SBATCH --job-name=lares
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --time=24:00:00
#SBATCH --cpus-per-task=8
#SBATCH --requeue
#SBATCH --signal=TERM@600
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"

export PLATFORM=${PLATFORM:-gpu}
if [[ -z ${PYTHON:-} ]]; then # once, before the tasks would do it all at the same time
  bash launch/setup.sh
  export PYTHON=.venv/bin/python
fi
export LARES_PROCESSES=auto
export SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-8} # srun no longer takes it from sbatch
# If one task fails the others are ended, rather than left waiting for it.
code=0
srun --kill-on-bad-exit=1 bash launch/train.sh "$@" || code=$?
# Saved because its time was up (TERM, above): it goes on in a new allotment.
if [[ $code == 143 && -n ${SLURM_JOB_ID:-} ]]; then scontrol requeue "$SLURM_JOB_ID"; fi
exit "$code"
