#!/usr/bin/env bash
# Makes .venv and installs what requirements.txt names, and what PLATFORM (cpu, tpu or gpu) needs
# besides; a second run takes no time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

wanted=(requirements.txt)
if [[ ${PLATFORM:-cpu} != cpu ]]; then
  more=requirements-$PLATFORM.txt
  if [[ ! -f $more ]]; then
    echo "error: PLATFORM=$PLATFORM: use cpu, gpu or tpu" >&2
    exit 1
  fi
  wanted+=("$more")
fi
stamp=.venv/installed
if [[ -f $stamp ]] && cat "${wanted[@]}" | cmp -s - "$stamp"; then
  exit 0
fi
echo "setting up .venv (about a minute the first time)"
# A set-up that was interrupted may have left an environment without pip.
if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
  python=${PYTHON:-python3}
  if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "error: Python 3.11 or newer is needed; run once:" \
      "PLATFORM=${PLATFORM:-cpu} PYTHON=/path/to/python3.11 bash launch/setup.sh" >&2
    exit 1
  fi
  "$python" -m venv --clear .venv
fi
.venv/bin/python -m pip install --quiet --disable-pip-version-check "${wanted[@]/#/--requirement=}"
cat "${wanted[@]}" >"$stamp"
