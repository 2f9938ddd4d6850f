"""The two losses: a target model on its task, and a decoder on activations of a frozen target.

Shapes: B batch of texts, T tokens, N pairs (text, activation), S sites, D width of the activation.
"""

import copy
import dataclasses
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from inversionview_jax import distance, sites
from inversionview_jax.devices import parallel, sharding
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models import decoder, storage
from inversionview_jax.models.decoder import Decoder, DecoderConfig
from inversionview_jax.models.transformer import Transformer, TransformerConfig
from inversionview_jax.sampling import collect, sampler
from inversionview_jax.targets import target
from inversionview_jax.targets.target import Target
from inversionview_jax.tasks import Task
from inversionview_jax.training import restart, warm_start

_STATISTICS = 4096  # activations of each site from which their statistics are taken
_TIMES = 11  # a token is counted up to so many times less one
_LARGE = 256  # a target at least so wide costs too much to run on as many texts: several positions are taken of each


def shape_of(task: Task, config: ConfigDict) -> TransformerConfig:
  """The transformer that `config.model` describes, over the task's texts; raises `InversionViewError` for a shape that there is not."""
  for name in ("n_layers", "n_heads", "d_model", "d_mlp"):
    if config.model[name] < 1:
      raise InversionViewError(f"model.{name} = {config.model[name]} must be at least 1")
  if not config.model.get("head_width", 0) and config.model.d_model % config.model.n_heads:
    raise InversionViewError(
      f"model.d_model = {config.model.d_model} does not divide into {config.model.n_heads} heads (model.n_heads); use a multiple of it"
    )
  return TransformerConfig(vocab_size=task.tokenizer.vocab_size, n_ctx=task.length, **config.model)


def decoder_of(
  config: ConfigDict,
  transformer: TransformerConfig,
  site_names: tuple[str, ...],
  d_activation: int,
  forbidden: tuple[int, ...],
) -> DecoderConfig:
  """The decoder that `config` describes around this transformer; raises `InversionViewError` for an encoder that there is not."""
  if config.get("site_inputs", False) and not config.encoder_width:
    raise InversionViewError("site_inputs needs an encoder_width above 0, which each site's own matrix leads into")
  return DecoderConfig(
    transformer=transformer,
    sites=site_names,
    d_activation=d_activation,
    encoder_blocks=config.encoder_blocks,
    encoder_width=config.encoder_width,
    encoder_inner=config.get("encoder_inner", 0),
    site_inputs=bool(config.get("site_inputs", False)),
    n_slots=config.n_slots,
    normalize=config.normalize,
    forbidden=forbidden,
  )


def in_training(shape: TransformerConfig, config: ConfigDict) -> TransformerConfig:
  """The same as it is trained: `compute.dtype` ("" for as it is) and `compute.remat`, both optional."""
  compute = config.get("compute") or {}
  dtype = compute.get("dtype", "") or shape.dtype
  if dtype not in ("float32", "bfloat16"):
    raise one_of("compute.dtype", dtype, ("float32", "bfloat16"))
  return dataclasses.replace(shape, dtype=dtype, remat=bool(compute.get("remat", shape.remat)))


def decoder_in_training(shape: DecoderConfig, config: ConfigDict, mesh) -> DecoderConfig:
  """`in_training`, with quick products unless `compute.dtype` asks for float32, or there is dropout, where each row goes through on its own."""
  shape = dataclasses.replace(shape, transformer=in_training(shape.transformer, config))
  return shape if shape.transformer.has_dropout else shape.quick(mesh, config)


