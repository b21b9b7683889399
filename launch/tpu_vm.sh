#!/usr/bin/env bash
# A Cloud TPU VM or pod slice, from your own machine: copies this directory to all of its workers and
# starts the run on each. Fill in the three values, or export them; the TPU must exist already.
# No data is copied. With more than one worker, --workdir and --config.data.path must lie on a disk that
# all of them mount at the same place (Filestore, or a bucket through Cloud Storage FUSE).
#
#   TPU=my-tpu ZONE=us-east5-a PROJECT=my-project \
#     bash launch/tpu_vm.sh --config=configs/beauty.py --workdir=/mnt/shared/beauty \
#       --config.data.path=/mnt/shared/beauty.txt
#
# Stopped, the same command goes on where the run was. A preempted VM's own disk is gone: only a
# --workdir on a mounted disk outlives it. Ctrl-C here, or a lost connection, ends worker 0 at its next
# line and the others a minute later: for a long run start this inside tmux.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

TPU=${TPU:?the name of the TPU VM}
ZONE=${ZONE:?its zone}
PROJECT=${PROJECT:?your Google Cloud project}

tpu=(gcloud compute tpus tpu-vm)
where=(--zone="$ZONE" --project="$PROJECT" --worker=all)

archive=$(mktemp)
trap 'rm -f "$archive"' EXIT
tar --create --gzip --file="$archive" --exclude=__pycache__ \
  lares_jax configs launch requirements.txt requirements-tpu.txt
"${tpu[@]}" scp "$archive" "$TPU:lares_jax.tar.gz" "${where[@]}"

printf -v arguments ' %q' "$@"
"${tpu[@]}" ssh "$TPU" "${where[@]}" --command="
  set -e
  mkdir -p lares_jax && tar --extract --gzip --file=lares_jax.tar.gz --directory=lares_jax
  cd lares_jax
  if [[ -z \${PYTHON:-} && ! -f .venv/installed ]]; then
    for name in python3.13 python3.12 python3.11; do
      if \$name -c 'import ensurepip' 2>/dev/null; then found=\$name; fi
    done
    if [[ -z \${found:-} ]]; then # TPU VMs with Ubuntu 22.04 have 3.10
      python3 -m pip install --quiet --user uv
      python3 -m uv python install --quiet 3.12
      found=\$(python3 -m uv python find 3.12)
    fi
    PLATFORM=tpu PYTHON=\$found bash launch/setup.sh
  fi
  PLATFORM=tpu LARES_PROCESSES=${LARES_PROCESSES:-auto} bash launch/train.sh$arguments"
