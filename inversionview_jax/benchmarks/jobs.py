"""The jobs that are timed: training, queries, Monte Carlo, capture and exact enumeration on the addition task."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from inversionview_jax import tasks
from inversionview_jax.benchmarks.timing import Case, Side, transformer_flops
from inversionview_jax.devices import parallel, program_cost
from inversionview_jax.measures import held_out
from inversionview_jax.models import decoder
from inversionview_jax.models.decoder import DecoderConfig
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.reading import Reader, load_reader, monte_carlo
from inversionview_jax.sampling import exact
from inversionview_jax.targets import Target, load_target
from inversionview_jax.training import decoder_objective, optimizers, target_objective
from inversionview_jax.training.update import Objective, State, make_update

_OPTIMIZER = {
  "name": "adamw", "lr": 1e-4, "adam_lr": 0.0, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.01, "clip": 1.0, "b2": 0.999
}  # fmt: skip
_STEPS = 8  # of training inside one call


@dataclasses.dataclass(frozen=True)
class Size:
  """How large the jobs are.

  Attributes:
    d_model: width of the decoder.
    batch, target_batch, capture_batch: texts of a batch when a decoder is trained, a target is trained, and sites are captured.
    samples: of each query.
    queries: of the job with many.
    preimages: by Monte Carlo, each with `samples` particles.
    inputs: that are enumerated.
    scaling: numbers of samples for `bench.scaling`.
  """

  d_model: int
  batch: int
  target_batch: int
  capture_batch: int
  samples: int
  queries: int
  preimages: int
  inputs: int
  scaling: tuple[int, ...]


# "full" has the paper's decoder, "small" is for trying the benchmark out.
SIZES = {
  "full": Size(256, 256, 512, 1024, 1024, 16, 4, 102_400, (64, 256, 1024, 4096, 16_384)),
  "small": Size(32, 16, 32, 16, 32, 2, 2, 2048, (16, 64)),
}


class Jobs:
  """The jobs on the shipped addition target, with a decoder of random parameters, which cost as much as trained ones.

  Args:
    size: how large they are.
    rivals: the module `bench_torch` (what this package is compared with), or None.
    dtype: `compute.dtype` of decoder training, "" for the default.
  """

  def __init__(self, size: Size, rivals: Any = None, dtype: str = ""):
    self.size, self.rivals, self._dtype = size, rivals, dtype
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
    self._objectives: dict[str, tuple[decoder_objective.DecoderObjective, ConfigDict]] = {}

  def reader(self) -> Reader:
    """A reader with the random decoder."""
    variables = random_variables(self.decoder, jax.random.key(0))
    return Reader(self.target, self.task, self.decoder, variables, "bench", self.mesh)

  def train(self) -> Case:
    """Decoder training: the whole step with the target inside."""
    shape, batch, length = self.decoder.transformer, self.size.batch, self.task.length
    program = self.decoder_training(batch, self._dtype)
    flops = 3 * transformer_flops(shape, length, length + 1) + transformer_flops(self.target.config, length, length)
    theirs = self.rivals.train(self, batch) if self.rivals else ()
    about = f"decoder training, d={shape.d_model}, batch {batch}{self._dtype and f', {self._dtype}'}, target inside"
    return Case("train", about, "pairs", flops, program.side, theirs)

  def train_target(self) -> Case:
    """Target training."""
    shape, batch, length = self.target.config, self.size.target_batch, self.task.length
    flops = 3 * transformer_flops(shape, length, length)
    theirs = self.rivals.train_target(self, batch) if self.rivals else ()
    about = f"target training, d={shape.d_model}, batch {batch}"
    return Case("train_target", about, "texts", flops, self.target_training(batch).side, theirs)

  def decoder_training(self, batch: int, dtype: str = "") -> "TrainingProgram":
    """The training of a new decoder, AdamW.

    Args:
      batch: texts of a step.
      dtype: `compute.dtype`, "" for the default.
    """
    return TrainingProgram(*self._decoder_objective(dtype), self.rows, batch, self.mesh)

  def _decoder_objective(self, dtype: str) -> tuple[decoder_objective.DecoderObjective, ConfigDict]:
    """The objective and its config, made once for each dtype: it runs the target on thousands of texts."""
    if dtype not in self._objectives:
      shape = self.decoder.transformer
      config = ConfigDict({
          "model": {"n_layers": 2, "n_heads": 4, "d_model": shape.d_model, "d_mlp": shape.d_mlp},
          "encoder_blocks": 6, "encoder_width": 0, "n_slots": 1, "normalize": "none", "sites": (), "pairs_per_text": 1, "bos_rate": 0.01,
          "reweight": 0.0, "noise": 0.0, "optimizer": _OPTIMIZER, "seed": 0, "average": 0.0, "eval_queries": 1, "final_queries": 1,
          "compute": {"dtype": dtype},
      })  # fmt: skip
      made = decoder_objective.DecoderObjective(self.task, config, self.target, self.rows, self.rows[:8], self.mesh)
      self._objectives[dtype] = made, config
    return self._objectives[dtype]

  def target_training(self, batch: int) -> "TrainingProgram":
    """The training of a new target of this one's shape, AdamW, `batch` texts a step."""
    shape = self.target.config
    model = {"n_layers": shape.n_layers, "n_heads": shape.n_heads, "d_model": shape.d_model, "d_mlp": shape.d_mlp}
    config = ConfigDict({"model": model, "eval_examples": 8, "optimizer": _OPTIMIZER, "seed": 0, "average": 0.0})
    objective = target_objective.TargetObjective(self.task, config, self.rows[:8], self.mesh)
    return TrainingProgram(objective, config, self.rows, batch, self.mesh)

  def query(self) -> Case:
    """One preimage query, from text to sorted samples with distances."""
    reader, n = self.reader(), self.size.samples
    theirs = self.rivals.query(self, n, self.decoder.transformer) if self.rivals else ()
    return Case(
      "query",
      f"one query, {n:,} samples re-run and sorted",
      "queries",
      n * self._sample_flops(self.decoder),
      self._one_query(reader),
      theirs,
    )

  def shipped(self) -> Case:
    """One query of the shipped reader, which is smaller than the paper's decoder; beside GPT-2s of the paper's size and of its own."""
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
      self._one_query(reader),
      theirs,
    )

  def effects(self) -> Case:
    """One query with the effect of z on every token, as the command line shows it."""
    reader, n = self.reader(), self.size.samples

    def run():
      return reader.preimage(self.texts[0], "a0.0", "=", num_samples=n)

    return Case(
      "effects", f"one query, {n:,} samples, with token effects", "queries", 0.0, Side("inversionview_jax", run, 1)
    )

  def queries(self) -> Case:
    """Many queries at once."""
    reader, n, many = self.reader(), self.size.samples, self.size.queries
    requests = [(text, site, "=") for text, site in zip(self.texts[:many], self.sites * 8, strict=False)]

    def run():
      return reader.preimages(requests, temperatures=1.0, num_samples=n, effects=False, mixture="paper")

    return Case(
      "queries",
      f"{many} queries at once, {n:,} samples each",
      "queries",
      n * self._sample_flops(self.decoder),
      Side("inversionview_jax", run, len(requests)),
    )

  def monte_carlo(self) -> Case:
    """Preimages by Monte Carlo, one after the other, from text to sorted particles; no decoder."""
    n, many = self.size.samples, self.size.preimages
    # One for each kind of site, so that easy and hard ones are among them.
    queries = list(zip(self.texts[:many], ("a0.0", "x0.post", "a1.3", "x1.post"), strict=False))

    def run():
      return [monte_carlo.preimage(self.target, text, site, "=", particles=n) for text, site in queries]

    runs = sum(found.target_runs or 0 for found in run())
    return Case(
      "monte_carlo",
      f"{many} preimages by Monte Carlo, {n:,} particles each, {runs:,} target runs",
      "target runs",
      transformer_flops(self.target.config, self.task.length, self.task.length),
      Side("inversionview_jax", run, runs),
    )

  def _one_query(self, reader: Reader) -> Side:
    settings: dict[str, Any] = {
      "temperatures": 1.0,
      "num_samples": self.size.samples,
      "effects": False,
      "mixture": "paper",
    }
    return Side("inversionview_jax", lambda: reader.preimage(self.texts[0], "a0.0", "=", **settings), 1)

  def _sample_flops(self, decoder: DecoderConfig) -> float:
    length = self.task.length
    return transformer_flops(decoder.transformer, length - 1, length - 1 + decoder.n_slots) + transformer_flops(
      self.target.config, length, length
    )

  def capture(self) -> Case:
    """Capturing every site of a batch of texts."""
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
    """Exact enumeration for 8 queries at different sites."""
    reader = self.reader()
    queries, index = held_out.held_out_queries(reader, 8, every_site=False), np.arange(self.size.inputs)

    def run():
      return exact.distances(self.target, self.task, reader.sites, queries.queries, index, self.mesh)

    flops = transformer_flops(self.target.config, self.task.length, self.task.length)
    return Case(
      "enumerate",
      f"exact distances to 8 queries, {len(index):,} inputs",
      "inputs",
      flops,
      Side("inversionview_jax", run, len(index)),
    )


