"""`launch/check_device.sh` on a bare machine: a Python 3.12 with JAX 0.11 and the few packages that it needs, from the checkout."""

import json
import os
import pathlib
import shutil
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parent.parent.parent
PACKAGES = (
  "jax==0.11.2",
  "jaxlib==0.11.2",
  "flax",
  "optax",
  "orbax-checkpoint",
  "safetensors",
  "numpy",
  "rich",
  "absl-py",
  "ml-collections",
)
ABSENT = (
  "tensorflow_datasets",
  "grain",
  "array_record",
  "tensorboardX",
  "tokenizers",
  "streamlit",
  "matplotlib",
  "transformers",
  "torch",
)


def python312():
  found = [*pathlib.Path.home().glob(".pyenv/versions/3.12.*/bin/python"), shutil.which("python3.12")]
  return next((str(path) for path in found if path), None)


@pytest.fixture(scope="module")
def bare(tmp_path_factory):
  """The interpreter of an environment with those packages only."""
  python = python312()
  if python is None:
    pytest.skip("there is no Python 3.12 here (pyenv's versions and PATH were searched)")
  folder = tmp_path_factory.mktemp("bare") / "venv"
  subprocess.run([python, "-m", "venv", folder], check=True)
  made = subprocess.run(
    [folder / "bin" / "pip", "install", "--quiet", *PACKAGES], capture_output=True, text=True, check=False
  )
  if made.returncode:
    pytest.skip(f"pip cannot install JAX 0.11.2 here: {made.stderr.strip().splitlines()[-1]}")
  return folder / "bin" / "python"


def run(python, *arguments):
  """Runs the script as on a machine of its own: no settings of these tests, not installed."""
  clean = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "XLA_", "PYTHON"))}
  command = ["bash", str(ROOT / "launch" / "check_device.sh"), *map(str, arguments)]
  return subprocess.run(command, env=clean | {"PYTHON": str(python)}, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_bare_machine_is_enough(bare, tmp_path):
  code = f"import importlib.util; assert not [n for n in {ABSENT!r} if importlib.util.find_spec(n)]"
  subprocess.run([bare, "-c", code], check=True)
  done = run(bare, "--small", "--out", tmp_path / "out")
  assert done.returncode == 0, done.stdout + done.stderr
  data = json.loads((tmp_path / "out" / "device.json").read_text())
  assert data["complete"] and data["red"] == 0 and data["seconds"] < 480
  assert data["parts"]["environment"]["values"]["versions"]["jax"] == "0.11.2"
  status = {name: part["status"] for name, part in data["parts"].items()}
  assert status.pop("torch") == "left out" and set(status.values()) == {"done"}
  for part in data["parts"].values():
    assert not [row for row in part.get("rows", ()) if "error" in row]


def test_what_a_machine_lacks_is_named(tmp_path):
  """An interpreter without any package, as on a machine where nothing was installed."""
  python = tmp_path / "python"
  python.write_text(f'#!/bin/sh\nexec {os.path.realpath(sys.executable)} -S "$@"\n')
  python.chmod(0o755)
  done = run(python, "--small", "--out", tmp_path / "out")
  assert done.returncode == 2 and "pip install jax flax optax" in done.stderr, done.stderr
  assert not (tmp_path / "out").exists()
