"""What things cost here: each job timed beside what a user would otherwise pick, and against what the machine can do.

A `Case` is prepared once, then ours and theirs run in turn, several times each, so that a machine that drifts drifts for both. Reported
are medians with the fastest and slowest, and the share of the matrix-multiplication peak that was measured in the same run.

Shapes: B batch, T tokens, D width, V vocabulary.
"""

import dataclasses
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from inversionview_jax import tasks
from inversionview_jax.devices import parallel
from inversionview_jax.errors import one_of
from inversionview_jax.measures import held_out
from inversionview_jax.models import decoder, layers
from inversionview_jax.models.decoder import DecoderConfig
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.reading import Reader, load_reader
from inversionview_jax.sampling import exact, generation
from inversionview_jax.targets import Target, load_target
from inversionview_jax.training import decoder_objective, optimizers, target_objective
from inversionview_jax.training.update import State, make_update

_OPTIMIZER = {
  "name": "adamw", "lr": 1e-4, "adam_lr": 0.0, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.01, "clip": 1.0, "b2": 0.999
}  # fmt: skip
_STEPS = 8  # of training inside one call


@dataclasses.dataclass(frozen=True)
class Size:
  """How large the jobs are: "full" has the paper's decoder, "small" is for trying the benchmark out."""

  d_model: int
  batch: int
  target_batch: int
  capture_batch: int
  samples: int
  queries: int
  inputs: int
  scaling: tuple[int, ...]


SIZES = {
  "full": Size(256, 256, 512, 1024, 1024, 16, 102_400, (64, 256, 1024, 4096, 16_384)),
  "small": Size(32, 16, 32, 16, 32, 2, 2048, (16, 64)),
}


@dataclasses.dataclass(frozen=True)
class Side:
  """One of the two that are compared.

  Attributes:
    name: what it is.
    run: does the job once and returns when it is done.
    units: how many units one run is.
  """

  name: str
  run: Callable[[], object]
  units: float


@dataclasses.dataclass(frozen=True)
class Case:
  """A job.

  Attributes:
    key, about: "train", and what is measured.
    unit: of `Side.units`, such as "pairs".
    flops: of matrix products per unit, counted on paper; 0 where that says little.
    ours, theirs: the sides; `theirs` is empty where there is nothing to compare with, or it is not installed.
  """

  key: str
  about: str
  unit: str
  flops: float
  ours: Side
  theirs: tuple[Side, ...] = ()


def measured(case: Case, repeats: int, seconds: float = 1.0) -> dict:
  """Runs the sides of a case in turn; plain data with units per second of each."""
  sides = (case.ours, *case.theirs)
  counts, rates = [], {side.name: [] for side in sides}
  for side in sides:
    side.run()  # compiles
    counts.append(max(1, round(seconds / max(_seconds(side.run), 1e-9))))
  for _ in range(repeats):
    for side, count in zip(sides, counts, strict=True):
      start = time.perf_counter()
      for _ in range(count):
        side.run()
      rates[side.name].append(side.units * count / (time.perf_counter() - start))
  ours = float(np.median(rates[case.ours.name]))
  told = [
    {
      "name": name,
      "median": float(np.median(x)),
      "low": float(min(x)),
      "high": float(max(x)),
      "gflops": float(np.median(x)) * case.flops / 1e9,
    }
    for name, x in rates.items()
  ]
  for one in told[1:]:
    one["ours_is_faster_by"] = ours / one["median"]
  return {"case": case.key, "about": case.about, "unit": case.unit, "repeats": repeats, "sides": told}


def matmul_peak(size: int = 2048, short: bool = False) -> float:
  """float32 GFLOP/s of a square matrix product, the best of several.

  `short`: with bfloat16 factors and float32 sums, as decoders multiply where `layers.shortens` says so; 0 where it does not.
  """
  a = jnp.ones((size, size), jnp.float32)
  if short and not layers.shortens(a, quick=True):
    return 0.0
  a, multiply = (layers.shortened(a), lambda x: layers.short_dot(x, x, 0)) if short else (a, lambda x: x @ x)
  product = parallel.jit(multiply)
  return best_gflops(lambda: product(a).block_until_ready(), size)


def best_gflops(product: Callable[[], object], size: int, repeats: int = 5) -> float:
  """GFLOP/s of a product of two square matrices of this size, the best of several after a first one."""
  product()
  return 2 * size**3 / min(_seconds(product) for _ in range(repeats)) / 1e9


