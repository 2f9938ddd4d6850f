#!/usr/bin/env bash
# Whether this package is right and fast on the devices of this machine, in at most 8 minutes: bash launch/check_device.sh [--small] [--out FOLDER]
# Needs no installation and no internet: runs from the checkout, with $PYTHON, else .venv, else python3, which must have jax, flax, optax,
# orbax-checkpoint, safetensors, numpy, rich, absl-py and ml-collections. --small is for CPUs. launch/README.md explains the tables.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
if [ -z "${PYTHON:-}" ]; then
  PYTHON=python3
  [ ! -x "$root/.venv/bin/python" ] || PYTHON=$root/.venv/bin/python
fi
"$PYTHON" -c 'import numpy' 2>/dev/null || {
  echo "check_device.sh: $PYTHON has no numpy; pip install jax flax optax orbax-checkpoint safetensors numpy rich absl-py ml-collections" >&2
  exit 2
}
export PYTHONPATH="$root${PYTHONPATH:+:$PYTHONPATH}"
exec "$PYTHON" -m inversionview_jax.cli bench --device "$@"
