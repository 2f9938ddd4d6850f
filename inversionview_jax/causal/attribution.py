"""Direct logit attribution: a logit as the sum of the writes of every part of the model to the residual stream.

The logits are linear in the residual stream but for the final norm, which divides by the standard deviation of that stream (LayerNorm) or
by its root mean square (RMSNorm). Here this divisor is frozen: it is the one of the run itself, the same for all parts (paper, appendix on
IOI; Elhage et al. 2021). A norm behind attention (Gemma 3) is frozen in the same way (`post_norm`). So the parts sum to the logit exactly, but a part's share is not what removing it would change.

Shapes: B batch, T tokens, L layers, H heads, D d_model, V vocabulary, K tokens whose logits are attributed, C components.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax import bounds
from inversionview_jax.causal.addresses import Inputs, Tokens, encode_inputs, token_ids
from inversionview_jax.causal.estimates import estimate
from inversionview_jax.causal.post_norm import post_norm_scale, refuse_centering
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.sites import Site
from inversionview_jax.tables import ShowsTable, Table, plus_minus
from inversionview_jax.targets import Target
from inversionview_jax.targets.positions import Position, resolve_positions

_EMBEDDINGS = ("embed", "pos_embed")
_SHOWN_COMPONENTS, _SHOWN_TOKENS = 12, 4


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Attribution(ShowsTable):
  """Logits in parts.

  Attributes:
    components: C names: "embed", "pos_embed", heads "a0.0", "b_O.0" (the attention's output bias of a layer), "m0" (the write of an MLP, its
      bias included), and "bias" (that of the final norm and of the unembedding); those of them that the model has.
    values: float32[B, C, K], the contribution of each to each logit.
    logits: float32[B, K], the sum over all components, as the model computes it.
    tokens: int32[B, K], whose logits, or None for the whole vocabulary (K = V).
    token_names: K names of the tokens where they are the same for all inputs; else ().
  """

  components: tuple[str, ...]
  values: np.ndarray
  logits: np.ndarray
  tokens: np.ndarray | None
  token_names: tuple[str, ...] = ()

  def __getitem__(self, name: str) -> np.ndarray:
    """float32[B, K]: the contribution of one component."""
    if name not in self.components:
      raise one_of("component", name, self.components)
    return self.values[:, self.components.index(name)]

  def _table(self) -> Table:
    if self.tokens is None:  # of the whole vocabulary, the token on top of each input
      top = self.logits.argmax(axis=-1)[:, None]
      values = np.take_along_axis(self.values, top[:, None], axis=-1)
      logits, names = np.take_along_axis(self.logits, top, axis=-1), ["most probable token"]
    else:
      values, logits = self.values[..., :_SHOWN_TOKENS], self.logits[:, :_SHOWN_TOKENS]
      names = [repr(name) for name in self.token_names[:_SHOWN_TOKENS]]
      names = names or [f"token {k}" for k in range(values.shape[-1])]
    size = np.abs(values.mean(axis=0)).max(axis=-1)
    shown = sorted(np.argsort(-size, kind="stable")[:_SHOWN_COMPONENTS])

    def row(name: str, x: np.ndarray) -> tuple[str, ...]:  # [B, K]
      return (name, *(plus_minus(e.mean, e.se) for e in (estimate(x[:, k]) for k in range(x.shape[1]))))

    rows = [row(self.components[c], values[:, c]) for c in shown]
    rest = len(self.components) - len(shown)
    notes = f"the {len(shown)} largest of {len(self.components)} components" if rest else ""
    return Table(
      f"Contributions to logits, mean over n = {len(values):,}",
      ("component", *names),
      (*rows, row("logit", logits)),
      notes,
    )


def components_of(config: TransformerConfig) -> tuple[str, ...]:
  """All components of a model of this shape, in the order of the forward pass."""
  names = ["embed"] if config.rotary else ["embed", "pos_embed"]
  for layer in range(config.n_layers):
    bias = [f"b_O.{layer}"] if "o" in config.biases else []
    names += [f"a{layer}.{head}" for head in range(config.n_heads)] + bias
    names += [] if config.attn_only else [f"m{layer}"]
  return (*names, *(["bias"] if _final_norm(config) == "layer" or _has_unembedding_bias(config) else []))


def _final_norm(config: TransformerConfig) -> str:
  """The kind of the norm in front of the unembedding."""
  return config.final_norm or config.norm


def _has_unembedding_bias(config: TransformerConfig) -> bool:
  return not config.tied and "unembed" in config.biases


def attribute(
  target: Target,
  inputs: Inputs,
  position: Position = -1,
  tokens: Tokens | None = None,
  components: Sequence[str] | None = None,
) -> Attribution:
  """Attributes the logits at one position to the parts of the model, with the final norm's divisor frozen.

  Args:
    target: any `Target`; under "centered" a head's write excludes the value bias, which is then in "b_O" (see `pretrained`).
    inputs: B texts or int[B, T].
    position: whose logits are attributed: an index, a negative index, int[B], or a label; by default the last token of the text.
    tokens: whose logits, strings or ids, K for all inputs or [B, K]; None for the whole vocabulary.
    components: those that are wanted (of a large model over the whole vocabulary, all are many); None for all.

  Raises:
    InversionViewError: an unknown component, a position out of range, a token outside the vocabulary, or a model whose logits are no sum of
      what its heads write (a LayerNorm behind attention, a cap on the logits: Gemma 2) or which has none.
  """
  _refuse_nonlinear(target)
  rows = encode_inputs(target, inputs)
  names = _check_components(components_of(target.config), components)
  columns = resolve_positions(target, rows, position)[:, None]
  ids = None if tokens is None else token_ids(target, tokens, len(rows))
  size = target.config.outputs if ids is None else ids.shape[1]
  what = f"the contributions of {len(names):,} components to {size:,} logits of {len(rows):,} texts"
  bounds.check_memory(
    4.0 * len(names) * size * len(rows), what, "attribute fewer texts at a time, to tokens= or of components="
  )
  values, logits = _attribute(target.module, names, target.params, rows.tokens, columns, ids)
  return Attribution(names, np.asarray(values), np.asarray(logits), ids, _shared_names(target, ids))


def _shared_names(target: Target, ids: np.ndarray | None) -> tuple[str, ...]:
  """Names of the tokens int32[B, K] where every row has the same; else ()."""
  if ids is None or (ids != ids[:1]).any():
    return ()
  if target.outputs:
    return tuple(target.outputs[int(i)] for i in ids[0])
  no_names = target.tokenizer is None or target.config.vocab_out
  return tuple(map(str, ids[0])) if no_names else tuple(target.require_tokenizer().strings(ids[0]))


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Ranks(ShowsTable):
  """Where tokens stand among all tokens by a component's contribution to the logits.

  Attributes:
    components: C names.
    values: float32[B, C, K], the contribution to each token's logit.
    above: int32[B, C, K], how many tokens of the vocabulary are raised more.
    below: int32[B, C, K], how many are raised less.
  """

  components: tuple[str, ...]
  values: np.ndarray
  above: np.ndarray
  below: np.ndarray

  def _table(self) -> Table:
    size = np.abs(self.values.mean(axis=0)).max(axis=-1)
    shown = sorted(np.argsort(-size, kind="stable")[:_SHOWN_COMPONENTS])
    tokens = range(min(self.values.shape[-1], _SHOWN_TOKENS))
    rows = [
      (
        self.components[c],
        *(f"{self.values[:, c, k].mean():.3f} (rank {1 + np.median(self.above[:, c, k]):.0f})" for k in tokens),
      )
      for c in shown
    ]
    return Table(
      f"Contributions to logits and ranks among all tokens, n = {len(self.values):,}",
      ("component", *(f"token {k}" for k in tokens)),
      tuple(rows),
      "mean contribution (median rank; 1: raised most)",
    )


def ranks(
  target: Target,
  inputs: Inputs,
  position: Position,
  tokens: Tokens,
  components: Sequence[str] | None = None,
) -> Ranks:
  """Where some tokens stand in the contribution of each component, such as the names of a prompt in that of each head (paper, section 4.3).

  Args:
    target, inputs, position: as for `attribute`.
    tokens: strings or ids, K for all inputs or [B, K].
    components: names as in `components_of`, but "bias"; None: all heads.

  Raises:
    InversionViewError: as `attribute` does.
  """
  rows = encode_inputs(target, inputs)
  _refuse_nonlinear(target)
  known = [name for name in components_of(target.config) if name != "bias"]
  names = _check_components(known, [name for name in known if name[0] == "a"] if components is None else components)
  columns = resolve_positions(target, rows, position)[:, None]
  out = _ranks(target.module, names, target.params, rows.tokens, columns, token_ids(target, tokens, len(rows)))
  return Ranks(names, *(np.asarray(x) for x in out))


def _check_components(known: Sequence[str], components: Sequence[str] | None) -> tuple[str, ...]:
  names = tuple(known if components is None else components)
  if unknown := [name for name in names if name not in known]:
    raise one_of("component", unknown[0], known)
  return names


def _refuse_nonlinear(target: Target) -> None:
  """Raises `InversionViewError` for a model whose logits are no sum of what its parts write."""
  target.require_logits()
  refuse_centering(target.config, target.name)
  if target.config.logit_cap:
    raise InversionViewError(
      f"the target {target.name} has a cap on its logits: its logits are not the sum of what its parts write"
    )


@functools.partial(parallel.jit, static_argnums=(0, 1))
def _attribute(module, names, params, tokens, columns, ids):
  """-> float32[B, C, K], and the logits float32[B, K]; K = V where `ids` is None."""
  final, through_norm, kernel = _through_norm(module, names, params, tokens, columns)
  c = module.config
  norm_bias = params["ln_f"]["bias"] @ kernel if _final_norm(c) == "layer" else 0.0
  norm_bias += params["unembed"]["bias"] if _has_unembedding_bias(c) else 0.0  # [V]

  def of_tokens(x):  # [B, V] -> [B, K]
    return x if ids is None else jnp.take_along_axis(x, ids, axis=-1)

  def contribution(name):
    if name == "bias":
      return of_tokens(jnp.broadcast_to(norm_bias, (len(final), c.outputs)))
    write = through_norm(name)
    if ids is None:
      return jnp.matmul(write, kernel, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("bd,bkd->bk", write, jnp.take(kernel.T, ids, axis=0), precision=jax.lax.Precision.HIGHEST)

  logits = module.apply({"params": params}, final, method="logits")
  return jnp.stack([contribution(name) for name in names], axis=1), of_tokens(logits)


@functools.partial(parallel.jit, static_argnums=(0, 1))
def _ranks(module, names, params, tokens, columns, ids):
  """-> contributions float32[B, C, K], and the numbers of tokens above and below, int32[B, C, K]."""
  _, through_norm, kernel = _through_norm(module, names, params, tokens, columns)

  def rank(x):  # float32[B, D]: one component at a time, for a row of V logits of each of hundreds would not fit
    raised = x @ kernel
    own = jnp.take_along_axis(raised, ids, axis=-1)
    return own, *(jnp.sum(side(raised[:, None], own[..., None]), axis=-1) for side in (jnp.greater, jnp.less))

  out = jax.lax.map(rank, jnp.stack([through_norm(name) for name in names]))
  return tuple(x.swapaxes(0, 1) for x in out)


def _through_norm(module, names, params, tokens, columns):
  """The last residual stream float32[B, D], a function from a name to its write as the unembedding reads it, and the unembedding [D, V]."""
  c = module.config
  last = Site("post", c.n_layers - 1)
  heads = [
    Site("heads", layer)
    for layer in range(c.n_layers)
    if {f"b_O.{layer}", *(f"a{layer}.{h}" for h in range(c.n_heads))} & {*names}
  ]
  others = [Site("mlp", layer) for layer in range(c.n_layers) if not c.attn_only]
  others += [Site(name) for name in names if name in _EMBEDDINGS]
  out = module.apply({"params": params}, tokens, capture=[last, *heads, *others], at=columns, logits=False, exact=True)
  final = out[last][:, 0].astype(jnp.float32)

  def center(x):
    return x - jnp.mean(x, axis=-1, keepdims=True) if _final_norm(c) == "layer" else x

  divisor = jnp.sqrt(jnp.mean(jnp.square(center(final)), axis=-1, keepdims=True) + c.norm_eps)  # [B, 1], frozen
  if _final_norm(c) == "none":
    divisor = jnp.ones_like(divisor)

  def heads_of(layer):
    return out[Site("heads", layer)][:, 0]

  scales = {site.layer: post_norm_scale(c, params, site.layer, heads_of(site.layer))[:, 0] for site in heads}

  def write(name):
    if name in _EMBEDDINGS:
      return out[Site(name)][:, 0]
    if name.startswith("m"):
      return out[Site("mlp", int(name[1:]))][:, 0]
    if name.startswith("b_O."):
      bias = params[f"blocks_{name[4:]}"]["attn"]["o"]["bias"]
      return jnp.broadcast_to(bias, final.shape) * scales[int(name[4:])]
    layer, head = map(int, name[1:].split("."))
    return heads_of(layer)[:, head] * scales[layer]

  def through_norm(name):
    return center(write(name).astype(jnp.float32)) / divisor * params["ln_f"]["scale"]

  return final, through_norm, params["embed"].T if c.tied else params["unembed"]["kernel"]