class TargetObjective:
  """Next-token prediction on the tokens the task names (paper, appendix on training the target models)."""

  frozen = ()

  def __init__(self, task: Task, config: ConfigDict, held_out: np.ndarray, mesh=None):
    """What `loss` and `evaluate` need.

    Args:
      task: what is learned.
      config: `model` (keys of `TransformerConfig`), `eval_examples`, `seed`, and `start` (`restart.parameters`; no target: random).
      held_out: int[N, T].
      mesh: all devices by default.
    """
    self.task, self._config, self._held_out = task, config, held_out
    self.model = shape_of(task, config)
    self._module = Transformer(in_training(self.model, config))
    start = config.get("start")
    self.start = restart.parameters(start, self.model, task, config.seed) if start and start.target else {}
    self._mesh = parallel.make_mesh() if mesh is None else mesh
    self._right = parallel.pmap(self._answers_right, self._mesh, in_axes=(None, 0), out_axes=0)

  def init(self, key):
    return self._module.init(key, jnp.zeros((1, 1), jnp.int32))["params"], {}

  def loss(self, params, extra, frozen, tokens, keys):
    del extra, frozen
    variables, at = {"params": params}, self.task.predicted_at(tokens)
    if at is None:
      return _summed(_with_dropout(self._module, variables, keys, tokens).logits, tokens, self.task.loss_mask(tokens))
    # Few tokens are predicted: the last layer is run where they are.
    log_p = jax.nn.log_softmax(_with_dropout(self._module, variables, keys, tokens, logits_at=at).logits)
    wanted = jnp.take_along_axis(tokens, at + 1, axis=1)
    return -jnp.sum(jnp.take_along_axis(log_p, wanted[..., None], axis=-1)), jnp.float32(wanted.size)

  def _answers_right(self, params, tokens):
    """bool[B]: every token of the answer is the most likely one given those before it, as greedy generation would find."""
    best = jnp.argmax(self._module.apply({"params": params}, tokens).logits[:, :-1], axis=-1)
    return jnp.all((best == tokens[:, 1:]) | ~self.task.answer_mask(tokens)[:, 1:], axis=1)

  def evaluate(self, params, extra, final):
    rows = self._held_out if final else self._held_out[: self._config.eval_examples]
    size = 512 * self._mesh.shape[parallel.DATA]
    right = []
    for start in range(0, len(rows), size):
      part = np.asarray(rows[start : start + size], np.int32)
      padded = parallel.pad_rows(part, size)
      right.append(parallel.fetch(self._right(params, padded))[: len(part)])
    right = np.concatenate(right)
    metrics = {"accuracy": float(right.mean()), "held_out": len(rows)}
    for name, member in self.task.groups(np.asarray(rows)).items():
      metrics[f"accuracy_{name}"] = float(right[member].mean())
    return metrics, extra

  def without_remat(self):
    """The same loss, which keeps what it computes: for counting what a step has to compute."""
    other = copy.copy(self)
    other._module = Transformer(dataclasses.replace(self._module.config, remat=False))
    return other

  def finish(self, params, metrics, folder: pathlib.Path):
    target.save_target(
      folder, params, self.model.for_use(), self.task.tokenizer, self.task.name, self.task.name, metrics
    )


def _summed(logits, tokens, mask):
  """-> summed loss over the tokens of `mask` (bool[B, T]; the first token is never predicted) and their number."""
  mask = mask[:, 1:].astype(jnp.float32)
  return -jnp.sum(decoder.token_log_probs(logits, tokens) * mask), jnp.sum(mask)


def _with_dropout(module, variables, keys, *args, **kwargs):
  """Applies `module` to a batch, with dropout if its config has any; a key per row keeps results independent of the devices."""
  config = getattr(module.config, "transformer", module.config)
  if not config.has_dropout:
    return module.apply(variables, *args, **kwargs)

  def one(key, row, named):
    row, named = jax.tree.map(lambda x: x[None], (row, named))
    return module.apply(variables, *row, **named, deterministic=False, rngs={"dropout": key})

  return jax.tree.map(lambda x: x[:, 0], jax.vmap(one)(keys, args, kwargs))


