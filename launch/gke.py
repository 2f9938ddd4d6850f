"""Runs inversionview on TPU slices or GPU nodes of GKE: fills in launch/jobset.yaml and applies it.

    python launch/gke.py --name=iv-1 --image=REGISTRY/inversionview:tpu --topology=v5e:16x16 --bucket=B --account=S \
        -- train --config=addition --workdir=/shared/iv-1
    python launch/gke.py --name=iv-1 --image=REGISTRY/inversionview:cuda --gpus=h100:8 --nodes=2 --claim=C \
        -- train --config=addition --workdir=/shared/iv-1

--dry_run prints the JobSet and applies nothing. The cluster needs the JobSet controller and a node pool of these accelerators. Every pod has
the storage at /shared, and the workdir must be there: a bucket of Cloud Storage (the cluster's Cloud Storage FUSE driver mounts it, as
the service account, which needs access to it by Workload Identity), or a persistent volume claim that many pods can write to (Filestore, for
example).
"""

import argparse
import json
import pathlib
import re
import string
import subprocess
import sys
from typing import Any

from inversionview_jax.devices import chips
from inversionview_jax.errors import InversionViewError, one_of

_TEMPLATE = pathlib.Path(__file__).parent / "jobset.yaml"
# Name -> GKE's node label (`cloud.google.com/gke-accelerator`).
GPUS = {
  "t4": "nvidia-tesla-t4",
  "l4": "nvidia-l4",
  "v100": "nvidia-tesla-v100",
  "a100": "nvidia-tesla-a100",
  "a100-80gb": "nvidia-a100-80gb",
  "h100": "nvidia-h100-80gb",
  "h200": "nvidia-h200-141gb",
  "b200": "nvidia-b200",
}
_PORT = 8476  # of process 0, which the others connect to


def render(
  name: str,
  image: str,
  arguments: list[str],
  *,
  topology: str = "",
  gpus: str = "",
  nodes: int = 1,
  claim: str = "",
  bucket: str = "",
  account: str = "default",
  restarts: int = 100,
) -> str:
  """The JobSet that runs a command, as YAML.

  Args:
    name: of the JobSet; lower-case letters, digits and dashes.
    image: container image with `inversionview` on its PATH.
    arguments: of `inversionview`.
    topology: of a TPU slice, such as "v5e:16x16"; or
    gpus: kind and number of the GPUs of a node, such as "h100:8", and
    nodes: how many such nodes.
    claim: a persistent volume claim that all pods can write to; or
    bucket: a bucket of Cloud Storage.
    account: the Kubernetes service account.
    restarts: maximum number of restarts of the set.

  Raises:
    InversionViewError: an invalid name, topology or kind of GPU, no or two kinds of accelerators or of storage, no command, or a workdir on a
      pod's own disk.
  """
  if bool(topology) == bool(gpus):
    raise InversionViewError("give --topology=v5e:16x16 for a TPU slice or --gpus=h100:8 for GPU nodes, one of them")
  if bool(claim) == bool(bucket):
    raise InversionViewError("give --bucket=B or --claim=C, one of them: the storage that all pods have at /shared")
  pods = _on_gpus(name, gpus, nodes) if gpus else _on_tpus(topology, nodes)
  if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):  # the controller appends to it, and 63 are allowed
    raise InversionViewError(f"--name={name}: at most 40 lower-case letters, digits and dashes, a letter first")
  if not arguments:
    raise InversionViewError("no command; write -- train --config=... --workdir=/shared/... at the end")
  if not any(argument.startswith("--workdir=/shared/") for argument in arguments):
    raise InversionViewError(
      "no --workdir=/shared/... in the command: what a pod writes to its own disk is lost with it"
    )
  storage, annotations = _storage(claim, bucket.removeprefix("gs://").rstrip("/"))
  values = pods | {
    "image": image,
    "args": arguments,
    "account": account,
    "restarts": restarts,
    "annotations": annotations,
    "mounts": [{"name": "shared", "mountPath": "/shared"}, {"name": "memory", "mountPath": "/dev/shm"}],
    "volumes": [{"name": "shared"} | storage, {"name": "memory", "emptyDir": {"medium": "Memory"}}],
  }
  return string.Template(_TEMPLATE.read_text()).substitute(
    {"name": name} | {key: json.dumps(value) for key, value in values.items()}
  )


