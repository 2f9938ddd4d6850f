"""The jobs that are timed: training, queries, capture and exact enumeration on the addition task."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from inversionview_jax import tasks
from inversionview_jax.benchmarks.timing import Case, Side, transformer_flops
from inversionview_jax.devices import parallel
from inversionview_jax.measures import held_out
from inversionview_jax.models import decoder
from inversionview_jax.models.decoder import DecoderConfig
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.reading import Reader, load_reader
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
    inputs: that are enumerated.
    scaling: numbers of samples for `bench.scaling`.
  """

  d_model: int
  batch: int
  target_batch: int
  capture_batch: int
  samples: int
  queries: int
  inputs: int
  scaling: tuple[int, ...]


# "full" has the paper's decoder, "small" is for trying the benchmark out.
SIZES = {
  "full": Size(256, 256, 512, 1024, 1024, 16, 102_400, (64, 256, 1024, 4096, 16_384)),
  "small": Size(32, 16, 32, 16, 32, 2, 2048, (16, 64)),
}


class Jobs:
  """The jobs on the shipped addition target, with a decoder of random parameters, which cost as much as trained ones.

  Args:
    size: how large they are.
    rivals: the module `bench_torch` (what this package is compared with), or None.
  """

  def __init__(self, size: Size, rivals: Any = None):
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
    """A reader with the random decoder."""
    variables = random_variables(self.decoder, jax.random.key(0))
    return Reader(self.target, self.task, self.decoder, variables, "bench", self.mesh)

  def train(self) -> Case:
    """Decoder training: the whole step with the target inside."""
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
    """Target training."""
    shape, batch = self.target.config, self.size.target_batch
    model = {"n_layers": shape.n_layers, "n_heads": shape.n_heads, "d_model": shape.d_model, "d_mlp": shape.d_mlp}
    config = ConfigDict({"model": model, "eval_examples": 8, "optimizer": _OPTIMIZER, "seed": 0, "average": 0.0})
    run = self._training(target_objective.TargetObjective(self.task, config, self.rows[:8], self.mesh), config, batch)
    flops = 3 * transformer_flops(shape, self.task.length, self.task.length)
    theirs = self.rivals.train_target(self, batch) if self.rivals else ()
    return Case("train_target", f"target training, d={shape.d_model}, batch {batch}", "texts", flops, run, theirs)

  def _training(self, objective: Objective, config: ConfigDict, batch: int) -> Side:
    optimizer = optimizers.make_optimizer(config.optimizer, 1_000_000)

    def fresh():
      params, extra = objective.init(jax.random.key(0))
      return State(jnp.int32(0), params, optimizer.init(params), {}, extra)

    update = make_update(objective, optimizer, config, self.mesh)
    state = [parallel.replicate(parallel.jit(fresh)(), self.mesh)]
    frozen = parallel.replicate(objective.frozen, self.mesh)
    steps = [self.rows[np.arange(i * batch, (i + 1) * batch) % len(self.rows)] for i in range(_STEPS)]
    tokens = np.stack(steps).astype(np.int32)

    def run():
      state[0], losses, _ = update(state[0], frozen, parallel.shard(tokens, self.mesh, axis=1))
      losses.block_until_ready()

    return Side("inversionview_jax", run, batch * _STEPS)

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


# The variables of a new decoder, as `decoder.initial` makes them.
random_variables = parallel.jit(decoder.initial, static_argnums=0)
