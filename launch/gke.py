"""Runs inversionview on a TPU slice of GKE: fills in launch/jobset.yaml and applies it.

    python launch/gke.py --name=iv-1 --image=REGISTRY/inversionview --topology=v5e:16x16 --claim=shared \
        -- train --config=configs/addition.py --workdir=/shared/iv-1

--dry_run prints the JobSet and applies nothing. The cluster needs the JobSet controller, a node pool of this topology, and a persistent volume
claim that many pods can write to (Filestore, for example): every pod has it at /shared, and the workdir must be there.
"""

import argparse
import json
import pathlib
import re
import string
import subprocess
import sys

from inversionview_jax.devices import chips
from inversionview_jax.errors import InversionViewError

_TEMPLATE = pathlib.Path(__file__).parent / "jobset.yaml"


def render(
  name: str, image: str, topology: str, claim: str, arguments: list[str], account: str = "default", restarts: int = 100
) -> str:
  """The JobSet that runs a command, as YAML.

  Args:
    name: of the JobSet; lower-case letters, digits and dashes.
    image: container image with `inversionview` on its PATH.
    topology: such as "v5e:16x16".
    claim: a persistent volume claim that all pods can write to.
    arguments: of `inversionview`.
    account: the Kubernetes service account.
    restarts: maximum number of restarts of the set.

  Raises:
    InversionViewError: an invalid name or topology, no command, or a workdir on a pod's own disk.
  """
  slice_ = chips.topology(topology)
  if slice_.chip is None:
    raise InversionViewError(f"--topology={topology}: give TPUs, such as v5e:16x16")
  if not re.fullmatch(r"[a-z]([-a-z0-9]{0,38}[a-z0-9])?", name):  # the controller appends to it, and 63 are allowed
    raise InversionViewError(f"--name={name}: at most 40 lower-case letters, digits and dashes, a letter first")
  if not arguments:
    raise InversionViewError("no command; write -- train --config=... --workdir=/shared/... at the end")
  if not any(argument.startswith("--workdir=/shared/") for argument in arguments):
    raise InversionViewError(
      "no --workdir=/shared/... in the command: what a pod writes to its own disk is lost with it"
    )
  return string.Template(_TEMPLATE.read_text()).substitute(
    name=name,
    image=json.dumps(image),
    accelerator=slice_.chip.gke,
    topology=slice_.grid,
    hosts=slice_.hosts,
    chips=min(slice_.devices, slice_.chip.per_host),
    args=json.dumps(arguments),
    claim=claim,
    account=account,
    restarts=restarts,
  )


def main(argv: list[str]) -> int:
  parser = argparse.ArgumentParser(
    description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
  )
  parser.add_argument("--name", required=True)
  parser.add_argument("--image", required=True, help="built with launch/Dockerfile")
  parser.add_argument("--topology", required=True, help="such as v5e:16x16")
  parser.add_argument("--claim", required=True, help="persistent volume claim, mounted at /shared")
  parser.add_argument("--account", default="default", help="Kubernetes service account (default: default)")
  parser.add_argument("--restarts", type=int, default=100, help="at most (default: 100)")
  parser.add_argument("--dry_run", action="store_true", help="print the JobSet and apply nothing")
  cut = argv.index("--") if "--" in argv else len(argv)
  args = parser.parse_args(argv[:cut])
  try:
    text = render(args.name, args.image, args.topology, args.claim, argv[cut + 1 :], args.account, args.restarts)
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
