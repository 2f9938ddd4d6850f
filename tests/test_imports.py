"""Imports go down only: each folder may use those below it, and nothing goes round in a circle."""

import ast
import functools
import pathlib
import subprocess
import sys

import pytest

PACKAGE = pathlib.Path(__file__).parent.parent / "inversionview_jax"
# From the bottom to the top; places on one line do not import each other.
ORDER = (
  ("_version", "errors", "terminal"),
  ("values", "locks"),
  ("bounds", "config_keys"),
  ("files", "progress", "sites", "distance", "tables", "preemption", "config_blocks", "config_schema"),
  ("tasks",),
  ("devices",),
  ("models",),
  ("pretrained",),
  ("targets",),
  ("sampling",),
  ("preimage",),
  ("training",),
  ("reading",),
  ("measures",),
  ("causal",),
  ("show", "interpret"),
  ("studies",),
  ("planning",),
  ("benchmarks",),
  ("commands",),
  ("cli",),
)
RANK = {name: rank for rank, names in enumerate(ORDER) for name in names}
# The package's front door hands on names from everywhere, most of them when they are first used.
FRONT_DOOR = "__init__"
# What may be read on a machine without JAX: a saved preimage, and pages made of it.
WITHOUT_JAX = ("preimage", "tasks", "show/report.py", "show/circuit_picture")


def modules():
  return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def nodes(path: str, typing_only: bool):
  """The syntax tree of a module, without what only type checkers import unless `typing_only` includes it."""
  pending = [ast.parse((PACKAGE / path).read_text())]
  while pending:
    node = pending.pop()
    if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING") and not typing_only:
      pending += node.orelse
      continue
    yield node
    pending += ast.iter_child_nodes(node)


@functools.cache
def imported(path: str, typing_only: bool = True) -> frozenset[str]:
  """Modules of the package that a module imports anywhere, inside of functions too, as paths."""
  found = set()
  for node in nodes(path, typing_only):
    names = []
    if isinstance(node, ast.ImportFrom):
      assert node.level == 0, f"{path}:{node.lineno} imports relatively"
      names = [f"{node.module}.{alias.name}" for alias in node.names] if node.module else []
    elif isinstance(node, ast.Import):
      names = [alias.name for alias in node.names]
    for name in names:
      if name.split(".")[0] == PACKAGE.name:
        found.add(module_of(name.split(".")[1:]))
  return frozenset(found - {path})


def module_of(parts: list[str]) -> str:
  """The longest part of a dotted name that is a module."""
  for length in range(len(parts), 0, -1):
    stem = "/".join(parts[:length])
    for candidate in (f"{stem}.py", f"{stem}/__init__.py"):
      if (PACKAGE / candidate).is_file():
        return candidate
  return "__init__.py"


def place_of(path: str) -> str:
  return path.split("/")[0].removesuffix(".py")


@pytest.mark.parametrize("path", modules())
def test_imports_go_down_only(path):
  place = place_of(path)
  if place == FRONT_DOOR:
    return
  for other in imported(path):
    theirs = place_of(other)
    assert theirs != FRONT_DOOR or other == "__init__.py", other
    if theirs == FRONT_DOOR:
      raise AssertionError(f"{path} imports from the package's front door: name the module instead")
    assert theirs == place or RANK[theirs] < RANK[place], f"{path} imports {other}, which lies above or beside it"


def test_no_module_imports_itself_by_way_of_others():
  done, trail = set(), []

  def visit(path):
    assert path not in trail, " -> ".join([*trail[trail.index(path) :], path])
    if path in done:
      return
    trail.append(path)
    for other in sorted(imported(path, typing_only=False)):
      visit(other)
    trail.pop()
    done.add(path)

  for path in modules():
    if path != "__init__.py":
      visit(path)


def test_every_folder_has_its_place():
  places = {place_of(path) for path in modules()} - {FRONT_DOOR}
  assert places == set(RANK)


@pytest.mark.parametrize("where", WITHOUT_JAX)
def test_what_shows_saved_preimages_needs_no_jax(where):
  start = [path for path in modules() if path.startswith(where)]
  assert start
  pending, seen = list(start), set()
  while pending:
    path = pending.pop()
    if path not in seen:
      seen.add(path)
      pending += imported(path, typing_only=False)
  for path in sorted(seen):
    for node in nodes(path, typing_only=False):
      names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
      names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
      assert not {"jax", "flax", "optax", "orbax"} & {name.split(".")[0] for name in names}, path


def test_a_saved_preimage_is_read_where_jax_is_missing():
  code = (
    "import sys\n"
    "for name in ('jax', 'flax', 'optax'): sys.modules[name] = None\n"
    "from inversionview_jax import Preimage\n"
    "from inversionview_jax.preimage import render\n"
    "from inversionview_jax.show import report\n"
  )
  subprocess.run([sys.executable, "-c", code], check=True, cwd=PACKAGE.parent)
