#!/usr/bin/env bash
# The short tests on the newest Python there is beside the default one (pyenv's versions and what is on PATH): bash launch/test_newest.sh
set -euo pipefail
cd "$(dirname "$0")/.."
newest=$(
  for python in "$HOME"/.pyenv/versions/3.*/bin/python $(compgen -c | grep -xE 'python3\.[0-9]+' | sort -u); do
    version=$("$python" -c 'import sys, venv; print(*sys.version_info[:2])' 2>/dev/null) || continue
    echo "${version/ /.} $(command -v "$python")"
  done | sort -V | tail -n 1
)
default=$("${PYTHON:-python3}" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
if [ -z "$newest" ] || [ "${newest%% *}" = "$default" ]; then
  echo "no Python newer than $default here: nothing more to test"
  exit 0
fi
export PYTHON=${newest#* } VENV=.venv-newest
source launch/venv.sh
install ".[test]"
"$VENV/bin/python" -c 'import jax, sys; print("Python", sys.version.split()[0], "JAX", jax.__version__)'
# Some of every folder, to notice a library that has changed: two minutes on two cores.
exec "$VENV/bin/python" -m pytest -n 2 --dist loadfile tests/test_imports.py tests/test_sites.py tests/test_distance.py tests/tasks/test_tasks.py \
  tests/devices/test_program_cost.py tests/models/test_layers.py tests/models/test_capture.py tests/targets/test_target.py \
  tests/sampling/test_generation.py tests/preimage tests/training/test_optimizers.py "$@"
