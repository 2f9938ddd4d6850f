"""How programs of the tests are compiled: without optimizing, in a sixth of the time, or with XLA's own options, as users have them."""

import contextlib
import functools

import jax
import pytest
from jax._src import compiler

# Of XLA's CPU backend: without MLIR fusion emitters and in one piece, a program compiles in half the time. There is no public way to give
# options to all programs of a process, and only for a while.
_QUICK_OPTIONS = {"xla_cpu_use_fusion_emitters": "False", "xla_cpu_parallel_codegen_split_count": "1"}
_GET = "get_compile_options"
_get_default = getattr(compiler, _GET, None)


@functools.cache
def _known_options() -> dict[str, str]:
  """Those of _QUICK_OPTIONS that this XLA has: it refuses to compile with one that it does not know."""

  def known(option):
    try:
      jax.jit(lambda x: x + 1).lower(0.0).compile(compiler_options=option)
    except jax.errors.JaxRuntimeError as error:
      if "No such compile option" not in str(error):
        raise
      return False
    return True

  return {name: value for name, value in _QUICK_OPTIONS.items() if known({name: value})}


def flags(devices: int = 1) -> str:
  """XLA_FLAGS of a process that simulates so many devices and compiles quickly."""
  quick = (f"--{name}={value.lower()}" for name, value in _known_options().items())
  return " ".join((f"--xla_force_host_platform_device_count={devices}", *quick))


def _get_quick(*args, env_options_overrides=None, **kwargs):
  return _get_default(*args, env_options_overrides=_known_options() | (env_options_overrides or {}), **kwargs)


_kept = {"quick": True}  # whether programs that were compiled quickly may be in JAX's caches


def keep_quick() -> None:
  """Says that what is compiled from here on is compiled quickly, after a while in which it was not."""
  _kept["quick"] = True


@contextlib.contextmanager
def quick(on: bool = True):
  """What is compiled inside is compiled quickly; or not, and then nothing is used that was compiled quickly before."""
  _known_options()
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", on)
  if on:
    keep_quick()
  elif _kept["quick"]:  # once for modules that follow each other: it takes seconds, and all is traced again
    jax.clear_caches()
    _kept["quick"] = False
  with pytest.MonkeyPatch.context() as patch:
    if _get_default is not None:
      patch.setattr(compiler, _GET, _get_quick if on else _get_default)
    yield
  jax.config.update("jax_disable_most_optimizations", before)
