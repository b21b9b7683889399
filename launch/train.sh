#!/usr/bin/env bash
# What every machine of a run executes; the other scripts here start it. Arguments go to lares_jax.main.
#
#   bash launch/train.sh --config=configs/beauty.py --workdir=runs/beauty \
#     --config.data.path=PATH/beauty.txt                                      one process
#   bash launch/setup.sh                                                      two on one machine, which
#   LARES_PROCESSES=0/2@localhost:1234 bash launch/train.sh ... &             must not both make .venv
#   LARES_PROCESSES=1/2@localhost:1234 bash launch/train.sh ...
#
# PYTHON names the interpreter; without it .venv is made on first use, with the packages that
# PLATFORM (cpu, tpu or gpu) needs. The workdir must be on a disk that all machines share.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -z ${PYTHON:-} ]]; then
  bash launch/setup.sh
  PYTHON=.venv/bin/python
fi
if [[ ${PLATFORM:-} == gpu ]]; then
  if [[ -z ${XLA_PYTHON_CLIENT_MEM_FRACTION:-} ]]; then # its older name: jax refuses both
    export XLA_CLIENT_MEM_FRACTION=${XLA_CLIENT_MEM_FRACTION:-0.92}
  fi
  # Tuning Triton's products as well takes minutes before the first step (configs/results/README.md).
  export XLA_FLAGS=${XLA_FLAGS:---xla_gpu_enable_triton_gemm=false}
fi
exec "$PYTHON" -m lares_jax.main "$@"
