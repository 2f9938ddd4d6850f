"""The numbers that are compared between devices, each made the same way for the goldens and for a check.

Every function returns named arrays. Precision is that of the context (`jax.default_matmul_precision`); `dtype` is that of a target.

Shapes: B texts, T tokens, D width of an activation, V vocabulary, Q queries, N inputs.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax import config_blocks, sites
from inversionview_jax.benchmarks.device import models
from inversionview_jax.devices import parallel
from inversionview_jax.distance import METRICS
from inversionview_jax.models import decoder
from inversionview_jax.models.decoder import Decoder
from inversionview_jax.planning.abstract_programs import ShapeObjective
from inversionview_jax.reading import Reader
from inversionview_jax.sampling import Queries, exact
from inversionview_jax.targets import Edit, Run, Target
from inversionview_jax.tasks import hashing

Arrays = dict[str, np.ndarray]
KINDS = (*sites.PAPER_KINDS, "heads", "pattern")
GRADIENT_ENTRIES = 64  # of each parameter that are compared, evenly spaced
_GRADIENT_TEXTS = 32
_TEXTS = 64  # whose distances are compared


def forward(dtype: str | None = None) -> tuple[Arrays, Arrays]:
  """(logits, captures at every site of every kind) of each target; captures are named TARGET/KIND/SITE."""
  logits: Arrays = {}
  captures: Arrays = {}
  for name, target in models.targets(dtype).items():
    every = _sites(target, KINDS)
    run = target.run(models.tokens(name), every)
    logits[name] = _array(run.logits)
    captures |= {f"{name}/{site.kind}/{site.short}": _array(run[site]) for site in every}
  if dtype is None:
    counting = models.reader("counting")
    logits["counting"] = _array(counting.target.run(models.tokens("counting")).logits)
  return logits, captures


def edits(dtype: str | None = None) -> Arrays:
  """Logits and captures after an edit of each kind of site, all of them in one run: at a position each, or (position embeddings) at all."""
  out: Arrays = {}
  for name, target in models.targets(dtype).items():
    tokens = models.tokens(name)
    edited = [site for site in _sites(target, sites.PAPER_KINDS) if site.layer in (None, 0) and site.kind != "post"]
    width, made = target.config.d_model, [Edit("x0.post", 1, models.numbers((target.config.d_model,), 99))]
    for number, site in enumerate(edited):
      whole = site.kind == "pos_embed"
      shape = (*tokens.shape, width) if whole else (len(tokens), width)
      made.append(Edit(site, None if whole else 2 + number, models.numbers(shape, 100 + number)))
    run: Run = target.run(tokens, [*edited, "x1.post"], made)
    out[f"{name}/logits"] = _array(run.logits)
    out |= {f"{name}/{site}": _array(run[site]) for site in (*(site.short for site in edited), "x1.post")}
  return out


def distances(dtype: str | None = None) -> Arrays:
  """float32[Q, N]: distances of texts to queries at every site of the addition reader, in both metrics, anywhere and at one position."""
  reader = models.reader("addition")
  target = models.targets(dtype)["addition"]
  index = np.sort(hashing.uniform(reader.task.num_inputs, 5, np.arange(_TEXTS)))
  count = len(reader.sites)
  rows = reader.task.tokens(hashing.uniform(reader.task.num_inputs, 3, np.arange(count)))
  run = target.run(rows, reader.sites)
  at = 1 + np.arange(count) % 8
  activations = np.stack([np.asarray(run[site][i, at[i]], np.float32) for i, site in enumerate(reader.sites)])
  out = {}
  for metric in METRICS:
    queries = Queries.of(activations, np.arange(count), metric, np.where(np.arange(count) % 2, at, -1))
    found = exact.distances(target, reader.task, reader.sites, queries, index, models.mesh())
    out[metric] = found.distance
  return out


def cached_step() -> dict[str, tuple[np.ndarray, np.ndarray]]:
  """Decoder -> its logits of whole texts, and those of one step after the other over the cache; float32[B, T - 1, V], allowed tokens only."""
  reader = models.reader("addition")
  tokens = reader.task.tokens(hashing.uniform(reader.task.num_inputs, 13, np.arange(8)))
  shipped = reader.sampler.decoder, reader.variables
  out = {}
  for name, (module, variables) in {"shipped": shipped, "cross": models.cross_decoder()}.items():
    width, count = module.config.d_activation, len(module.config.sites)
    activation, site = models.numbers((len(tokens), width), 17), np.arange(len(tokens), dtype=np.int32) % count
    whole, steps = parallel.jit(functools.partial(_both, module))(variables, tokens, activation, site)
    allowed = np.setdiff1d(np.arange(module.config.transformer.vocab_size), module.config.forbidden)
    out[name] = _array(whole)[:, :-1, allowed], _array(steps)[..., allowed]
  return out


def _both(module: Decoder, variables: Any, tokens: jax.Array, activation: jax.Array, site: jax.Array) -> Any:
  slots: Any = module.apply(variables, activation, site, method="slots")
  whole = module.apply(variables, tokens, slots, method="logits")
  length = tokens.shape[1] - 1

  def step(cache, at):
    logits, cache = module.apply(variables, tokens[:, at], at, cache, method="step")  # type: ignore[misc]
    return cache, logits

  cache = module.apply(variables, slots, length, method="init_cache")
  _, steps = jax.lax.scan(step, cache, jnp.arange(length))
  return whole, jnp.moveaxis(steps, 0, 1)


def objective(reader: Reader) -> tuple[ShapeObjective, dict]:
  """The training objective of a reader's decoder, for its loss, and the `extra` of that."""
  config = config_blocks.reader(reader.task.name)
  config.pairs_per_text = 2
  made = ShapeObjective(reader.task, config, reader.target.module, reader.config, models.mesh())
  return made, {"stats": reader.variables["stats"], "site_logits": jnp.zeros(len(reader.config.sites))}


