"""`inversionview doctor`: versions, devices, caches and extras of this installation, and whether a shipped model computes what it should."""

import argparse
import configparser
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from inversionview_jax._version import __version__
from inversionview_jax.commands import configs, flags
from inversionview_jax.files import check_can_hold, write_whole
from inversionview_jax.terminal import print_text

if TYPE_CHECKING:
  from packaging.requirements import Requirement

_DESCRIPTION = """\
Look at this installation: Python and the packages with the versions that are needed, the devices that JAX finds, the caches, what each extra
unlocks and whether it is here, and whether the shipped addition model answers a sum.

  inversionview doctor
  inversionview doctor --json doctor.json

The exit code is 1 where something is broken that every command needs, else 0.
"""
_PYTHON = (3, 11)  # python_requires
# Extra -> what it is for. An extra that is not here is one of this repository's own tools.
EXTRAS = {
  "explore": "the page of `inversionview explore`",
  "plots": "figures of `inversionview evaluate` and `patch`",
  "hf": "Hugging Face folders with a tokenizer.model only",
  "gguf": "models in GGUF files",
  "tracr": "RASP programs as targets, tracr:NAME",
  "datasets": "texts in .parquet files and saved datasets",
  "interpret": "`inversionview interpret`: asking a language model",
  "plan": "`inversionview plan` for TPU slices",
  "wandb": "logs of trainings to Weights & Biases, --config.log=wandb",
  "launch": "sweeps through XManager, launch/xm_launch.py",
  "cuda": "JAX for NVIDIA GPUs",
  "tpu": "JAX for TPUs",
  "parity": "comparing with transformers' own models",
}
_TEXT, _ANSWER = "615+861=", "1"  # what the shipped model completes