def _seconds(run: Callable[[], object]) -> float:
  start = time.perf_counter()
  run()
  return time.perf_counter() - start


def machine() -> dict:
  """What this ran on, and how busy it was: load over the last minute per core, before the benchmark began."""
  model = platform.processor() or platform.machine()
  try:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
      model = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), model)
  except OSError:
    pass
  devices = jax.devices()
  return {
    "processor": model,
    "cores": os.cpu_count(),
    "load_per_core": os.getloadavg()[0] / (os.cpu_count() or 1) if hasattr(os, "getloadavg") else None,
    "devices": f"{len(devices)} x {devices[0].device_kind}",
    "jax": jax.__version__,
    "python": platform.python_version(),
  }


def transformer_flops(config: TransformerConfig, tokens: int, keys: int) -> float:
  """Matrix products of one forward pass over `tokens` positions that see `keys` each (multiply and add are two)."""
  c = config
  dense = c.n_layers * (4 * c.d_model**2 + 2 * c.d_model * c.d_mlp) + c.vocab_size * c.d_model
  return tokens * (2 * dense + c.n_layers * 4 * keys * c.d_model)


class Jobs:
  """The cases, on the shipped addition target and a decoder of the size asked for (random parameters: they cost the same)."""

  def __init__(self, size: Size, rivals):
    """`rivals` is the module `bench_torch`, or None."""
    self.size, self.rivals = size, rivals
    self.task = tasks.get("addition")
    self.target: Target = load_target("addition")
    t, d = self.task.tokenizer, size.d_model
    shape = TransformerConfig(t.vocab_size, self.task.length, n_layers=2, n_heads=4, d_model=d, d_mlp=4 * d)
    self.sites = self.task.default_sites(self.target.config.n_layers, self.target.config.n_heads)
    self.decoder = DecoderConfig(shape, self.sites, self.target.config.d_model, forbidden=(t.bos_id, t.pad_id))
    rng = np.random.default_rng(0)
    self.rows = self.task.tokens(rng.integers(self.task.num_inputs, size=8192))
    self.mesh = parallel.make_mesh()
    self.texts = [t.text(row) for row in self.rows[:64]]

  def reader(self) -> Reader:
    variables = _initial(self.decoder, jax.random.key(0))
    return Reader(self.target, self.task, self.decoder, variables, "bench", self.mesh)

  def train(self) -> Case:
    """(a) Decoder training: the whole step with the target inside."""
    shape, batch = self.decoder.transformer, self.size.batch
    config = ConfigDict({
        "model": {"n_layers": 2, "n_heads": 4, "d_model": shape.d_model, "d_mlp": shape.d_mlp},
        "encoder_blocks": 6, "encoder_width": 0, "n_slots": 1, "normalize": "none", "sites": (), "pairs_per_text": 1, "bos_rate": 0.01,
        "reweight": 0.0, "noise": 0.0, "optimizer": _OPTIMIZER, "seed": 0, "average": 0.0, "eval_queries": 1, "final_queries": 1,
    })  # fmt: skip
    objective = decoder_objective.DecoderObjective(self.task, config, self.target, self.rows, self.rows[:8], self.mesh)
    run = self._training(objective, config, batch)
    length = self.task.length
    flops = 3 * transformer_flops(shape, length, length + 1) + transformer_flops(self.target.config, length, length)
    theirs = self.rivals.train(self, batch) if self.rivals else ()
    return Case(
      "train", f"decoder training, d={shape.d_model}, batch {batch}, target inside", "pairs", flops, run, theirs
    )

  def train_target(self) -> Case:
    """(d) Target training."""
    shape, batch = self.target.config, self.size.target_batch
    model = {"n_layers": shape.n_layers, "n_heads": shape.n_heads, "d_model": shape.d_model, "d_mlp": shape.d_mlp}
    config = ConfigDict({"model": model, "eval_examples": 8, "optimizer": _OPTIMIZER, "seed": 0, "average": 0.0})
    run = self._training(target_objective.TargetObjective(self.task, config, self.rows[:8], self.mesh), config, batch)
    flops = 3 * transformer_flops(shape, self.task.length, self.task.length)
    theirs = self.rivals.train_target(self, batch) if self.rivals else ()
    return Case("train_target", f"target training, d={shape.d_model}, batch {batch}", "texts", flops, run, theirs)

  def _training(self, objective, config, batch) -> Side:
    optimizer = optimizers.make_optimizer(config.optimizer, 1_000_000)

    def fresh():
      params, extra = objective.init(jax.random.key(0))
      return State(jnp.int32(0), params, optimizer.init(params), {}, extra)

    update = make_update(objective, optimizer, config, self.mesh)
    held = [parallel.replicate(parallel.jit(fresh)(), self.mesh)]
    frozen = parallel.replicate(objective.frozen, self.mesh)
    steps = [self.rows[np.arange(i * batch, (i + 1) * batch) % len(self.rows)] for i in range(_STEPS)]
    tokens = np.stack(steps).astype(np.int32)

    def run():
      held[0], losses, _ = update(held[0], frozen, parallel.shard(tokens, self.mesh, axis=1))
      losses.block_until_ready()

    return Side("inversionview_jax", run, batch * _STEPS)

  def query(self) -> Case:
    """(b) One preimage query, from text to sorted samples with distances."""
    reader, n = self.reader(), self.size.samples
    theirs = self.rivals.query(self, n, self.decoder.transformer) if self.rivals else ()
    return Case(
      "query",
      f"one query, {n:,} samples re-run and sorted",
      "queries",
      n * self._sample_flops(self.decoder),
      self._asking(reader),
      theirs,
    )

  def shipped(self) -> Case:
    """(b) The same with the shipped reader, which is smaller than the paper's decoder; beside GPT-2s of the paper's size and of its own."""
    reader, n = load_reader("addition"), self.size.samples
    own = reader.config.transformer
    theirs = ()
    if self.rivals:
      theirs = tuple(
        dataclasses.replace(side, name=f"{side.name}, d={shape.d_model}")
        for shape in (own, self.decoder.transformer)
        for side in self.rivals.query(self, n, shape)
      )
    return Case(
      "shipped",
      f"one query of the shipped reader (d={own.d_model}), {n:,} samples",
      "queries",
      n * self._sample_flops(reader.config),
      self._asking(reader),
      theirs,
    )

  def effects(self) -> Case:
    """(b) The same with the effect of z on every token, as the command line shows it."""
    reader, n = self.reader(), self.size.samples

    def run():
      return reader.preimage(self.texts[0], "a0.0", "=", num_samples=n)

    return Case(
      "effects", f"one query, {n:,} samples, with token effects", "queries", 0.0, Side("inversionview_jax", run, 1)
    )

  def queries(self) -> Case:
    """(b) Many queries."""
    reader, n, many = self.reader(), self.size.samples, self.size.queries
    asks = [(text, site, "=") for text, site in zip(self.texts[:many], self.sites * 8, strict=False)]

    def run():
      return reader.preimages(asks, temperatures=1.0, num_samples=n, effects=False, mixture="paper")

    return Case(
      "queries",
      f"{many} queries at once, {n:,} samples each",
      "queries",
      n * self._sample_flops(self.decoder),
      Side("inversionview_jax", run, len(asks)),
    )

  def _asking(self, reader: Reader) -> Side:
    settings = {"temperatures": 1.0, "num_samples": self.size.samples, "effects": False, "mixture": "paper"}
    return Side("inversionview_jax", lambda: reader.preimage(self.texts[0], "a0.0", "=", **settings), 1)

  def _sample_flops(self, decoder: DecoderConfig) -> float:
    length = self.task.length
    return transformer_flops(decoder.transformer, length - 1, length - 1 + decoder.n_slots) + transformer_flops(
      self.target.config, length, length
    )

  def capture(self) -> Case:
    """(c) Capturing every site of a batch of texts."""
    tokens = self.rows[: self.size.capture_batch]

    def run():
      out = self.target.run(tokens, self.sites)
      jax.block_until_ready(tuple(out[site] for site in self.sites))

    flops = transformer_flops(self.target.config, 1, self.task.length)
    theirs = self.rivals.capture(self, tokens) if self.rivals else ()
    return Case(
      "capture",
      f"capture of {len(self.sites)} sites, batch {len(tokens)}",
      "tokens",
      flops,
      Side("inversionview_jax", run, tokens.size),
      theirs,
    )

  def enumerate(self) -> Case:
    """(e) Exact enumeration, 8 queries at different sites."""
    reader = self.reader()
    asked, index = held_out.held_out_queries(reader, 8, every_site=False), np.arange(self.size.inputs)

    def run():
      return exact.distances(self.target, self.task, reader.sites, asked.queries, index, self.mesh)

    flops = transformer_flops(self.target.config, self.task.length, self.task.length)
    return Case(
      "enumerate",
      f"exact distances to 8 queries, {len(index):,} inputs",
      "inputs",
      flops,
      Side("inversionview_jax", run, len(index)),
    )


