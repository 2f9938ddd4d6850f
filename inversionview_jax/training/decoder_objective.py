"""Training a decoder on activations of a frozen target.

Shapes: B batch of texts, T tokens, N pairs (text, activation), P pairs per text, S sites, D width of the activation.
"""

import copy
import dataclasses
import functools
import os
import pathlib
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from inversionview_jax import config_schema, sites
from inversionview_jax.devices import parallel, sharding
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import decoder, site_shapes, storage
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.sampling import Queries, Sampler, bos_activations, collect, in_epsilon
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task
from inversionview_jax.training import decoder_start, model_shapes, token_counts
from inversionview_jax.training.losses import apply_with_dropout, summed_cross_entropy, with_random_noise
from inversionview_jax.training.site_pairs import SitePairs

_STATISTICS_TEXTS = 4096  # activations of each site from which their statistics are taken
_WIDE_TARGET = (
  256  # a target at least so wide is too expensive to run on that many texts: several positions of each text are used
)
_STATISTICS_SEED, _EVALUATION_SEED = 1, 2


class DecoderObjective:
  """log p(text | activation, site) on activations of a frozen target, computed inside the training step (paper, section 2.2).

  Args:
    task: of the target.
    config: `model` (keys of `TransformerConfig`), `encoder_blocks`, `encoder_width`, `n_slots`, `normalize`, `sites` (short names; empty: the
      task's), `pairs_per_text`, `bos_rate`, `reweight` (0: off; the paper's formula has 6), `noise`, `eval_queries`, `final_queries`, `seed`;
      and, optional, `encoder_inner`, `site_inputs`, `compute`, `init_from` (`decoder_start`; "": random parameters) and
      `token_count_loss`, the weight of the loss of `token_counts` (0: none), which is the only one if `pairs_per_text` is 0.
    target: the model whose activations are read.
    rows, held_out: int[N, T]; statistics come from the former, queries for the in-epsilon rate from the latter.
    mesh: all devices by default.

  Attributes:
    task, target: as given.
    model: configuration of the decoder.
    frozen: the target's parameters, on the mesh.
    start: initial parameters that replace the random ones of the same name.

  Raises:
    InversionViewError: settings that cannot be used; an `init_from` that does not fit.
  """

  def __init__(
    self,
    task: Task,
    config: ConfigDict,
    target: Target,
    rows: np.ndarray,
    held_out: np.ndarray,
    mesh: Mesh | None = None,
  ):
    names, start, self.model = shape_of(config, task, target)
    self.task, self.target, self._config, self._held_out = task, target, config, held_out
    self._sites, t = tuple(map(sites.parse, names)), task.tokenizer
    self._mesh = parallel.make_mesh() if mesh is None else mesh
    self._module = Decoder(self.model, model_shapes.decoder_compute_in_training(self.model, config, self._mesh))
    self.frozen = parallel.put(target.params, sharding.shardings(target.params, self._mesh))
    self._sampler = Sampler(self.model, target.module, task, self._mesh)
    self._bos = parallel.fetch(bos_activations(target.module, self.frozen, self._sites, t.bos_id))
    self._site_pairs = SitePairs(task, target, self._sites, self._mesh, self._sampler.rows_at_once)
    self._statistics, self._mean_and_std = self._statistics_of(rows)
    self.start: dict = {}
    if start:
      self._statistics = start.statistics(self.model) or self._statistics
      self.start = start.parameters(self.model)
      if not config.get("token_count_loss", 0.0):
        self.start = {name: part for name, part in self.start.items() if name != token_counts.HEAD}

  def _statistics_of(self, rows: np.ndarray) -> tuple[dict, np.ndarray]:
    """The encoder's statistics of each site's activations on these texts, and their mean and standard deviation float64[S, 2]."""
    each = 8 if self.target.config.d_model >= _WIDE_TARGET and self.task.bos_attention is None else 1
    drawn = self._site_pairs.draw(self.frozen, rows[: _STATISTICS_TEXTS // each], _STATISTICS_SEED, each)
    pairs = self._site_pairs.training_pairs(drawn)
    activation, site, count = np.asarray(pairs.activation), np.asarray(pairs.site), len(self._sites)
    by_site = (activation[site == s] for s in range(count))
    mean_and_std = np.array([[x.mean(), x.std()] for x in by_site])
    return decoder.statistics(activation, site, count, self._config.normalize), mean_and_std

  def init(self, key: jax.Array) -> tuple[dict, dict]:
    params = decoder.initial(self.model, key)["params"]
    # Site embeddings start with the mean and spread of that site's own activations (paper); normalized ones have 0 and 1.
    if self.model.normalize == "none":
      start = self._mean_and_std[:, :1] + self._mean_and_std[:, 1:] * params["encoder"]["site_embed"]
      params = {**params, "encoder": {**params["encoder"], "site_embed": start.astype(jnp.float32)}}
    params = self._with_count_head(params, key)
    statistics = {"encoder": {k: jnp.asarray(v) for k, v in self._statistics.items()}}
    return params, {"stats": statistics, "site_logits": jnp.zeros(len(self._sites))}

  def _with_count_head(self, params: dict, key: jax.Array) -> dict:
    """The parameters, with those of the head of the token-count loss if the config has that loss."""
    if not self._config.get("token_count_loss", 0.0):
      return params
    width = params["encoder"]["ln_f"]["scale"].shape[0]
    return {**params, token_counts.HEAD: token_counts.initial_head(self.model, key, width)}

  def loss(
    self, params: dict, extra: dict, frozen: Any, tokens: jax.Array, keys: jax.Array
  ) -> tuple[jax.Array, jax.Array]:
    c = self._config
    variables = {"params": params, "stats": extra["stats"]}
    if not c.pairs_per_text:
      total = self._token_count_loss(variables, extra, frozen, tokens, keys)
      return total, jnp.float32(len(tokens) * len(self._sites))
    draw_keys, noise_keys, count_keys = _split_each(keys, 3)
    pairs = collect.collect(
      self.target.module,
      frozen,
      tokens,
      draw_keys,
      sites=self._sites,
      query_mask=self.task.query_mask,
      site_logits=extra["site_logits"],
      pairs_per_text=c.pairs_per_text,
      bos_rate=c.bos_rate,
      bos_attention=self.task.bos_attention,
    )
    activation = jax.lax.stop_gradient(pairs.activation)
    pair_keys = jax.vmap(lambda key: jax.random.split(key, c.pairs_per_text))(noise_keys).reshape(-1)
    if c.noise:
      activation = with_random_noise(activation, pair_keys, c.noise)
    logits = apply_with_dropout(self._module, variables, pair_keys, pairs.tokens, activation, pairs.site)
    mask = pairs.tokens != self.task.tokenizer.pad_id
    mask = mask if pairs.weight is None else mask * pairs.weight[:, None]
    total, count = summed_cross_entropy(logits, pairs.tokens, mask)
    if c.get("token_count_loss", 0.0):
      total += c.token_count_loss * self._token_count_loss(variables, extra, frozen, tokens, count_keys)
    return total, count

  def _token_count_loss(self, variables, extra, frozen, tokens, keys):
    """float32[], the loss of `token_counts` at one position of every site, summed with the weights with which sites are drawn.

    The target's forward pass gives S such pairs for each text, each much cheaper than one of the decoder's, and none of this loss is
    spent on the order of the tokens.
    """
    pairs = self._site_pairs.pairs(frozen, tokens, keys)
    activation = jax.lax.stop_gradient(pairs.activation)
    encoding = self._module.apply(variables, activation, pairs.site, method=Decoder.encode)
    counts = token_counts.occurrences(tokens, self.model.transformer.vocab_size)
    counts = jnp.repeat(counts, len(self._sites), axis=0)  # in the order of the pairs
    each = token_counts.token_count_loss(self.model, variables["params"][token_counts.HEAD], encoding, counts)
    each *= len(self._sites) * jax.nn.softmax(extra["site_logits"])[pairs.site]
    return jnp.sum(each if pairs.weight is None else each * pairs.weight)

  @property
  def identity(self) -> dict:
    """What the state of a run depends on besides its config and its inputs: the target's fingerprint, convention and dtype."""
    return {"target": self.target.fingerprint, "convention": self.target.convention, "dtype": self.target.compute.dtype}

  def without_remat(self) -> Self:
    """The same loss without rematerialization, for counting the FLOPs of a step."""
    other = copy.copy(self)
    other._module = Decoder(self.model, dataclasses.replace(self._module.compute, remat=False))
    return other

  def inspect(self, extra: dict, tokens: jax.Array, keys: jax.Array) -> tuple[dict, list[str]]:
    """The random choices of `loss` for these texts int32[B, T] and keys: positions and sites int32[B, P], and the names of the sites."""
    names = np.array([site.short for site in self._sites])
    if self.task.bos_attention is not None:  # positions depend on the activations themselves
      return {}, names.tolist()
    c, (draw_keys, _, _) = self._config, _split_each(keys, 3)
    mask, logits = self.task.query_mask(tokens), jnp.asarray(extra["site_logits"])
    at, site = collect.draw(tokens, draw_keys, mask, logits, c.pairs_per_text, c.bos_rate)
    drawn = names[np.unique(np.asarray(site))].tolist()
    return {"site": site, "position": at, "site_names": names}, drawn

  def evaluate(self, params: dict, extra: dict, final: bool) -> tuple[dict[str, float], dict]:
    """In-epsilon rate of each site: one temperature-1 sample for each held-out query (paper, section 3)."""
    texts = self._held_out[: self._config.final_queries if final else self._config.eval_queries]
    pairs = self._site_pairs.draw(self.frozen, texts, _EVALUATION_SEED)
    variables = {"params": params, "stats": extra["stats"]}
    draw = functools.partial(self._sampler.run, variables, self.frozen, self._bos, seed=0, effects=False)
    hits = in_epsilon.hits(draw, Queries.of(pairs.activation, pairs.site, self.task.metric), self.task.epsilon)
    weight = None if pairs.weight is None else np.asarray(pairs.weight)
    rates = in_epsilon.rate_per_site(hits, np.asarray(pairs.site), len(self._sites), weight)
    metrics = {"rate": float(rates.mean()), "rate_lowest": float(rates.min()), "queries_per_site": len(texts)}
    metrics |= {f"rate/{site.short}": float(rate) for site, rate in zip(self._sites, rates, strict=True)}
    if self._config.reweight:
      logits = jnp.asarray(self._config.reweight * (rates.mean() - rates), jnp.float32)
      extra = {**extra, "site_logits": logits}
      weights = jax.nn.softmax(logits) * len(logits)
      metrics |= {f"weight/{site.short}": float(w) for site, w in zip(self._sites, weights, strict=True)}
    return metrics, extra

  def finish(self, params: dict, metrics: dict[str, float], folder: pathlib.Path) -> None:
    config = dataclasses.replace(self.model, transformer=self.model.transformer.for_inference())
    variables: dict = {"params": {name: part for name, part in params.items() if name != token_counts.HEAD}}
    variables["stats"] = {"encoder": self._statistics}
    if token_counts.HEAD in params:  # not used by a reader, but by training that starts from this decoder
      variables[token_counts.HEAD] = params[token_counts.HEAD]
    save_decoder(folder, variables, config, self.target, self.task, metrics)


def shape_of(
  config: ConfigDict, task: Task, target: Target
) -> tuple[tuple[str, ...], decoder_start.LanguageModelStart | decoder_start.DecoderStart | None, DecoderConfig]:
  """The sites' short names, the warm start and the shape of a config's decoder; needs no data, so that settings are refused before any is read.

  Raises:
    InversionViewError: settings that cannot be used, a site that the target does not have, or an `init_from` that does not fit.
  """
  _check(config)
  found = config.sites or task.default_sites(target.config.n_layers, target.config.n_heads)
  names = tuple(target.site(name).short for name in found)
  start = decoder_start.load(config.get("init_from"), task, target, config.get("model") or {})
  transformer = start.transformer if start else model_shapes.transformer_config(task, config)
  forbidden = (task.tokenizer.bos_id, task.tokenizer.pad_id)
  size = site_shapes.widest(target.config, map(sites.parse, names))
  return names, start, model_shapes.decoder_config(config, transformer, names, size, forbidden)


def _check(config: ConfigDict) -> None:
  config_schema.check(config, config_schema.DECODER)
  weight = config.get("token_count_loss", 0.0)
  if config.pairs_per_text < (0 if weight else 1):
    raise InversionViewError(
      f"pairs_per_text = {config.pairs_per_text} must be at least 1, or 0 with a `token_count_loss` above 0, which trains the encoder alone"
    )


def _split_each(keys: jax.Array, count: int) -> jax.Array:
  """key[B] -> key[count, B], `count` independent keys from each."""
  return jax.vmap(lambda key: jax.random.split(key, count), out_axes=1)(keys)


def save_decoder(
  folder: str | os.PathLike,
  variables: dict,
  config: DecoderConfig,
  target: Target,
  task: Task,
  notes: dict | None = None,
) -> None:
  """Writes a finished decoder, with the target and the convention that it belongs to.

  Args:
    folder: made if it is not there.
    variables: "params", "stats" and, optional, the head of the token-count loss.
    config: of the decoder.
    target: whose activations it reads.
    task: of its texts.
    notes: metrics, stored as they are.
  """
  storage.save_model(
    folder,
    variables,
    {
      "kind": "decoder",
      "name": task.name,
      "task": task.name,
      "task_settings": task.settings,
      "config": dataclasses.asdict(config),
      "target": target.describe(),
      "tokenizer": task.tokenizer.describe(),
      "epsilon": task.epsilon,
      "metric": task.metric,
      **({"count_classes": token_counts.COUNT_CLASSES} if token_counts.HEAD in variables else {}),
      "notes": notes or {},
    },
  )
