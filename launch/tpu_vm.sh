#!/usr/bin/env bash
# Runs inversionview on a Cloud TPU slice, on all of its hosts, and again after a preemption.
#
#   bash launch/tpu_vm.sh ACTION --name=N --zone=Z --type=v5litepod-256 --nfs=HOST:/SHARE [OPTIONS] [-- train --config=... --workdir=/shared/...]
#
# Actions: create, copy (the commit that is checked out, and installs it), run, delete; all: the first three, repeated as often as the slice is
# preempted, then delete.
#
#   --name --zone --type   of the slice, as gcloud names them
#   --nfs=HOST:/SHARE      a file server (Filestore, for example) that every host mounts at /shared, where the workdir must be: what is
#                          written to a slice's own disk is lost with it
#   --version=V            of the TPU software (default: v2-alpha-tpuv5-lite; v2-alpha-tpuv5 for v5p, v2-alpha-tpuv6e for v6e)
#   --project=P            (default: gcloud's)
#   --spot                 cheaper, and may be preempted at any time
#   --times=N              how often `all` starts again at most (default 100)
#   --wait=S               seconds between two tries (default 60)
#   --dry_run              print the commands and run nothing
set -uo pipefail
cd "$(dirname "$0")/.."

fail() {
  echo "tpu_vm.sh: $1" >&2
  exit 2
}

action=${1:-}
case $action in
  create | copy | run | delete | all) shift ;;
  *) fail "action '$action': one of create, copy, run, delete, all; see the head of launch/tpu_vm.sh" ;;
esac
name= zone= type= nfs= version= project= spot= times=100 wait=60 dry=
while [ $# -gt 0 ]; do
  case $1 in
    --name=* | --zone=* | --type=* | --nfs=* | --version=* | --project=* | --times=* | --wait=*)
      key=${1%%=*}
      declare "${key#--}=${1#*=}"
      ;;
    --spot) spot=1 ;;
    --dry_run) dry=1 ;;
    --) shift; break ;;
    *) fail "unknown option $1; options are given as --name=VALUE, and the command of inversionview after --" ;;
  esac
  shift
done
needed=(name zone)
case $action in
  create) needed+=(type) ;;
  copy) needed+=(nfs) ;;
  all) needed+=(type nfs) ;;
esac
for key in "${needed[@]}"; do
  [ -n "${!key}" ] || fail "--$key is missing"
done
for key in times wait; do
  [[ ${!key} =~ ^[0-9]+$ ]] || fail "--$key=${!key} is not a number"
done
if [ $action = run ] || [ $action = all ]; then
  [ $# -gt 0 ] || fail "no command; write -- train --config=... --workdir=/shared/... at the end"
  [[ " $*" == *" --workdir=/shared/"* ]] || fail "no --workdir=/shared/... in the command: what is written to a slice's own disk is lost with it"
fi
if [ -z "$version" ]; then
  case $type in v5p-*) version=v2-alpha-tpuv5 ;; v6e-*) version=v2-alpha-tpuv6e ;; *) version=v2-alpha-tpuv5-lite ;; esac
fi
where=("--zone=$zone" ${project:+"--project=$project"})

do_() {
  if [ "$dry" ]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

create() { do_ gcloud compute tpus tpu-vm create "$name" "${where[@]}" "--accelerator-type=$type" "--version=$version" ${spot:+--spot}; }

delete() { do_ gcloud compute tpus tpu-vm delete "$name" "${where[@]}" --quiet; }

on_all() { do_ gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=all "--command=$1"; }

copy() {
  local archive=/tmp/inversionview_jax.tar.gz own="${TMPDIR:-/tmp}/inversionview_jax-$name.tar.gz"
  do_ git archive --format=tar.gz "--output=$own" HEAD || fail "this is no git checkout; the commit that is checked out is what is copied"
  do_ gcloud compute tpus tpu-vm scp "$own" "$name:$archive" "${where[@]}" --worker=all || return
  on_all "sudo mkdir -p /shared && { mountpoint -q /shared || { sudo apt-get -qq install -y nfs-common && sudo mount -t nfs $nfs /shared; }; } \
&& rm -rf inversionview_jax && mkdir inversionview_jax && tar -xzf $archive -C inversionview_jax && cd inversionview_jax \
&& python3 -m venv .venv && .venv/bin/pip install --quiet '.[tpu]'"
}

run() {
  local line
  printf -v line '%q ' "$@"
  # Each host starts the same command; JAX detects the others on a TPU slice. A run that was left behind by a broken connection would hold the
  # chips, so it gets SIGTERM and a minute to save.
  on_all "! pkill -TERM -x inversionview || sleep 60; cd inversionview_jax && .venv/bin/inversionview $line"
}

# READY, PREEMPTED, ...; NONE where there is no slice of this name.
state() { gcloud compute tpus tpu-vm describe "$name" "${where[@]}" '--format=value(state)' 2>/dev/null || echo NONE; }

everything() {
  local try code
  for ((try = 0; try <= times; try++)); do
    if [ $try -gt 0 ]; then
      echo "tpu_vm.sh: starting again ($try of at most $times) in $wait s" >&2
      sleep "$wait"
    fi
    case $(state) in
      READY) ;;
      NONE) create || continue ;; # no capacity now, perhaps later
      *) delete; create || continue ;;
    esac
    copy || continue
    run "$@"
    code=$?
    # 75: preempted and saved. 255: the connection broke. Otherwise the state of the slice shows whether it was preempted; if not, the error would
    # come back.
    if [ $code = 0 ] || { [ $code != 75 ] && [ $code != 255 ] && [ "$(state)" = READY ]; }; then
      delete
      return $code
    fi
  done
  echo "tpu_vm.sh: gave up after $times further tries; the slice $name is left as it is" >&2
  return 75
}

case $action in
  all)
    if [ "$dry" ]; then
      create
      copy
      run "$@"
      delete
    else
      everything "$@"
    fi
    ;;
  run) run "$@" ;;
  *) $action ;;
esac