_initial = parallel.jit(decoder.initial, static_argnums=0)

CASES = ("train", "query", "shipped", "effects", "queries", "capture", "train_target", "enumerate")


def case(jobs: Jobs, name: str) -> Case:
  """The case called `name`; raises `InversionViewError` for one that is not."""
  if name not in CASES:
    raise one_of("benchmark", name, CASES)
  return getattr(jobs, name)()


def scaling(jobs: Jobs, repeats: int) -> list[dict]:
  """Cost against size: samples per query, sites that are captured, length of the texts that are written; seconds, medians."""
  rows, reader = [], jobs.reader()
  for n in jobs.size.scaling:
    rows.append(
      _timed(
        f"{n:,} samples of one query",
        lambda n=n: reader.preimage(jobs.texts[0], "a0.0", "=", num_samples=n, effects=False),
        repeats,
      )
    )
  tokens = jobs.rows[: jobs.size.capture_batch]
  for count in (1, 4, len(jobs.sites)):
    rows.append(
      _timed(
        f"capture of {count} sites, batch {len(tokens)}", lambda count=count: _capture(jobs, tokens, count), repeats
      )
    )
  t, n = jobs.task.tokenizer, jobs.size.samples
  for length in (jobs.task.length, 2 * jobs.task.length, 4 * jobs.task.length):
    config = dataclasses.replace(
      jobs.decoder,
      transformer=dataclasses.replace(jobs.decoder.transformer, n_ctx=length),
      forbidden=(t.bos_id, t.pad_id, t.eos_id),
    )
    rows.append(_timed(f"{n:,} texts of {length} tokens", _generation(config, n, length, t), repeats))
  return rows