def _on_tpus(topology: str, nodes: int) -> dict[str, Any]:
  """What pods of a TPU slice need; JAX finds the other hosts of a slice by itself."""
  slice_ = chips.topology(topology)
  if slice_.chip is None:
    raise InversionViewError(f"--topology={topology}: give TPUs, such as v5e:16x16")
  if nodes != 1:
    raise InversionViewError(f"--nodes={nodes} is for GPUs: the topology of a slice has its number of hosts")
  return {
    "selector": {
      "cloud.google.com/gke-tpu-accelerator": slice_.chip.gke,
      "cloud.google.com/gke-tpu-topology": slice_.grid,
    },
    "hosts": slice_.hosts,
    "resource": {"google.com/tpu": min(slice_.devices, slice_.chip.per_host)},
    "env": [],
  }


def _on_gpus(name: str, gpus: str, nodes: int) -> dict[str, Any]:
  """What pods on GPU nodes need: on several of them the address of the first, and their number; Kubernetes gives each its index."""
  kind, _, count = gpus.partition(":")
  if kind not in GPUS:
    raise one_of("kind of GPU:", kind, GPUS)
  if not re.fullmatch("[1-9][0-9]?", count):
    raise InversionViewError(f"--gpus={gpus}: kind and number of a node's GPUs, such as {kind}:8")
  if not 1 <= nodes <= 10_000:
    raise InversionViewError(f"--nodes={nodes} must be at least 1")
  first = {"JAX_COORDINATOR_ADDRESS": f"{name}-slice-0-0.{name}:{_PORT}", "JAX_NUM_PROCESSES": str(nodes)}
  return {
    "selector": {"cloud.google.com/gke-accelerator": GPUS[kind]},
    "hosts": nodes,
    "resource": {"nvidia.com/gpu": int(count)},
    "env": [{"name": key, "value": value} for key, value in first.items()] if nodes > 1 else [],
  }


def _storage(claim: str, bucket: str) -> tuple[dict[str, Any], dict[str, str]]:
  """The volume that is mounted at /shared, and the annotations of its pods."""
  if claim:
    return {"persistentVolumeClaim": {"claimName": claim}}, {}
  # Checkpoints are written under another name and renamed, folders too, which gcsfuse does file by file. uid: that of the image's user.
  options = {"bucketName": bucket, "mountOptions": "implicit-dirs,rename-dir-limit=100000,uid=1000,gid=1000"}
  return {"csi": {"driver": "gcsfuse.csi.storage.gke.io", "volumeAttributes": options}}, {"gke-gcsfuse/volumes": "true"}


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--name", required=True)
  parser.add_argument("--image", required=True, help="built with launch/Dockerfile")
  parser.add_argument("--topology", default="", help="of a TPU slice, such as v5e:16x16")
  parser.add_argument("--gpus", default="", help=f"of a node, such as h100:8; kinds: {', '.join(GPUS)}")
  parser.add_argument("--nodes", type=int, default=1, help="with GPUs (default: 1)")
  parser.add_argument("--bucket", default="", help="of Cloud Storage, mounted at /shared")
  parser.add_argument("--claim", default="", help="persistent volume claim, mounted at /shared")
  parser.add_argument("--account", default="default", help="Kubernetes service account (default: default)")
  parser.add_argument("--restarts", type=int, default=100, help="at most (default: 100)")
  parser.add_argument("--dry_run", action="store_true", help="print the JobSet and apply nothing")
  cut = argv.index("--") if "--" in argv else len(argv)
  args = parser.parse_args(argv[:cut])
  try:
    text = render(
      args.name,
      args.image,
      argv[cut + 1 :],
      topology=args.topology,
      gpus=args.gpus,
      nodes=args.nodes,
      claim=args.claim,
      bucket=args.bucket,
      account=args.account,
      restarts=args.restarts,
    )
  except InversionViewError as error:
    print(f"gke: {error}", file=sys.stderr)
    return 2
  if args.dry_run:
    print(text, end="")
    return 0
  try:
    return subprocess.run(["kubectl", "apply", "-f", "-"], input=text, text=True, check=False).returncode
  except FileNotFoundError:
    print("gke: there is no kubectl on this machine; --dry_run prints the JobSet", file=sys.stderr)
    return 2


if __name__ == "__main__":
  sys.exit(main(sys.argv[1:]))
