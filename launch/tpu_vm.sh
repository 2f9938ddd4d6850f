#!/usr/bin/env bash
# Runs inversionview on a Cloud TPU slice, on all of its hosts, and again after a preemption.
#
#   bash launch/tpu_vm.sh ACTION --name=N --zone=Z --type=v5litepod-256 --bucket=B [OPTIONS] [-- train --config=... --workdir=/shared/...]
#
# Actions: create, copy (the commit that is checked out, and installs it), run, delete; all: the first three, repeated as often as the slice is
# preempted, then delete. Where the image's Python is older than 3.11, copy installs 3.12 with uv.
#
#   --name --zone --type   of the slice, as gcloud names them
#   --nfs=HOST:/SHARE      a file server (Filestore, for example) that every host mounts at /shared, where the workdir must be: what is
#                          written to a slice's own disk is lost with it
#   --bucket=B             in its place, a bucket of Cloud Storage, which gcsfuse mounts at /shared; the slice's service account must be able
#                          to write to it
#   --extras=a,b           of the package, beside `tpu` and those that the command shows a need of (gguf, hf, tracr, datasets, wandb)
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
name= zone= type= nfs= bucket= extras= version= project= spot= times=100 wait=60 dry=
while [ $# -gt 0 ]; do
  case $1 in
    --name=* | --zone=* | --type=* | --nfs=* | --bucket=* | --extras=* | --version=* | --project=* | --times=* | --wait=*)
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
  create | all) needed+=(type) ;;
esac
for key in "${needed[@]}"; do
  [ -n "${!key}" ] || fail "--$key is missing"
done
bucket=${bucket#gs://}
bucket=${bucket%/}
if [ $action = copy ] || [ $action = all ]; then
  [ -n "$nfs$bucket" ] || fail "--nfs=HOST:/SHARE or --bucket=B is missing: where the workdir lies, mounted at /shared"
  [ -z "$nfs" ] || [ -z "$bucket" ] || fail "--nfs and --bucket are both mounted at /shared: give one of them"
fi
[[ $extras =~ ^[a-z,]*$ ]] || fail "--extras=$extras: names of extras in setup.cfg, with commas between them"
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

# The extras that the command needs, and those of --extras: "tpu,gguf".
all_extras() {
  local needed=tpu line=" $* "
  [[ $line != *.gguf[\ \'\"]* ]] || needed+=,gguf
  [[ ! $line =~ --config[=\ ]([^\ ]*/)?(ioi|factual|text)[a-z0-9_]*(\.py)?(:|\ ) ]] || needed+=,hf
  [[ $line != *tracr:* ]] || needed+=,tracr
  [[ $line != *.parquet* ]] || needed+=,datasets
  [[ $line != *config.log=wandb* ]] || needed+=,wandb
  echo "$needed${extras:+,$extras}"
}

# The command that mounts the shared storage.
mounting() {
  if [ "$nfs" ]; then
    echo "sudo apt-get -qq install -y nfs-common && sudo mount -t nfs $nfs /shared"
    return
  fi
  local key=/usr/share/keyrings/cloud.google.asc
  # Checkpoints are written under another name and renamed, folders too, which gcsfuse does file by file.
  echo "curl -fsS https://packages.cloud.google.com/apt/doc/apt-key.gpg | sudo tee $key > /dev/null \
&& echo \"deb [signed-by=$key] https://packages.cloud.google.com/apt gcsfuse-\$(lsb_release -cs) main\" | sudo tee /etc/apt/sources.list.d/gcsfuse.list > /dev/null \
&& sudo apt-get -qq update && sudo apt-get -qq install -y gcsfuse \
&& sudo chown \$(id -u) /shared && gcsfuse --implicit-dirs --rename-dir-limit=100000 $bucket /shared"
}

copy() {
  local archive=/tmp/inversionview_jax.tar.gz own="${TMPDIR:-/tmp}/inversionview_jax-$name.tar.gz"
  do_ git archive --format=tar.gz "--output=$own" HEAD || fail "this is no git checkout; the commit that is checked out is what is copied"
  do_ gcloud compute tpus tpu-vm scp "$own" "$name:$archive" "${where[@]}" --worker=all || return
  on_all "sudo mkdir -p /shared && { mountpoint -q /shared || { $(mounting); }; } \
&& rm -rf inversionview_jax && mkdir inversionview_jax && tar -xzf $archive -C inversionview_jax && cd inversionview_jax \
&& if python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then python3 -m venv .venv; \
else python3 -m pip install --quiet --user uv && python3 -m uv venv --quiet --seed --python 3.12 .venv; fi \
&& .venv/bin/pip install --quiet '.[$(all_extras "$@")]'"
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
    copy "$@" || continue
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
      copy "$@"
      run "$@"
      delete
    else
      everything "$@"
    fi
    ;;
  run | copy) $action "$@" ;;
  *) $action ;;
esac
