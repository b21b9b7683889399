#!/usr/bin/env bash
# The main job on the built-in data set, in a few minutes on 2 cores. Arguments go to the command.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
bash launch/setup.sh
exec .venv/bin/python -m lares_jax.quickstart "$@"
