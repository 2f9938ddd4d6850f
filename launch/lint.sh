#!/usr/bin/env bash
# Lint, format and types as CI checks them: bash launch/lint.sh [--fix]
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/venv.sh
install ".[test,lint]"
if [ "${1:-}" = --fix ]; then
  .venv/bin/ruff check --fix .
  .venv/bin/ruff format .
else
  .venv/bin/ruff check .
  .venv/bin/ruff format --check .
fi
.venv/bin/mypy
