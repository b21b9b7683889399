#!/usr/bin/env bash
# Makes .venv and installs what requirements.txt names, once; a second run takes no time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

python=${PYTHON:-python3}
if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
  echo "error: Python 3.11 or newer is needed; set PYTHON=/path/to/python3.11" >&2
  exit 1
fi
stamp=.venv/installed
if [[ -f $stamp ]] && cmp -s requirements.txt "$stamp"; then
  exit 0
fi
echo "setting up .venv (about a minute the first time)"
[[ -x .venv/bin/python ]] || "$python" -m venv .venv
.venv/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt
cp requirements.txt "$stamp"
