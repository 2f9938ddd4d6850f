"""One decoder-only transformer, for target models and decoders alike: GPT-2, and the Llama family by configuration.

A forward pass can return the activation at any site and can replace it (`capture`). A decoder passes `slots`: vectors of each layer that
join that layer's keys and values and nothing else (paper, section 2.2).

Shapes: B batch, T tokens, P positions, L layers, H heads, G key/value heads, D d_model, K d_head, V vocabulary, C cached positions.
"""

import dataclasses
from collections.abc import Sequence

import flax.linen as nn
import jax.numpy as jnp

from inversionview_jax.models.attention import Attention
from inversionview_jax.models.capture import Output, Recorder, SiteEdit, rows_at
from inversionview_jax.models.cross_attention import CrossAttention
from inversionview_jax.models.layers import ACTIVATIONS, NORMS, LayerNorm, Linear, RMSNorm, normal, spread
from inversionview_jax.sites import Site

__all__ = ["ACTIVATIONS", "LayerNorm", "Linear", "RMSNorm", "Transformer", "TransformerConfig"]


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
  """The shape of a transformer; plain data that is stored beside its parameters.

  The defaults are GPT-2's; `pretrained` has the values of the other families.

  Attributes:
    vocab_size, n_ctx, n_layers, n_heads, d_model: V, the longest T, L, H, D.
    d_mlp: inner width of the MLP.
    activation: one of `ACTIVATIONS`.
    norm: "layer" (LayerNorm) or "rms" (RMSNorm, which does not subtract the mean).
    norm_eps: added to the variance in norms.
    tied: the unembedding is the transposed embedding; otherwise it has a matrix of its own.
    attn_scale: scores are divided by the square root of `query_width`.
    query_width: 0 for d_head.
    n_kv_heads: G; H / G heads read each of them. 0 for H.
    head_width: K; 0 for D / H, which must be whole.
    rotary: K / 2 frequencies, by which `rotate` turns queries and keys; empty for learned position embeddings.
    rotary_gain: cos and sin are multiplied by this.
    unrotated: layers that turn nothing, and so know of positions only what causality tells them.
    windows: for each layer how many positions a query sees, its own included; 0 for all. Empty for all in every layer.
    biases: which linear maps have one.
    gated: the MLP is (activation(gate) * fc) @ proj.
    qk_norm: each head's queries and keys pass a norm of their own before they are turned.
    post_norm: what attention and MLP write passes a norm before it joins the residual stream.
    embed_scale: token embeddings are multiplied by this.
    attn_cap, logit_cap: scores and logits x become cap * tanh(x / cap); 0 for as they are.
    embed_std, init_std: of the token embedding, and of every other matrix, when they are initialized.
    cross_width: above 0, slots have this width and do not join the keys and values of attention: each layer has an attention of its own
      over them and a learned place that says nothing, between attention and MLP (paper, the decoder's cross-attention variant).
    dropout_embed, dropout_attn, dropout_resid: rates, used in training only.
    dtype: compute type, "float32" or "bfloat16"; norms, softmax and logits stay float32.
    quick: products of linear maps may take bfloat16 factors where that is quicker (`layers.shortens`): for decoders, whose samples the target
      measures afterwards.
    remat: gradients run each layer again instead of keeping what is inside of it (rematerialisation): less memory, a third more work.
  """

  vocab_size: int
  n_ctx: int
  n_layers: int
  n_heads: int
  d_model: int
  d_mlp: int
  activation: str = "gelu_new"
  norm_eps: float = 1e-5
  tied: bool = True
  attn_scale: bool = True
  embed_std: float = 0.02
  init_std: float = 0.02
  dropout_embed: float = 0.0
  dropout_attn: float = 0.0
  dropout_resid: float = 0.0
  dtype: str = "float32"
  norm: str = "layer"
  query_width: float = 0.0
  n_kv_heads: int = 0
  head_width: int = 0
  rotary: tuple[float, ...] = ()
  rotary_gain: float = 1.0
  unrotated: tuple[int, ...] = ()
  windows: tuple[int, ...] = ()
  biases: tuple[str, ...] = ("q", "k", "v", "o", "fc", "proj", "unembed")
  gated: bool = False
  qk_norm: bool = False
  post_norm: bool = False
  embed_scale: float = 1.0
  attn_cap: float = 0.0
  logit_cap: float = 0.0
  cross_width: int = 0
  remat: bool = False
  quick: bool = False

  def __post_init__(self):
    for name in ("rotary", "unrotated", "windows", "biases"):  # JSON has lists; a module's configuration is hashed
      if not isinstance(value := getattr(self, name), (list, tuple)):
        raise TypeError(f"{name} = {value!r} is not a list")
      object.__setattr__(self, name, tuple(value))

  @property
  def d_head(self) -> int:
    return self.head_width or self.d_model // self.n_heads

  @property
  def kv_heads(self) -> int:
    return self.n_kv_heads or self.n_heads

  @property
  def has_dropout(self) -> bool:
    return bool(self.dropout_embed or self.dropout_attn or self.dropout_resid)

  def stated(self) -> dict:
    """What differs from the defaults; so an attribute that a later version adds does not change what a model is called."""
    return {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if getattr(self, f.name) != f.default}

  def for_use(self) -> "TransformerConfig":
    """The same without what matters to training only."""
    return dataclasses.replace(
      self,
      embed_std=0.02,
      init_std=0.02,
      dropout_embed=0.0,
      dropout_attn=0.0,
      dropout_resid=0.0,
      remat=False,
      quick=False,
    )