def add_parser(commands: Any) -> None:
  """Adds `doctor` to the commands."""
  parser = flags.add_command(
    commands, "doctor", run, "look at this installation: versions, devices, caches, extras", _DESCRIPTION
  )
  parser.add_argument("--no-model", action="store_true", help="do not run the shipped model")
  flags.add(parser, "json")


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Prints what was found; returns 0, or 1 where something essential is broken."""
  del rest
  if args.json:
    check_can_hold(args.json)
  found: dict[str, Any] = {"format": "inversionview-doctor", "format_version": 1, "package": _package()}
  needed, extras = _requirements()
  found["packages"] = [_state(requirement) for requirement in needed]
  found["devices"] = _devices()
  found["caches"] = list(_caches())
  found["extras"] = [_extra(name, extras[name]) for name in EXTRAS if name in extras]
  found["model"] = {"ran": False} if args.no_model or found["devices"].get("error") else _model()
  found["broken"] = _broken(found)
  print_text("\n".join(_lines(found)))
  if args.json:
    write_whole(args.json, json.dumps(found, indent=1, ensure_ascii=False) + "\n")
  return 1 if found["broken"] else 0


def _package() -> dict[str, Any]:
  """Version and place of the package and of the interpreter."""
  folder = pathlib.Path(__file__).parents[1]
  return {
    "version": __version__,
    "folder": str(folder),
    "kind": "a checkout" if (folder.parent / "setup.cfg").is_file() else "installed",
    "configs": list(configs.own_configs()),
    "python": platform.python_version(),
    "interpreter": sys.executable,
    "platform": platform.platform(),
    "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
  }


def _requirements() -> "tuple[list[Requirement], dict[str, list[Requirement]]]":
  """What the package needs, and what each of its extras does: by its metadata, or by setup.cfg in a checkout that is not installed."""
  from packaging.requirements import Requirement

  setup = pathlib.Path(__file__).parents[2] / "setup.cfg"
  if setup.is_file():  # what is installed may be of an older state of it
    parser = configparser.ConfigParser()
    parser.read(setup)

    def read(text: str) -> list[Requirement]:
      return [Requirement(line) for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]

    return read(parser["options"]["install_requires"]), {
      name: read(text) for name, text in parser["options.extras_require"].items()
    }
  needed: list[Requirement] = []
  extras: dict[str, list[Requirement]] = {}
  for requirement in map(Requirement, importlib.metadata.requires("inversionview_jax") or ()):
    names = [name for name in EXTRAS if requirement.marker and requirement.marker.evaluate({"extra": name})]
    if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
      needed.append(requirement)
      continue
    for name in names:
      extras.setdefault(name, []).append(requirement)
  return needed, extras


def _state(requirement: "Requirement") -> dict[str, Any]:
  """Whether a required package is installed, in which version, and whether that is in the range that is needed."""
  try:
    version = importlib.metadata.version(requirement.name)
  except importlib.metadata.PackageNotFoundError:
    version = None
  return {
    "name": requirement.name,
    "needs": str(requirement.specifier),
    "version": version,
    "fits": version is not None and requirement.specifier.contains(version, prereleases=True),
  }


def _extra(name: str, requirements: "list[Requirement]") -> dict[str, Any]:
  """An extra, what it is for and which of its packages are missing. Of an extra of JAX the plugin counts."""
  plugins = {"tpu": ("libtpu",), "plan": ("libtpu",), "cuda": ("jax-cuda13-plugin", "jax-cuda12-plugin")}
  if name in plugins:
    missing = [] if any(map(_is_installed, plugins[name])) else [plugins[name][0]]
  else:
    missing = [requirement.name for requirement in requirements if not _is_installed(requirement.name)]
  return {"name": name, "unlocks": EXTRAS[name], "missing": missing}


def _is_installed(distribution: str) -> bool:
  try:
    importlib.metadata.version(distribution)
  except importlib.metadata.PackageNotFoundError:
    return False
  return True


def _devices() -> dict[str, Any]:
  """The devices that JAX finds here, or why it finds none."""
  try:
    import jax

    devices = jax.devices()
    kinds = {kind: sum(device.device_kind == kind for device in devices) for kind in {d.device_kind for d in devices}}
    found: dict[str, Any] = {
      "backend": jax.default_backend(),
      "kinds": kinds,
      "JAX_PLATFORMS": os.environ.get("JAX_PLATFORMS", ""),
    }
    from inversionview_jax.devices import cpu, parallel

    found["bfloat16_tiles"] = jax.default_backend() == "cpu" and cpu.has_amx()
    parallel.use_compilation_cache()
    found["compilation_cache"] = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
    return found
  except Exception as error:  # whatever is wrong with an installation is what is looked for here
    return {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _caches() -> Iterator[dict[str, Any]]:
  """The folders that are kept between runs, with their size in bytes; None where there is no such folder yet."""
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR", os.path.join(home, "inversionview_jax", "xla"))
  hub = os.environ.get("HF_HUB_CACHE") or os.path.join(
    os.environ.get("HF_HOME") or os.path.join(home, "huggingface"), "hub"
  )
  data = os.environ.get("TFDS_DATA_DIR") or os.path.expanduser("~/tensorflow_datasets")
  for what, path, variable in (
    ("compiled programs", compiled, "JAX_COMPILATION_CACHE_DIR"),
    ("models of the Hugging Face Hub", hub, "HF_HOME"),
    ("inputs of tasks (TFDS)", data, "TFDS_DATA_DIR"),
  ):
    if path:
      exists = os.path.isdir(path)
      size = (
        sum(f.stat().st_size for f in pathlib.Path(path).rglob("*") if f.is_file() and not f.is_symlink())
        if exists
        else None
      )
      near = next(str(p) for p in (pathlib.Path(path), *pathlib.Path(path).absolute().parents) if p.exists())
      yield {"what": what, "folder": path, "bytes": size, "writable": os.access(near, os.W_OK), "variable": variable}


def _model() -> dict[str, Any]:
  """Whether the shipped addition model gives the first digit of a sum."""
  try:
    from inversionview_jax.targets import load_target

    target = load_target("addition")
    run = target.run([_TEXT])
    answer = target.require_tokenizer().text([int(run.logits[0, -1].argmax())])
    return {"ran": True, "text": _TEXT, "answer": answer, "right": answer == _ANSWER}
  except Exception as error:  # as above
    return {"ran": True, "right": False, "error": f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"}


def _broken(found: dict[str, Any]) -> list[str]:
  """What every command needs and does not work, in words."""
  broken = [
    f"{p['name']} is not installed: pip install '{p['name']}{p['needs']}'"
    for p in found["packages"]
    if p["version"] is None
  ]
  if sys.version_info[:2] < _PYTHON:
    broken.append(f"Python {found['package']['python']} is too old: 3.11 or newer is needed")
  if error := found["devices"].get("error"):
    broken.append(f"JAX finds no device: {error}")
  if found["model"].get("ran") and not found["model"]["right"]:
    model = found["model"]
    broken.append(
      f"the shipped addition model does not work: {model.get('error') or 'its answer to ' + _TEXT + ' is ' + model['answer']}"
    )
  return broken


def _lines(found: dict[str, Any]) -> Iterator[str]:
  """What is printed."""
  package, devices, model = found["package"], found["devices"], found["model"]
  yield f"inversionview_jax {package['version']}, {package['kind']}, {package['folder']}"
  yield (
    f"configs           {len(package['configs'])}, found by name: {', '.join(package['configs'][:4])} ..."
    if package["configs"]
    else "configs           none found"
  )
  yield f"Python            {package['python']}, {package['interpreter']}"
  yield f"machine           {package['platform']}, {package['cores']} cores"
  if "error" not in devices:
    kinds = ", ".join(f"{count} x {kind}" for kind, count in devices["kinds"].items())
    tiles = ", bfloat16 matmuls on tiles" if devices["bfloat16_tiles"] else ""
    yield f"devices           {kinds} ({devices['backend']}{tiles})"
  if model.get("right"):
    yield f"shipped model     {model['text']} is completed by {model['answer']}: right"
  yield "\npackages"
  for p in found["packages"]:
    note = "" if p["fits"] else "missing" if p["version"] is None else "not tested with this version"
    yield f"  {p['name']:22} {p['version'] or '-':12} needs {p['needs'] or 'any':18} {note}".rstrip()
  yield "\ncaches"
  for c in found["caches"]:
    size = "empty" if c["bytes"] is None else f"{c['bytes'] / 1e6:,.0f} MB"
    yield f"  {c['what']:30} {size:>10}  {c['folder']} ({c['variable']}){'' if c['writable'] else ' NOT WRITABLE'}"
  yield "\nextras: pip install 'inversionview_jax[NAME]', in a checkout pip install --editable '.[NAME]'"
  for e in found["extras"]:
    yield f"  {e['name']:10} {'no' if e['missing'] else 'yes':4} {e['unlocks']}" + (
      f" (lacks {', '.join(e['missing'])})" if e["missing"] else ""
    )
  yield ""
  yield from (f"BROKEN: {line}" for line in found["broken"])
  if not found["broken"]:
    yield "all that every command needs is here"
