"""Direct logit attribution: a logit as the sum of what every part of the model wrote to the residual stream.

The logits are linear in the residual stream but for the final norm, which divides by the standard deviation of that stream (LayerNorm) or
by its root mean square (RMSNorm). Here this divisor is frozen: it is the one of the run itself, the same for all parts (paper, appendix on
IOI; Elhage et al. 2021). So the parts sum to the logit exactly, but a part's share is not what removing it would change.

Shapes: B batch, T tokens, L layers, H heads, D d_model, V vocabulary, K tokens asked about, C components.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from inversionview_jax.causal.addresses import as_tokens, positions_of, token_ids
from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.sites import Site

_EMBEDDINGS = ("embed", "pos_embed")


@dataclasses.dataclass(frozen=True)
class Attribution:
  """Logits in parts.

  Attributes:
    components: C names: "embed", "pos_embed", heads "a0.0", "b_O.0" (the attention's output bias of a layer), "m0" (what an MLP writes, its
      bias included), and "bias" (that of the final norm and of the unembedding); those of them that the model has.
    values: float32[B, C, K], what each contributes to each logit.
    logits: float32[B, K], the sum over all components, as the model computes it.
    tokens: int32[B, K], which logits, or None for the whole vocabulary (K = V).
  """

  components: tuple[str, ...]
  values: np.ndarray
  logits: np.ndarray
  tokens: np.ndarray | None

  def __getitem__(self, name: str) -> np.ndarray:
    """float32[B, K]: what one component contributes."""
    if name not in self.components:
      raise one_of("component", name, self.components)
    return self.values[:, self.components.index(name)]


def components_of(config) -> tuple[str, ...]:
  """All components of a model of this shape, in the order of the forward pass."""
  names = ["embed"] if config.rotary else ["embed", "pos_embed"]
  for layer in range(config.n_layers):
    bias = [f"b_O.{layer}"] if "o" in config.biases else []
    names += [f"a{layer}.{head}" for head in range(config.n_heads)] + bias + [f"m{layer}"]
  return (*names, *(["bias"] if config.norm == "layer" or _unembedding_bias(config) else []))


def _unembedding_bias(config) -> bool:
  return not config.tied and "unembed" in config.biases


def attribute(
  target, inputs, at: "int | str | np.ndarray" = -1, of=None, components: Sequence[str] | None = None
) -> Attribution:
  """Attributes the logits at one position to the parts of the model, with the final LayerNorm's divisor frozen.

  Args:
    target: any `Target`; under "centered" a head's write excludes the value bias, which is then in "b_O" (see `pretrained`).
    inputs: B texts or int[B, T].
    at: the position whose logits are attributed: an index, int[B], or a label; by default the last token of the text.
    of: tokens, int[K] for all inputs or int[B, K]; None for the whole vocabulary.
    components: those that are wanted (of a large model over the whole vocabulary, all are many); None for all.

  Raises:
    InversionViewError: an unknown component, a position out of range, a token outside the vocabulary, or a model whose logits are no sum of
      what its heads write (a norm behind attention or MLP, a cap on the logits: Gemma 2) or which has none.
  """
  _refuse_unlike(target)
  tokens = as_tokens(target, inputs)
  known = components_of(target.config)
  names = known if components is None else tuple(components)
  if wrong := [name for name in names if name not in known]:
    raise one_of("component", wrong[0], known)
  columns = positions_of(target, tokens, at)[:, None]
  if of is not None:
    of = token_ids(target, of, len(tokens))
  values, logits = _attribute(target.module, names, target.params, tokens, columns, of)
  return Attribution(names, np.asarray(values), np.asarray(logits), of)


@dataclasses.dataclass(frozen=True)
class Ranks:
  """Where tokens stand among all tokens in what a component contributes to the logits.

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


def ranks(target, inputs, at, of, components: Sequence[str] | None = None) -> Ranks:
  """Where some tokens stand in the contribution of each component, such as the names of a prompt in that of each head (paper, section 4.3).

  Args:
    target, inputs, at: as for `attribute`.
    of: the tokens, int[K] for all inputs or int[B, K].
    components: names as in `components_of`, but "bias"; None: all heads.

  Raises:
    InversionViewError: as `attribute` does.
  """
  tokens = as_tokens(target, inputs)
  _refuse_unlike(target)
  known = [name for name in components_of(target.config) if name != "bias"]
  names = tuple(name for name in known if name[0] == "a") if components is None else tuple(components)
  if wrong := [name for name in names if name not in known]:
    raise one_of("component", wrong[0], known)
  columns = positions_of(target, tokens, at)[:, None]
  found = _ranks(target.module, names, target.params, tokens, columns, token_ids(target, of, len(tokens)))
  return Ranks(names, *(np.asarray(x) for x in found))


