"""What the tests share: eight simulated devices, a compilation cache of their own, a small target and its decoder."""

import fcntl
import gc
import os
import pathlib
import sys

if sys.dont_write_bytecode:
  # Where Python may write no bytecode, pip has written none either, and every process that a test starts would compile JAX's sources anew, for
  # seconds. It goes into a folder of the tests' own.
  sys.dont_write_bytecode = False
  sys.pycache_prefix = str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "bytecode")
  os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
  os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

# Before anything imports JAX, and for the processes that tests start, too.
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "xla"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# No test asks the Hugging Face Hub for anything, or reads this machine's cache of it.
os.environ["HF_ENDPOINT"] = "http://127.0.0.1:9"
os.environ["HF_HOME"] = str(pathlib.Path(__file__).parent.parent / ".pytest_cache" / "huggingface")
_EIGHT = "--xla_force_host_platform_device_count=8"
if _EIGHT not in os.environ.get("XLA_FLAGS", ""):
  os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_EIGHT}".strip()

import compilation
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import small_models

from inversionview_jax import cli, reading, targets, tasks
from inversionview_jax.devices import parallel
from inversionview_jax.models import decoder
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.models.transformer import Transformer, TransformerConfig
from inversionview_jax.targets import Target, for_task, load_target, save_target
from inversionview_jax.training import decoder_objective

gc.set_threshold(50_000, 20, 50)  # a tenth of the time went into looking through the many objects that tracing makes

TASK = tasks.get("addition")
SHAPE = {"vocab_size": 15, "n_ctx": 14, "n_layers": 2, "n_heads": 2, "d_model": 16, "d_mlp": 32}
SITES = ("x0.pre", "a0.0", "a0.1", "x0.mid", "a1.1", "x1.post")


@pytest.fixture(scope="session", autouse=True)
def quick_to_compile():
  """Programs are compiled without optimizing, in a sixth of the time, in the processes that tests start, too."""
  with compilation.quick():
    yield


@pytest.fixture(scope="module", autouse=True)
def _optimized(request, quick_to_compile):
  """Modules with the mark `optimized` have XLA's own options: those whose subject is what XLA makes of a program."""
  if request.node.get_closest_marker("optimized"):
    with compilation.quick(False):
      yield
  else:
    compilation.keep_quick()
    yield


def pytest_collection_modifyitems(items):
  """Modules with the mark `optimized` come last: before the first of them, all that was compiled is forgotten."""
  items.sort(key=lambda item: item.get_closest_marker("optimized") is not None)


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


def _made_once(tmp_path_factory, name, make):
  """The folder that `make(folder)` writes, once for all processes of a run of the tests."""
  base = tmp_path_factory.getbasetemp()
  base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
  folder, done = base / name, base / f"{name}.done"
  with open(base / f"{name}.lock", "w", encoding="utf-8") as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not done.exists():
      make(folder)
      done.touch()
  return folder


@pytest.fixture(scope="session")
def ioi_folder(tmp_path_factory):
  """The folder of a GPT-2 of three layers with the words of IOI."""
  return _made_once(tmp_path_factory, "ioi-gpt2", lambda folder: small_models.gpt2_folder(folder, layers=3))


@pytest.fixture(scope="session")
def ioi_target(ioi_folder):
  return load_target(ioi_folder)


@pytest.fixture(scope="session")
def ioi_task(ioi_target):
  return tasks.get("ioi", ioi_target.tokenizer)


@pytest.fixture(scope="session")
def ioi_workdir(ioi_folder, tmp_path_factory):
  """A reader of the first of its layers, trained for four steps by the command line."""

  def train(workdir):
    assert cli.main([*small_models.TRAIN_IOI, "--target", str(ioi_folder), "--workdir", str(workdir)]) == 0

  return _made_once(tmp_path_factory, "ioi-reader", train)


_LOADED = {}  # what is in a folder, or the name of a shipped one, and the settings -> what was loaded


@pytest.fixture
def loaded_once(monkeypatch):
  """Commands are given the target or reader that was loaded from the same files before, with the programs that it has compiled."""

  def once(load):
    def from_files(name, *args, **kwargs):
      if not isinstance(name, str | os.PathLike):
        return load(name, *args, **kwargs)
      folder = pathlib.Path(name)
      inside = sorted(folder.rglob("*")) if os.path.isdir(folder) else [folder]
      paths = [path for path in inside if os.path.isfile(path)]
      files = tuple((str(path.relative_to(folder)), path.read_bytes()) for path in paths)
      patched = tuple(getattr(type(TASK), attribute) for attribute in ("moves", "log_prior", "split"))
      key = load.__name__, folder.name if files else str(name), files, repr((args, kwargs)), patched
      if key not in _LOADED:
        _LOADED[key] = load(name, *args, **kwargs)
      return _LOADED[key]

    return from_files

  for module, name in ((targets, "load_target"), (for_task, "load_target"), (reading, "load_reader")):
    monkeypatch.setattr(module, name, once(getattr(module, name)))


@pytest.fixture(scope="session")
def meshes():
  """A function (n) -> the mesh of the first n devices."""
  return lambda n: parallel.make_mesh(devices=jax.devices()[:n])
