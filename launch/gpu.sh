#!/usr/bin/env bash
# All GPUs of this machine, one process. Arguments go to lares_jax.main; for example
#
#   bash launch/gpu.sh --config=configs/beauty.py --workdir=runs/beauty --config.mesh.catalogue=2
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

export PLATFORM=${PLATFORM:-gpu}
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
# Tuning Triton's products as well takes minutes before the first step; see configs/results/README.md.
export XLA_FLAGS=${XLA_FLAGS:---xla_gpu_enable_triton_gemm=false}
exec bash launch/train.sh "$@"