def _capture(jobs, tokens, count):
  out = jobs.target.run(tokens, jobs.sites[:count])
  jax.block_until_ready(tuple(out[site] for site in jobs.sites[:count]))


def _generation(config, n, length, t):
  module = decoder.Decoder(config)
  variables = _initial(config, jax.random.key(0))
  keys = parallel.fold_in_each(jax.random.key(1), jnp.arange(n))

  def program(variables, z, keys):
    slots = module.apply(variables, z, jnp.zeros(n, jnp.int32), method="slots")
    ids = {"bos_id": t.bos_id, "eos_id": t.eos_id, "pad_id": t.pad_id}
    return generation.generate(module, variables, slots, keys, jnp.ones(n), length=length, **ids)

  compiled, z = parallel.jit(program), jnp.zeros((n, config.d_activation))
  return lambda: compiled(variables, z, keys).block_until_ready()


def _timed(name: str, run, repeats: int) -> dict:
  run()
  seconds = [_seconds(run) for _ in range(repeats)]
  return {"what": name, "seconds": float(np.median(seconds)), "low": min(seconds), "high": max(seconds)}


def simulated_devices(size: str, counts: Sequence[int] = (1, 2, 4, 8)) -> list[dict]:
  """The training and the query on simulated devices of this host, a process for each number of them.

  The devices share the cores: what this shows is the cost of dividing the work, not a speed-up.
  """
  rows = []
  for count in counts:
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={count}".strip()
    env = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "inversionview_jax.benchmarks.bench", size]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    if done.returncode:
      rows.append({"devices": count, "error": (done.stderr.strip().splitlines() or ["it said nothing"])[-1]})
    else:
      rows.append({"devices": count} | json.loads(done.stdout.strip().splitlines()[-1]))
  return rows


def _on_these_devices(size: str) -> dict:
  jobs = Jobs(SIZES[size], None)
  told = {}
  for name in ("train", "query"):
    one = measured(case(jobs, name), repeats=3)
    told[f"{name}_{one['unit']}_per_second"] = one["sides"][0]["median"]
  return told


if __name__ == "__main__":
  print(json.dumps(_on_these_devices(sys.argv[1])))
