"""Prints what the package and some of its extras need, a requirement on each line: python launch/requirements.py setup.cfg [EXTRA,EXTRA]

With them installed first, a container has its libraries in a layer that does not change with the package. Needs Python alone.
"""

import configparser
import sys


def requirements(setup: str, extras: str = "") -> list[str]:
  """The requirements of a setup.cfg.

  Args:
    setup: its path.
    extras: names of extras with commas between them; "": none.

  Raises:
    SystemExit: an extra that is not there; names those that are.
  """
  parser = configparser.ConfigParser()
  parser.read(setup)
  known = parser["options.extras_require"]
  names = [name for name in extras.split(",") if name]
  if unknown := [name for name in names if name not in known]:
    sys.exit(f"requirements.py: no extra {unknown[0]!r} in {setup}; there are {', '.join(known)}")
  blocks = [parser["options"]["install_requires"], *(known[name] for name in names)]
  lines = [line.strip() for block in blocks for line in block.splitlines()]
  return [line for line in lines if line and not line.startswith("#")]


if __name__ == "__main__":
  print("\n".join(requirements(*sys.argv[1:3])))
