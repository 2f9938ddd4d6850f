#!/usr/bin/env bash
# On a fresh machine with Python 3.11 or newer: makes .venv, installs the package, draws the preimage of head a0.0 of the shipped addition model at
# "=", and writes report.html.
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/venv.sh
install "."
.venv/bin/inversionview view "615+861=1476" --reader addition --site a0.0 --position = --shown 30 --html report.html
echo
echo "The same as a page: report.html. With 'source .venv/bin/activate', inversionview is a command: inversionview --help, inversionview doctor"