def _refuse_unlike(target) -> None:
  """Raises `InversionViewError` for a model whose logits are no sum of what its parts write."""
  target.require_logits()
  if target.config.post_norm or target.config.logit_cap:
    what = "a norm behind each attention and MLP" if target.config.post_norm else "a cap on its logits"
    raise InversionViewError(f"the target {target.name} has {what}: its logits are not the sum of what its parts write")


@functools.partial(parallel.jit, static_argnums=(0, 1))
def _attribute(module, names, params, tokens, columns, of):
  final, seen, kernel = _through_norm(module, names, params, tokens, columns)
  c = module.config
  norm_bias = params["ln_f"]["bias"] @ kernel if c.norm == "layer" else 0.0
  norm_bias += params["unembed"]["bias"] if _unembedding_bias(c) else 0.0  # [V]

  def asked(x):  # [B, V] -> [B, K]
    return x if of is None else jnp.take_along_axis(x, of, axis=-1)

  def contribution(name):
    if name == "bias":
      return asked(jnp.broadcast_to(norm_bias, (len(final), c.vocab_size)))
    if of is None:
      return jnp.matmul(seen(name), kernel, precision=jax.lax.Precision.HIGHEST)
    return jnp.einsum("bd,bkd->bk", seen(name), jnp.take(kernel.T, of, axis=0), precision=jax.lax.Precision.HIGHEST)

  logits = module.apply({"params": params}, final, method="logits")
  return jnp.stack([contribution(name) for name in names], axis=1), asked(logits)


@functools.partial(parallel.jit, static_argnums=(0, 1))
def _ranks(module, names, params, tokens, columns, of):
  _, seen, kernel = _through_norm(module, names, params, tokens, columns)

  def rank(x):  # float32[B, D]: one component at a time, for a row of V logits of each of hundreds would not fit
    raised = x @ kernel
    own = jnp.take_along_axis(raised, of, axis=-1)
    return own, *(jnp.sum(side(raised[:, None], own[..., None]), axis=-1) for side in (jnp.greater, jnp.less))

  found = jax.lax.map(rank, jnp.stack([seen(name) for name in names]))
  return tuple(x.swapaxes(0, 1) for x in found)


def _through_norm(module, names, params, tokens, columns):
  """The last residual stream float32[B, D], a function from a name to what it wrote as the unembedding sees it, and the unembedding [D, V]."""
  c = module.config
  last = Site("post", c.n_layers - 1)
  heads = [Site("heads", layer) for layer in range(c.n_layers) if any(n.startswith(f"a{layer}.") for n in names)]
  plain = [Site("mlp", layer) for layer in range(c.n_layers)] + [Site(name) for name in names if name in _EMBEDDINGS]
  out = module.apply({"params": params}, tokens, capture=[last, *heads, *plain], at=columns, logits=False, exact=True)
  final = out[last][:, 0].astype(jnp.float32)

  def centred(x):
    return x - jnp.mean(x, axis=-1, keepdims=True) if c.norm == "layer" else x

  divisor = jnp.sqrt(jnp.mean(jnp.square(centred(final)), axis=-1, keepdims=True) + c.norm_eps)  # [B, 1], frozen

  def written(name):
    if name in _EMBEDDINGS:
      return out[Site(name)][:, 0]
    if name.startswith("m"):
      return out[Site("mlp", int(name[1:]))][:, 0]
    if name.startswith("b_O."):
      return jnp.broadcast_to(params[f"blocks_{name[4:]}"]["attn"]["o"]["bias"], final.shape)
    layer, head = map(int, name[1:].split("."))
    return out[Site("heads", layer)][:, 0, head]

  def seen(name):
    return centred(written(name).astype(jnp.float32)) / divisor * params["ln_f"]["scale"]

  return final, seen, params["embed"].T if c.tied else params["unembed"]["kernel"]