class DecoderObjective:
  """log p(text | activation, site) on activations of a frozen target, taken inside the training step (paper, section 2.2)."""

  def __init__(self, task: Task, config: ConfigDict, model: Target, rows: np.ndarray, held_out: np.ndarray, mesh=None):
    """What `loss` and `evaluate` need.

    Args:
      task: of the target.
      config: `model` (keys of `TransformerConfig`), `encoder_blocks`, `encoder_width`, `n_slots`, `normalize`, `sites` (short names; empty: the task's),
        `pairs_per_text`, `bos_rate`, `reweight` (0: off; the paper's formula has 6), `noise`, `eval_queries`, `final_queries`, `seed`; and,
        optional, `encoder_inner`, `site_inputs`, `init_from` (`decoder_start`; "": random parameters) and `bag`, the weight of `_bag_loss` (0: none), which
        is all there is to train on if `pairs_per_text` is 0.
      model: the target.
      rows, held_out: int[N, T]; statistics come from the former, queries for the in-epsilon rate from the latter.
      mesh: all devices by default.

    Raises:
      InversionViewError: settings that cannot be used; an `init_from` that does not belong here.
    """
    self.task, self.target, self._config = task, model, config
    if config.pairs_per_text < (0 if config.get("bag", 0.0) else 1):
      raise InversionViewError(
        f"pairs_per_text = {config.pairs_per_text} must be at least 1, or 0 with a `bag` above 0, which trains the encoder alone"
      )
    for name in ("eval_queries", "final_queries"):
      if config[name] < 1:
        raise InversionViewError(
          f"{name} = {config[name]} must be at least 1; eval_every = 0 evaluates at the end only"
        )
    if config.get("bag", 0.0) < 0:
      raise InversionViewError(f"bag = {config.bag:g} must not be negative")
    names = tuple(
      model.site(name).short for name in config.sites or task.default_sites(model.config.n_layers, model.config.n_heads)
    )
    self._sites = tuple(map(sites.parse, names))
    t = task.tokenizer
    start = warm_start.find(config.get("init_from"), task, model, config.model)
    self.model = decoder_of(
      config,
      start.transformer if start else shape_of(task, config),
      names,
      model.config.d_model,
      (t.bos_id, t.pad_id),
    )
    self._mesh, self._programs = parallel.make_mesh() if mesh is None else mesh, {}
    self._module = Decoder(decoder_in_training(self.model, config, self._mesh))
    self._bag = decoder.bag_head(self.model, _TIMES)
    self.frozen = parallel.put(model.params, sharding.shardings(model.params, self._mesh))
    self._sampler = sampler.Sampler(self.model, model.module, task, self._mesh)
    self._bos = parallel.fetch(sampler.bos_activations(model.module, self.frozen, self._sites, t.bos_id))
    each = 8 if model.config.d_model >= _LARGE and task.bos_attention is None else 1
    some = self._counted(self._drawn(rows[: _STATISTICS // each], 1, each))
    self._statistics = decoder.statistics(some.activation, some.site, len(names), config.normalize)
    self._spread = np.array([[x.mean(), x.std()] for x in (some.activation[some.site == s] for s in range(len(names)))])
    self._held_out = held_out
    self.start = {}
    if start:
      self._statistics = start.statistics(self.model) or self._statistics
      self.start = start.parameters(self.model)
      if not config.get("bag", 0.0):
        self.start = {name: part for name, part in self.start.items() if name != "bag"}

  def _drawn(self, texts, seed: int, each: int = 1) -> collect.Pairs:
    """`each` pairs of every site for each text: int[B, T] -> B * S * each pairs as NumPy arrays, the sites in turn, made on all devices."""
    size, parts = min(len(texts), self._sampler.rows_at_once), []
    size += -size % self._mesh.shape[parallel.DATA]
    program = self._drawing(each)
    for start in range(0, len(texts), size):
      part, index = np.asarray(texts[start : start + size], np.int32), np.arange(start, start + size, dtype=np.int32)
      out = parallel.fetch(program(self.frozen, parallel.pad_rows(part, size), index, np.uint32(seed)))
      parts.append(jax.tree.map(lambda x, n=len(part): x[: n * len(self._sites) * each], out))
    return jax.tree.map(lambda *each: np.concatenate(each), *parts)

  def _drawing(self, each: int):
    if each not in self._programs:

      def pairs(params, tokens, index, seed):
        return self._pairs(each, params, tokens, parallel.fold_in_each(jax.random.key(seed), index))

      self._programs[each] = parallel.pmap(pairs, self._mesh, in_axes=(None, 0, 0, None), out_axes=0)
    return self._programs[each]

  def _pairs(self, each: int, params, tokens, keys) -> collect.Pairs:
    """int32[B, T] texts, key[B] -> B * S * each pairs, `each` of every site for each text; one device's share."""
    count = len(self._sites)
    mask, module = self.task.query_mask(tokens), self.target.module
    if self.task.bos_attention is None:
      at, _ = collect.draw(tokens, keys, mask, jnp.zeros(count), count * each, 0.0)
      activation, weight = collect.activations_each(module, params, tokens, at, self._sites), None
    else:  # one position of each text is the right one
      at, activation, counts = collect.attentive(
        module, params, tokens, mask, keys, self._sites, self.task.bos_attention
      )
      activation, weight = activation[:, :count], counts.reshape(-1).astype(jnp.float32)
    site = jnp.broadcast_to(jnp.tile(jnp.arange(count), each), at.shape)
    texts = jnp.repeat(tokens, count * each, axis=0)
    return collect.Pairs(texts, activation.reshape(len(texts), -1), site.reshape(-1), at.reshape(-1), weight)

  def _counted(self, pairs: collect.Pairs) -> collect.Pairs:
    """Those that may be training pairs; raises `InversionViewError` for a site that has next to none."""
    if pairs.weight is None:
      return pairs
    kept = pairs.weight > 0
    for number, site in enumerate(self._sites):
      if (count := int(kept[pairs.site == number].sum())) < 2:
        raise InversionViewError(
          f"{site} attends to BOS with {self.task.bos_attention:g} or more in all but {count} of {int((pairs.site == number).sum()):,} texts: "
          "it is not read; leave it out of sites, or raise inputs.bos_attention"
        )
    return jax.tree.map(lambda x: x[kept], pairs)

  def init(self, key):
    params = decoder.initial(self.model, key)["params"]
    # Site embeddings start with the mean and spread of that site's own activations (paper); normalized ones have 0 and 1.
    if self.model.normalize == "none":
      start = self._spread[:, :1] + self._spread[:, 1:] * params["encoder"]["site_embed"]
      params = {**params, "encoder": {**params["encoder"], "site_embed": start.astype(jnp.float32)}}
    if self._config.get("bag", 0.0):
      said = jnp.zeros_like(params["encoder"]["ln_f"]["scale"])
      params = {**params, "bag": self._bag.init(key, said)["params"]}
    statistics = {"encoder": {k: jnp.asarray(v) for k, v in self._statistics.items()}}
    return params, {"stats": statistics, "site_logits": jnp.zeros(len(self._sites))}

  def loss(self, params, extra, frozen, tokens, keys):
    c = self._config
    variables = {"params": params, "stats": extra["stats"]}
    if not c.pairs_per_text:
      total = self._bag_loss(variables, extra, frozen, tokens, keys)
      return total, jnp.float32(len(tokens) * len(self._sites))
    both = jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)
    pairs = collect.collect(
      self.target.module,
      frozen,
      tokens,
      both[0],
      sites=self._sites,
      query_mask=self.task.query_mask,
      site_logits=extra["site_logits"],
      pairs_per_text=c.pairs_per_text,
      bos_rate=c.bos_rate,
      bos_attention=self.task.bos_attention,
    )
    activation = jax.lax.stop_gradient(pairs.activation)
    pair_keys = jax.vmap(lambda key: jax.random.split(key, c.pairs_per_text))(both[1]).reshape(-1)
    if c.noise:
      activation = _perturbed(activation, pair_keys, c.noise)
    logits = _with_dropout(self._module, variables, pair_keys, pairs.tokens, activation, pairs.site)
    mask = pairs.tokens != self.task.tokenizer.pad_id
    total, count = _summed(logits, pairs.tokens, mask if pairs.weight is None else mask * pairs.weight[:, None])
    if c.get("bag", 0.0):
      total += c.bag * self._bag_loss(variables, extra, frozen, tokens, both[2])
    return total, count

  def _bag_loss(self, variables, extra, frozen, tokens, keys):
    """How often does each token occur in the text? Read off the encoder alone, at one position of every site, which has the weight with
    which it is drawn for the decoder: summed float32[].

    A text gives S such pairs for what one of the decoder's costs, and none of their loss is spent on the order in which it was written.
    """
    pairs = self._pairs(1, frozen, tokens, keys)
    said = self._module.apply(variables, jax.lax.stop_gradient(pairs.activation), pairs.site, method=Decoder.said)
    size = self.model.transformer.vocab_size
    logits = self._bag.apply({"params": variables["params"]["bag"]}, said)
    log_p = jax.nn.log_softmax(logits.reshape(-1, size, _TIMES))
    times = jnp.sum(tokens[:, :, None] == jnp.arange(size), axis=1)  # [B, V]
    times = jnp.minimum(jnp.repeat(times, len(self._sites), axis=0), _TIMES - 1)
    each = -jnp.take_along_axis(log_p, times[..., None], axis=-1)[..., 0].sum(axis=-1)
    each *= len(self._sites) * jax.nn.softmax(extra["site_logits"])[pairs.site]
    return jnp.sum(each if pairs.weight is None else each * pairs.weight)

  @property
  def identity(self) -> dict:
    """What the state of a run depends on besides its config and its inputs."""
    return {"target": self.target.fingerprint, "convention": self.target.convention, "dtype": self.target.config.dtype}

  def without_remat(self):
    """The same loss, which keeps what it computes: for counting what a step has to compute."""
    other = copy.copy(self)
    shape = dataclasses.replace(self._module.config.transformer, remat=False)
    other._module = Decoder(dataclasses.replace(self._module.config, transformer=shape))
    return other

  def inspect(self, extra, tokens, keys) -> tuple[dict, list[str]]:
    """What `loss` draws for these texts int32[B, T] and keys: positions and sites int32[B, P], and the names of the sites among them."""
    if self.task.bos_attention is not None:  # which positions these are depends on the activations themselves
      return {}, [site.short for site in self._sites]
    c, drawing = self._config, jax.vmap(lambda key: jax.random.split(key, 3), out_axes=1)(keys)[0]
    mask = self.task.query_mask(tokens)
    at, site = collect.draw(tokens, drawing, mask, jnp.asarray(extra["site_logits"]), c.pairs_per_text, c.bos_rate)
    names = [self._sites[i].short for i in np.unique(np.asarray(site))]
    return {"site": site, "position": at, "site_names": np.array([s.short for s in self._sites])}, names

  def evaluate(self, params, extra, final):
    """In-epsilon rate per site: one temperature-1 sample for each of so many held-out queries (paper, section 3)."""
    texts = self._held_out[: self._config.final_queries if final else self._config.eval_queries]
    pairs = self._drawn(texts, 2)
    n = len(pairs.site)
    queries = sampler.Queries(
      pairs.activation,
      pairs.site,
      np.full(n, -1, np.int32),
      np.full(n, distance.metric_index(self.task.metric), np.int32),
    )
    rows = sampler.one_each(n)
    variables = {"params": params, "stats": extra["stats"]}
    found = parallel.fetch(self._sampler.run(variables, self.frozen, self._bos, queries, rows, seed=0, effects=False))
    inside = (np.asarray(found.distance) <= self.task.epsilon).reshape(-1, len(self._sites))
    counts = np.ones(inside.shape) if pairs.weight is None else pairs.weight.reshape(inside.shape)
    inside = (inside * counts).sum(axis=0) / np.maximum(counts.sum(axis=0), 1)
    metrics = {"rate": float(inside.mean()), "rate_lowest": float(inside.min()), "queries_per_site": len(texts)}
    metrics |= {f"rate/{site.short}": float(r) for site, r in zip(self._sites, inside, strict=True)}
    if self._config.reweight:
      logits = jnp.asarray(self._config.reweight * (inside.mean() - inside), jnp.float32)
      extra = {**extra, "site_logits": logits}
      metrics |= {
        f"weight/{s.short}": float(w) for s, w in zip(self._sites, jax.nn.softmax(logits) * len(logits), strict=True)
      }
    return metrics, extra

  def finish(self, params, metrics, folder: pathlib.Path):
    config = dataclasses.replace(self.model, transformer=self.model.transformer.for_use())
    variables = {"params": {name: part for name, part in params.items() if name != "bag"}}
    variables["stats"] = {"encoder": self._statistics}
    if "bag" in params:  # no part of the reader, but of its training, which may go on from here
      variables["bag"] = params["bag"]
    save_decoder(folder, variables, config, self.target, self.task, metrics)


def save_decoder(
  folder, variables, config: DecoderConfig, model: Target, task: Task, notes: dict | None = None
) -> None:
  """Writes a finished decoder, with the target and the convention that it belongs to; `variables` may have the "bag" of its training."""
  storage.save_model(
    folder,
    variables,
    {
      "kind": "decoder",
      "name": task.name,
      "task": task.name,
      "task_settings": task.settings,
      "config": dataclasses.asdict(config),
      "target": {"name": model.name, "fingerprint": model.fingerprint, "convention": model.convention},
      "tokenizer": task.tokenizer.describe(),
      "epsilon": task.epsilon,
      "metric": task.metric,
      **({"bag": _TIMES} if "bag" in variables else {}),
      "notes": notes or {},
    },
  )


def _perturbed(activation, keys, most: float):
  """Adds Gaussian noise of eta * std(z), eta uniform in [0, most], as the sampling mixture does with its own eta."""

  def one(z, key):
    how_much, what = jax.random.split(key)
    return z + most * jax.random.uniform(how_much) * jnp.std(z) * jax.random.normal(what, z.shape)

  return jax.vmap(one)(activation, keys)