def gradients() -> tuple[Arrays, Arrays]:
  """One training step of a decoder of the shipped one's shape, the target inside: (loss and gradients, the sites and positions that it drew).

  Of every parameter: `GRADIENT_ENTRIES` entries of its gradient, evenly spaced, and the gradient's norm.
  """
  reader = models.reader("addition")
  rows = reader.task.tokens(hashing.uniform(reader.task.num_inputs, 19, np.arange(_GRADIENT_TEXTS)))
  made, extra = objective(reader)
  keys = parallel.fold_in_each(jax.random.key(0), jnp.arange(len(rows)))
  step = parallel.jit(jax.value_and_grad(lambda p, *rest: made.loss(p, *rest)[0]))
  loss, grads = step(models.random_like(reader.variables["params"]), extra, reader.target.params, rows, keys)
  out = {"loss": _array(loss)[None]}
  for path, leaf in jax.tree_util.tree_flatten_with_path(grads)[0]:
    name, flat = "/".join(str(key.key) for key in path), np.asarray(leaf, np.float32).ravel()
    entries = flat[np.linspace(0, flat.size - 1, min(flat.size, GRADIENT_ENTRIES)).astype(int)]
    out[name], out[f"{name}/norm"] = entries, _array(np.linalg.norm(flat.astype(np.float64)))[None]
  drawn, _ = made.inspect(extra, jnp.asarray(rows), keys)
  return out, {name: np.asarray(drawn[name], np.int32) for name in ("site", "position")}


def _sites(target: Target, kinds: tuple[str, ...]) -> list[sites.Site]:
  kinds = tuple(kind for kind in kinds if not (kind == "pos_embed" and target.config.rotary))
  return list(sites.enumerate_sites(target.config.n_layers, target.config.n_heads, kinds))


def _array(x: Any) -> np.ndarray:
  return np.asarray(x, np.float32)


# The variables of a new decoder, as `decoder.initial` makes them.
random_variables = parallel.jit(decoder.initial, static_argnums=0)
