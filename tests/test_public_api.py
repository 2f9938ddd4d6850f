"""What `import inversionview_jax as iv` gives: complete, typed, and light until it is used."""

import ast
import importlib
import inspect
import pathlib
import subprocess
import sys

import pytest

import inversionview_jax as iv

INIT = pathlib.Path(iv.__file__)
# Folders whose `__init__` hands on public names.
FOLDERS = sorted(
  path.parent.name for path in INIT.parent.glob("*/__init__.py") if "__all__" in path.read_text() and path.parent.name
)


def test_every_name_is_there():
  for name in iv.__all__:
    assert getattr(iv, name) is not None, name
  assert set(iv.__all__) <= set(dir(iv))
  with pytest.raises(AttributeError, match="load_reder"):
    iv.load_reder  # noqa: B018


def test_type_checkers_see_what_is_imported_later():
  """The names below TYPE_CHECKING are those of `_LAZY`, from the same modules."""
  (block,) = (node for node in ast.parse(INIT.read_text()).body if isinstance(node, ast.If))
  seen = {alias.name: node.module for node in block.body for alias in node.names}
  assert seen == {name: f"inversionview_jax.{module}" for name, module in iv._LAZY.items()}
  assert (INIT.parent / "py.typed").exists()


def test_importing_it_and_listing_commands_needs_no_jax():
  code = "import sys, inversionview_jax, inversionview_jax.cli; assert not {'jax', 'flax', 'numpy.testing'} & set(sys.modules)"
  subprocess.run([sys.executable, "-c", code], check=True)


def public_callables():
  owners = [(iv, iv.__all__)]
  owners += [(module := importlib.import_module(f"inversionview_jax.{folder}"), module.__all__) for folder in FOLDERS]
  found = {}
  for owner, names in owners:
    for name in names:
      thing = getattr(owner, name)
      if inspect.isfunction(thing):
        found[f"{thing.__module__}.{thing.__qualname__}"] = thing
      elif inspect.isclass(thing) and thing.__module__.startswith("inversionview_jax"):
        for key, member in vars(thing).items():
          member = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
          member = member.fget if isinstance(member, property) else member
          if inspect.isfunction(member) and member.__module__ == thing.__module__ and not key.startswith("_"):
            found[f"{thing.__module__}.{thing.__name__}.{key}"] = member
  return found


CALLABLES = public_callables()


@pytest.mark.parametrize("name", sorted(CALLABLES))
def test_public_signatures_are_typed_and_documented(name):
  function = CALLABLES[name]
  signature = inspect.signature(function)
  untyped = [
    parameter.name
    for parameter in signature.parameters.values()
    if parameter.annotation is parameter.empty and parameter.name not in ("self", "cls")
  ]
  assert not untyped, f"{name} leaves {', '.join(untyped)} without a type"
  assert signature.return_annotation is not signature.empty, f"{name} has no return type"
