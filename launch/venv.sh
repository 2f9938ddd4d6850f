# Sourced by the other scripts, from the repository root: `install REQUIREMENT` puts it into $VENV (.venv), and only if setup.cfg has changed since.

VENV=${VENV:-.venv}

install() {
  local python=${PYTHON:-python3} stamp
  if [ ! -x "$VENV/bin/python" ]; then
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
      echo "inversionview_jax needs Python 3.11 or newer, and $python is $("$python" --version 2>&1); set PYTHON=/path/to/python3.11" >&2
      exit 2
    }
    "$python" -m venv "$VENV"
  fi
  stamp="$VENV/installed-$(printf %s "$1" | tr -c 'a-z' _)"
  if [ ! -e "$stamp" ] || [ setup.cfg -nt "$stamp" ] || [ pyproject.toml -nt "$stamp" ]; then
    # Not compiled to bytecode here: most of what comes along is never imported, and what is compiles itself.
    "$VENV/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --editable "$1"
    touch "$stamp"
  fi
}