_MEMORY = 2**31  # bytes


def texts_that_fit(config: TransformerConfig, length: int, kept: int) -> int:
  """How many texts of `length` tokens run at a time if what a model holds of them shall stay near 2 GiB: `kept` vectors of a token, and the MLP's."""
  return max(8, _MEMORY // (4 * length * (kept * config.d_model + 4 * config.d_mlp)))


class Mlp(nn.Module):
  config: TransformerConfig

  @nn.compact
  def __call__(self, x, deterministic=True):
    c = self.config
    shape = x.shape
    # As rows all along, so that the activation function's result takes the place of its argument, which is what a layer needs most memory for.
    x = x.reshape(-1, shape[-1])
    inner = Linear(c.d_mlp, std=c.init_std, bias="fc" in c.biases, quick=c.quick, name="fc")(x)
    if c.gated:
      inner = (
        ACTIVATIONS[c.activation](
          Linear(c.d_mlp, std=c.init_std, bias="gate" in c.biases, quick=c.quick, name="gate")(x)
        )
        * inner
      )
    else:
      inner = ACTIVATIONS[c.activation](inner)
    x = Linear(
      c.d_model, std=c.init_std / (2 * c.n_layers) ** 0.5, bias="proj" in c.biases, quick=c.quick, name="proj"
    )(inner).reshape(shape)
    return nn.Dropout(c.dropout_resid)(x, deterministic=deterministic)


class Block(nn.Module):
  config: TransformerConfig
  layer: int

  def setup(self):
    c = self.config
    norm = NORMS[c.norm]
    self.ln1, self.ln2 = norm(c.norm_eps), norm(c.norm_eps)
    if c.post_norm:
      self.ln1_post, self.ln2_post = norm(c.norm_eps), norm(c.norm_eps)
    self.attn, self.mlp = Attention(c, self.layer), Mlp(c)
    if c.cross_width:
      self.cross, self.cross_ln = CrossAttention(c), norm(c.norm_eps)

  def _attention_write(self, x):
    return self.ln1_post(x) if self.config.post_norm else x

  def _mlp_write(self, x, deterministic=True):
    written = self.mlp(self.ln2(x), deterministic)
    return self.ln2_post(written) if self.config.post_norm else written

  def __call__(self, x, recorder, slot=None, deterministic=True, at=None):
    crossed = bool(self.config.cross_width)
    z, pattern = self.attn.mix(self.ln1(x), None if crossed else slot, deterministic, at)
    recorder.keep(Site("pattern", self.layer), lambda: pattern)
    written = recorder.through_heads(self.layer, self.attn, z, self.attn.write(z, deterministic), pattern)
    x = recorder.through("mid", self.layer, rows_at(x, at) + self._attention_write(written))
    if crossed:
      x = x + self.cross(self.cross_ln(x), *self.cross.keys_values(slot), deterministic)
    x = x + recorder.through("mlp", self.layer, self._mlp_write(x, deterministic))
    return recorder.through("post", self.layer, x)

  def cache(self, slot, length: int):
    """What `step` needs, before the first of `length` tokens: float[B, J, M] -> (keys, values), float[J + length, G, K, B]; with
    `cross_width` (keys, values), without those of slots, and (keys, values) of the slots."""
    c = self.config
    if c.cross_width:
      empty = jnp.zeros((length, c.kv_heads, c.d_head, slot.shape[0]), slot.dtype)
      return (empty, empty), self.cross.keys_values(slot)
    return self.longer(self.attn.keys_values_rows_last(slot), length)

  def longer(self, cache, tokens: int):
    """The same with room for so many tokens more."""
    if self.config.cross_width:
      return _longer(cache[0], tokens), cache[1]
    return _longer(cache, tokens)

  def step(self, x, cache, at, slots: int):
    if self.config.cross_width:
      cache, crossed = cache
      z, cache = self.attn.mix_cached(self.ln1(x), cache, at, 0)
      x = x + self._attention_write(self.attn.write_rows_last(z))
      x = x + self.cross(self.cross_ln(x), *crossed)
      return x + self._mlp_write(x), (cache, crossed)
    z, cache = self.attn.mix_cached(self.ln1(x), cache, at, slots)
    x = x + self._attention_write(self.attn.write_rows_last(z))
    return x + self._mlp_write(x), cache


def _longer(keys_values, tokens: int):
  return tuple(jnp.pad(x, ((0, tokens), (0, 0), (0, 0), (0, 0))) for x in keys_values)


class Transformer(nn.Module):
  """A language model of the GPT-2 or the Llama family."""

  config: TransformerConfig

  def setup(self):
    c = self.config
    self.embed = self.param("embed", normal(c.embed_std), (c.vocab_size, c.d_model))
    if not c.rotary:
      self.pos_embed = self.param("pos_embed", normal(0.02), (c.n_ctx, c.d_model))
    self.blocks = [Block(c, layer) for layer in range(c.n_layers)]
    self.ln_f = NORMS[c.norm](c.norm_eps)
    if not c.tied:
      self.unembed = Linear(c.vocab_size, bias="unembed" in c.biases)
    self.dropout = nn.Dropout(c.dropout_embed)

  def __call__(
    self,
    tokens,
    *,
    slots=None,
    capture: Sequence[Site] = (),
    at=None,
    choose=None,
    edits: Sequence[SiteEdit] = (),
    logits: bool = True,
    logits_at=None,
    exact: bool = False,
    deterministic: bool = True,
  ) -> Output:
    """Runs the model.

    Args:
      tokens: int32[B, T]. Padding belongs on the right, where causality keeps it from mattering.
      slots: float[B, L, J, D] or None; J extra keys and values per layer.
      capture: sites to return; the layers behind the last of them are not run if `logits` is False.
      at: int32[B, P] or None; return vector sites at these positions only. Or a dict with such positions for each site that is captured;
        those of a head may be a function of its attention, float32[B, T, T].
      choose: (sites, int32[B, P]) or None; return the activation of one of these sites for each of the positions `at`, `Output.chosen`. It
        takes far less room than to capture all of them and to choose then.
      edits: activations to replace; a later edit of the same residual site wins.
      logits: whether to compute them.
      logits_at: int32[B, P] or None; compute float32[B, P, V] at these positions only, and nothing else of the last layer. Takes no
        captures or edits.
      exact: round at every site, so that results are bit by bit the same whatever is captured and edited; costs some fusion.
      deterministic: False applies dropout, with the "dropout" random stream.
    """
    c = self.config
    # Token ids are never negative; the compiler does not know.
    recorder = Recorder(capture, at, edits, jnp.maximum(0, -jnp.min(tokens)) if exact else None, choose)
    wanted = (*capture, *(choose[0] if choose else ()))
    dtype = jnp.dtype(c.dtype)
    batch, length = tokens.shape
    x = recorder.through("embed", None, self._embedded(tokens))
    if not c.rotary:
      positions = spread(self.pos_embed[:length].astype(dtype), (batch, length, c.d_model))
      x = x + recorder.through("pos_embed", None, positions)
    x = self.dropout(x, deterministic=deterministic)
    last = (
      c.n_layers if logits else 1 + max([-1] + [s.layer for s in wanted if s.layer is not None and s.kind != "pre"])
    )
    depth = max([last] + [s.layer for s in wanted if s.kind == "pre"])
    if logits_at is not None and (wanted or edits):
      raise ValueError("logits_at cannot be combined with captures or edits")
    for layer, block in enumerate(self.blocks[:depth]):
      x = recorder.through("pre", layer, x)
      slot = None if slots is None else slots[:, layer].astype(dtype)
      last_at = logits_at if layer == c.n_layers - 1 else None
      if c.remat and not (capture or edits or self.is_initializing()):
        # Nothing is captured, so nothing but x leaves the layer. (A recorder's captures would not survive its being run twice.)
        x = nn.remat(lambda block, x, slot, at: block(x, recorder, slot, deterministic, at))(block, x, slot, last_at)
      else:
        x = block(x, recorder, slot, deterministic, last_at)
    if depth < c.n_layers:
      x = recorder.through("pre", depth, x)
    logits = logits or self.is_initializing()  # so that every parameter is made
    return Output(self.logits(x) if logits else None, recorder.captured, chosen=recorder.chosen)

  def _embedded(self, tokens):
    """int32[...] -> float[..., D]."""
    x = jnp.take(self.embed, tokens, axis=0).astype(jnp.dtype(self.config.dtype))
    return x if self.config.embed_scale == 1.0 else x * jnp.asarray(self.config.embed_scale, x.dtype)

  def logits(self, x):
    """float[..., D] -> float32[..., V]: final norm and unembedding."""
    x, cap = self.ln_f(x), self.config.logit_cap
    x = (x @ self.embed.T.astype(x.dtype) if self.config.tied else self.unembed(x)).astype(jnp.float32)
    return cap * jnp.tanh(x / cap) if cap else x

  def init_cache(self, slots, length: int):
    """An empty cache for `length` tokens behind the slots: what `Block.cache` makes, per layer."""
    dtype = jnp.dtype(self.config.dtype)
    return tuple(block.cache(slots[:, layer].astype(dtype), length) for layer, block in enumerate(self.blocks))

  def longer_cache(self, cache, tokens: int):
    """The same cache with room for so many tokens more."""
    return tuple(block.longer(each, tokens) for block, each in zip(self.blocks, cache, strict=True))

  def step(self, tokens, position, cache, slots: int = 1):
    """One token more: int32[B] at `position` (int32[], 0 for BOS), J = `slots` -> float32[B, V] logits of the next, and the cache."""
    x = self._embedded(tokens)[:, None, :]
    if not self.config.rotary:
      x = x + self.pos_embed[position].astype(x.dtype)
    new = []
    for block, layer_cache in zip(self.blocks, cache, strict=True):
      x, layer_cache = block.step(x, layer_cache, position, slots)
      new.append(layer_cache)
    return self.logits(x)[:, 0], tuple(new)
