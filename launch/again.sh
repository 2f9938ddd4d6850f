#!/usr/bin/env bash
# Runs a command, and again as long as it exits with 75: preempted, saved, to be run again.
#
#   bash launch/again.sh [--times N] [--dry_run] [--] COMMAND...
#
# --times N: at most N more times (default 1000). Any other exit code is passed on. A SIGTERM or SIGINT to this script is passed to the command,
# which is then not run again: the signal means that the machine is to be free.
set -uo pipefail

times=1000 dry=
while [ $# -gt 0 ]; do
  case $1 in
    --times) times=${2:?--times needs a number}; shift 2 ;;
    --dry_run) dry=1; shift ;;
    --) shift; break ;;
    -*) echo "again.sh: unknown option $1; bash launch/again.sh [--times N] [--dry_run] COMMAND..." >&2; exit 2 ;;
    *) break ;;
  esac
done
[[ $times =~ ^[0-9]+$ ]] || { echo "again.sh: --times $times is not a number" >&2; exit 2; }
[ $# -gt 0 ] || { echo "again.sh: no command; bash launch/again.sh [--times N] [--dry_run] COMMAND..." >&2; exit 2; }
if [ "$dry" ]; then
  printf '%q ' "$@"
  echo
  exit
fi

child= stopped=
trap 'stopped=1; [ -z "$child" ] || kill -TERM "$child" 2>/dev/null' TERM INT
for ((try = 0; ; try++)); do
  [ -z "$stopped" ] || exit 143
  "$@" &
  child=$!
  [ -z "$stopped" ] || kill -TERM "$child" 2>/dev/null # the signal came before the command had started
  wait "$child"
  code=$?
  while kill -0 "$child" 2>/dev/null; do # a trapped signal ends `wait` early; the command may still be saving
    wait "$child"
    code=$?
  done
  [ $code = 75 ] && [ -z "$stopped" ] || exit $code
  if [ $try -ge "$times" ]; then
    echo "again.sh: exited with 75 once more after $times further tries; giving up" >&2
    exit $code
  fi
  echo "again.sh: exited with 75; starting it again ($((try + 1)) of at most $times)" >&2
done
