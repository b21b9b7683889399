#!/usr/bin/env bash
# Sets up if needed, then lint, types and tests. Arguments go to pytest. LARES_SLOW=1 reads 10,000
# generated logs instead of 300.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
.venv/bin/python -m ruff check .
.venv/bin/python -m mypy
# Two workers, each file on one of them, so that what a file trains is trained once.
.venv/bin/python -m pytest -n 2 --dist loadfile "$@"