class TrainingProgram:
  """The compiled update of a training with its state, run on the same batches again and again.

  Attributes:
    units: texts of one run.
    flops: of the matrix products of one run, over all devices; a scan's body counts as often as it runs.
    compiled: the program.
  """

  def __init__(self, objective: Objective, config: ConfigDict, rows: np.ndarray, batch: int, mesh: jax.sharding.Mesh):
    """Initializes the state and compiles `_STEPS` steps of `batch` texts each, taken from `rows`, int[N, T]."""
    optimizer = optimizers.make_optimizer(config.optimizer, 1_000_000)

    def fresh():
      params, extra = objective.init(jax.random.key(0))
      return State(jnp.int32(0), params, optimizer.init(params), {}, extra)

    update: Any = make_update(objective, optimizer, config, mesh)
    self._state = parallel.replicate(parallel.jit(fresh)(), mesh)
    self._frozen = parallel.replicate(objective.frozen, mesh)
    self._mesh, self.units = mesh, batch * _STEPS
    steps = [rows[np.arange(i * batch, (i + 1) * batch) % len(rows)] for i in range(_STEPS)]
    self._tokens = np.stack(steps).astype(np.int32)
    arguments = self._state, self._frozen, self._sharded()
    self.flops = program_cost.matmul_flops(update.trace(*arguments).jaxpr, share=mesh.size) * mesh.size
    self.compiled = update.lower(*arguments).compile()

  def _sharded(self) -> jax.Array:
    return parallel.shard(self._tokens, self._mesh, axis=1)

  def run(self) -> None:
    """`_STEPS` steps; returns when they are done."""
    self._state, losses, _ = self.compiled(self._state, self._frozen, self._sharded())
    losses.block_until_ready()

  @property
  def side(self) -> Side:
    """What `timing` runs."""
    return Side("inversionview_jax", self.run, self.units)


# The variables of a new decoder, as `decoder.initial` makes them.
random_variables = parallel.jit(decoder.initial, static_argnums=0)
