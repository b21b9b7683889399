#!/usr/bin/env bash
# All GPUs of this machine, one process. Arguments go to lares_jax.main; for example
#
#   bash launch/gpu.sh --config=configs/beauty.py --workdir=runs/beauty \
#     --config.data.path=PATH/beauty.txt --config.mesh.catalogue=2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PLATFORM=${PLATFORM:-gpu}
exec bash launch/train.sh "$@"
