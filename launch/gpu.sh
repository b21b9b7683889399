#!/usr/bin/env bash
# All GPUs of this machine, one process. Arguments go to lares_jax.main; for example
#
#   bash launch/gpu.sh --config=configs/beauty.py --workdir=runs/beauty --config.mesh.catalogue=2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PLATFORM=${PLATFORM:-gpu}
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
exec bash launch/train.sh "$@"
