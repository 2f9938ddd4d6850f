"""What the tests share: eight simulated devices, a compilation cache of their own, a small target and its decoder."""

import os
import pathlib

# Before anything imports JAX, and for the processes that tests start, too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
_EIGHT = "--xla_force_host_platform_device_count=8"
if _EIGHT not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_EIGHT}".strip()

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from inversionview_jax import tasks
from inversionview_jax.devices import parallel
from inversionview_jax.models import decoder
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.models.transformer import Transformer, TransformerConfig
from inversionview_jax.targets import Target, save_target
from inversionview_jax.training import decoder_objective

TASK = tasks.get("addition")
SHAPE = {"vocab_size": 15, "n_ctx": 14, "n_layers": 2, "n_heads": 2, "d_model": 16, "d_mlp": 32}
SITES = ("x0.pre", "a0.0", "a0.1", "x0.mid", "a1.1", "x1.post")


# Of XLA's CPU backend: without MLIR fusion emitters and in one piece, a program compiles in half the time.
_QUICK_OPTIONS = {"xla_cpu_use_fusion_emitters": "False", "xla_cpu_parallel_codegen_split_count": "1"}


@pytest.fixture(scope="session")
def known_quick_options():
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


@pytest.fixture(scope="module")
def quick_to_compile(known_quick_options):
  """For modules that run large programs on next to nothing: compiles without optimizing, in a sixth of the time."""
  from jax._src import compiler  # no public way to give options to every program of a process, and only to some

  patch = pytest.MonkeyPatch()
  options = getattr(compiler, "get_compile_options", None)
  if options is not None:

    def quick_options(*args, env_options_overrides=None, **kwargs):
      return options(*args, env_options_overrides=known_quick_options | (env_options_overrides or {}), **kwargs)

    patch.setattr(compiler, "get_compile_options", quick_options)
  before = jax.config.read("jax_disable_most_optimizations")
  jax.config.update("jax_disable_most_optimizations", True)
  yield
  jax.config.update("jax_disable_most_optimizations", before)
  patch.undo()


@pytest.fixture(scope="session")
def random_variables():
  """A function (spread, seed, module, inputs) -> variables large enough for every one to matter, biases included."""

  def make(spread, seed, module, *inputs):
    rng = np.random.default_rng(seed)

    def random(path, leaf):
      return np.float32((path[-1].key == "scale") + spread * rng.normal(size=leaf.shape))

    return jax.tree_util.tree_map_with_path(random, jax.eval_shape(module.init, jax.random.key(0), *inputs))

  return make


@pytest.fixture(scope="session")
def make_target(random_variables):
  """A function (seed, convention, tokenizer) -> a small random target of the addition task."""
  config = TransformerConfig(**SHAPE, tied=False)

  def make(seed=0, convention="raw", tokenizer=TASK.tokenizer):
    params = random_variables(0.3, seed, Transformer(config), jnp.zeros((1, 1), jnp.int32))["params"]
    return Target.from_raw(params, config, tokenizer, convention, name=f"random-{seed}", task="addition")

  return make


@pytest.fixture(scope="session")
def small_target(make_target):
  return make_target()


@pytest.fixture(scope="session")
def small_decoder(small_target, random_variables):
  """(config, variables) of a random decoder for `small_target` that writes texts of all lengths."""
  t = TASK.tokenizer
  config = DecoderConfig(
    TransformerConfig(**SHAPE),
    SITES,
    small_target.config.d_model,
    encoder_blocks=1,
    encoder_width=20,
    n_slots=2,
    normalize="standard",
    forbidden=(t.bos_id, t.pad_id),
  )
  blank = jnp.zeros((1, 1), jnp.int32), jnp.zeros((1, config.d_activation)), jnp.zeros(1, jnp.int32)
  params = random_variables(0.3, 1, Decoder(config), *blank)["params"]
  rng = np.random.default_rng(1)
  activations, site = rng.normal(0.5, 2.0, size=(600, config.d_activation)), np.arange(600) % len(SITES)
  stats = {"encoder": decoder.statistics(activations, site, len(SITES), "standard")}
  return config, jax.tree.map(jnp.asarray, {"params": params, "stats": stats})


@pytest.fixture(scope="session")
def save_small(make_target, small_decoder):
  """A function (folder) that writes `small_target` and `small_decoder` there, as training would."""

  def save(folder):
    target = make_target()
    save_target(folder / "target", target.params, target.config, TASK.tokenizer, target.name, target.task)
    decoder_objective.save_decoder(folder / "decoder", small_decoder[1], small_decoder[0], target, TASK)
    return folder

  return save


@pytest.fixture(scope="session")
def meshes():
  """A function (n) -> the mesh of the first n devices."""
  return lambda n: parallel.make_mesh(devices=jax.devices()[:n])
