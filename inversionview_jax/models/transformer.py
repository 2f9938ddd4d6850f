"""One decoder-only transformer, for target models and decoders alike: GPT-2, and the Llama family by configuration.

A forward pass can return the activation at any site and can replace it (`capture`). A decoder passes `slots`: vectors of each layer that
join that layer's keys and values and nothing else (paper, section 2.2).

Shapes: B batch, T tokens, P positions, L layers, H heads, G key/value heads, J slots of width M, D d_model, K d_head, V vocabulary,
C cached positions.
"""

from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from inversionview_jax.devices import numerics
from inversionview_jax.models import site_shapes
from inversionview_jax.models.attention import Attention
from inversionview_jax.models.capture import Output, Padded, Recorder, SiteEdit, rows_at
from inversionview_jax.models.captured_norm import through_norm
from inversionview_jax.models.config import Compute, TransformerConfig
from inversionview_jax.models.cross_attention import CrossAttention
from inversionview_jax.models.experts import Experts, gated, has_experts
from inversionview_jax.models.layers import ACTIVATIONS, Linear, layer_norm, norm
from inversionview_jax.sites import Site

_MEMORY = 2**31  # bytes


def texts_that_fit(config: TransformerConfig, length: int, kept: int) -> int:
  """How many texts fit into about 2 GiB: `length` tokens of `kept` vectors each, and the MLP's inner ones."""
  return max(8, _MEMORY // (4 * length * (kept * config.d_model + 4 * max(config.d_mlp, config.expert_width))))


class Mlp(nn.Module):
  """float[B, T, D] -> float[B, T, D]: a linear map, an activation function (or a gate with one), a linear map."""

  config: TransformerConfig
  compute: Compute

  @nn.compact
  def __call__(
    self, x: jax.Array, deterministic: bool = True, recorder: Recorder | None = None, layer: int = 0
  ) -> jax.Array:
    c = self.config

    def inner_site(kind, rows):
      if recorder is None or not recorder.uses(kind):
        return rows
      return recorder.inner(kind, layer, rows.reshape(*x.shape[:-1], -1)).reshape(rows.shape)

    def linear(features, name, std=c.init_std):
      return Linear(features, std, name in c.biases, self.compute.dot_general, name=name)

    # One matrix of rows throughout, so that the activation function can write over its argument, the largest array of a layer.
    rows = x.reshape(-1, x.shape[-1])
    inner = linear(c.d_mlp, "fc")(rows)
    if c.gated:
      inner = gated(c, inner_site("mlp_pre", linear(c.d_mlp, "gate")(rows)), inner_site("mlp_linear", inner))
    else:
      inner = ACTIVATIONS[c.activation](inner_site("mlp_pre", inner))
    if c.activation.endswith("_ln"):
      inner = inner_site("mlp_mid", inner).reshape(*x.shape[:-1], -1)
      inner = through_norm(layer_norm(c.norm_eps, self.compute, "ln"), inner, recorder, "mlp_ln", layer)
      inner = inner.reshape(rows.shape[0], -1)
    inner = inner_site("mlp_post", inner)
    out = linear(c.d_model, "proj", c.init_std / (2 * c.n_layers) ** 0.5)(inner).reshape(x.shape)
    return nn.Dropout(c.dropout_resid)(out, deterministic=deterministic)


class Block(nn.Module):
  """One layer: attention, cross-attention if there is one, and MLP, each added to the residual stream."""

  config: TransformerConfig
  compute: Compute
  layer: int

  def setup(self) -> None:
    c = self.config
    if c.pre_norm:
      self.ln1 = norm(c, self.compute)
    if c.post_norm:
      self.ln1_post = norm(c, self.compute)
    self.attn = Attention(c, self.compute, self.layer)
    if not c.attn_only:
      if c.pre_norm:
        self.ln2 = norm(c, self.compute)
      if c.post_norm:
        self.ln2_post = norm(c, self.compute)
      self.mlp = Experts(c, self.compute, self.layer) if has_experts(c, self.layer) else Mlp(c, self.compute)
    if c.cross_width:
      self.cross, self.cross_ln = CrossAttention(c, self.compute), norm(c, self.compute)

  def _attention_read(self, x, recorder=None):
    return through_norm(self.ln1, x, recorder, "ln1", self.layer) if self.config.pre_norm else x

  def _attention_write(self, x, recorder=None):
    x = through_norm(self.ln1_post, x, recorder, "ln1_post", self.layer) if self.config.post_norm else x
    return x if recorder is None else recorder.inner("attn_out", self.layer, x)

  def _mlp_write(self, x, deterministic=True, recorder=None):
    x = through_norm(self.ln2, x, recorder, "ln2", self.layer) if self.config.pre_norm else x
    recorded = (recorder,) if isinstance(self.mlp, Experts) else (recorder, self.layer)
    written = self.mlp(x, deterministic, *recorded)
    return through_norm(self.ln2_post, written, recorder, "ln2_post", self.layer) if self.config.post_norm else written

  def _added(self, x, written, recorder, deterministic=True):
    """The residual stream behind a layer without cross-attention: `x`, in front of it, with what attention wrote and the MLP's write."""
    if self.config.attn_only:
      return recorder.through("post", self.layer, x + self._attention_write(written, recorder))
    if self.config.parallel:
      mlp = recorder.through("mlp", self.layer, self._mlp_write(x, deterministic, recorder))
      return recorder.through("post", self.layer, x + self._attention_write(written, recorder) + mlp)
    x = recorder.through("mid", self.layer, x + self._attention_write(written, recorder))
    x = x + recorder.through("mlp", self.layer, self._mlp_write(x, deterministic, recorder))
    return recorder.through("post", self.layer, x)

  def __call__(
    self,
    x: jax.Array,
    recorder: Recorder,
    slot: jax.Array | None = None,
    deterministic: bool = True,
    at: jax.Array | None = None,
    padded: Padded | None = None,
  ) -> jax.Array:
    """The residual stream behind this layer: float[B, T, D] -> float[B, T or P, D], P the positions `at`, int32[B, P].

    Args:
      x: float[B, T, D].
      recorder: captures and edits.
      slot: float[B, J, M] or None, this layer's slots.
      deterministic: False applies dropout.
      at: the positions to compute; all by default.
      padded: of texts with padding in front or inside.
    """
    crossed = bool(self.config.cross_width)
    read = self._attention_read(x, recorder)
    z, pattern = self.attn.mix(read, None if crossed else slot, deterministic, at, padded, recorder)
    z = recorder.inner_heads("z", self.layer, z)
    written = recorder.through_heads(self.layer, self.attn, z, self.attn.write(z, deterministic), pattern)
    if not crossed:
      return self._added(rows_at(x, at), written, recorder, deterministic)
    x = recorder.through("mid", self.layer, rows_at(x, at) + self._attention_write(written, recorder))
    x = x + self.cross(self.cross_ln(x), *self.cross.keys_values(slot), deterministic)  # type: ignore[arg-type]
    x = x + recorder.through("mlp", self.layer, self._mlp_write(x, deterministic, recorder))
    return recorder.through("post", self.layer, x)

  def cache(self, slot: jax.Array, length: int) -> Any:
    """What `step` needs before the first of `length` tokens.

    Args:
      slot: float[B, J, M].
      length: how many tokens will fit.

    Returns:
      (keys, values), float[J + length, G, K, B] each; with `cross_width` a pair: (keys, values) of the tokens alone, and of the slots.
    """
    c = self.config
    if c.cross_width:
      empty = jnp.zeros((length, c.kv_heads, c.d_head, slot.shape[0]), slot.dtype)
      return (empty, empty), self.cross.keys_values(slot)
    return self.extend_cache(self.attn.cached_keys_values(slot), length)

  def extend_cache(self, cache: Any, tokens: int) -> Any:
    """The same with room for so many tokens more."""
    if self.config.cross_width:
      return _padded(cache[0], tokens), cache[1]
    return _padded(cache, tokens)

  def step(
    self, x: jax.Array, cache: Any, at: jax.Array, slots: int, recorder: Recorder | None = None
  ) -> tuple[jax.Array, Any]:
    """One token: float[B, 1, D] at position `at`, int32[], behind J = `slots` -> float[B, 1, D] and the cache with it.

    A recorder captures vector sites of this token; its cache is one without `cross_width`.
    """
    if self.config.cross_width:
      cache, crossed = cache
      z, cache = self.attn.mix_cached(self._attention_read(x), cache, at, 0)
      x = x + self._attention_write(self.attn.write_cached(z))
      x = x + self.cross(self.cross_ln(x), *crossed)
      return x + self._mlp_write(x), (cache, crossed)
    z, cache = self.attn.mix_cached(self._attention_read(x, recorder), cache, at, slots, recorder)
    written = self.attn.write_cached(z)
    if recorder is None:
      attended = x + self._attention_write(written)
      if self.config.attn_only:
        return attended, cache
      return attended + self._mlp_write(x if self.config.parallel else attended), cache
    c, layer = self.config, self.layer
    heads = jnp.moveaxis(z.reshape(c.n_heads, c.d_head, -1), -1, 0)[:, None]  # [B, 1, H, K]
    recorder.inner_heads("z", layer, heads)
    no_pattern = jnp.zeros((1, c.n_heads, 1, 1))
    written = recorder.through_heads(layer, self.attn, heads, written, no_pattern)
    return self._added(x, written, recorder), cache


def _padded(keys_values, tokens: int):
  return tuple(jnp.pad(x, ((0, tokens), (0, 0), (0, 0), (0, 0))) for x in keys_values)


class Transformer(nn.Module):
  """A language model of the GPT-2 or the Llama family."""

  config: TransformerConfig
  compute: Compute = Compute()

  def setup(self) -> None:
    c, normal = self.config, nn.initializers.normal
    self.embed = self.param("embed", normal(c.embed_std), (c.vocab_size, c.d_model))
    if not c.rotary:
      self.pos_embed = self.param("pos_embed", normal(0.02), (c.n_ctx, c.d_model))
    self.blocks = [Block(c, self.compute, layer) for layer in range(c.n_layers)]
    self.ln_f = norm(c, self.compute, kind=c.final_norm)
    if not c.tied:
      self.unembed = Linear(c.outputs, use_bias="unembed" in c.biases)
    self.dropout = nn.Dropout(c.dropout_embed)

  def __call__(
    self,
    tokens: jax.Array,
    *,
    mask: jax.Array | None = None,
    slots: jax.Array | None = None,
    capture: Sequence[Site] = (),
    at: Any = None,
    choose: tuple[Sequence[Site], jax.Array] | None = None,
    edits: Sequence[SiteEdit] = (),
    logits: bool = True,
    logits_at: jax.Array | None = None,
    exact: bool = False,
    deterministic: bool = True,
  ) -> Output:
    """Runs the model.

    Args:
      tokens: int32[B, T]. Padding on the right needs no mask: causality keeps it from mattering, or `config.unattended`.
      mask: bool[B, T] or None; the tokens that are attended to. Positions are counted over them. None: all but those of `config.unattended`.
      slots: float[B, L, J, D] or None; J extra keys and values per layer.
      capture: sites to return; the layers behind the last of them are not run if `logits` is False.
      at: int32[B, P] or None; return vector sites at these positions only. Or a dict with such positions for each site that is captured;
        those of a head may be a function of its attention, float32[B, T, T].
      choose: (sites, int32[B, P]) or None; return the activation of one of these sites for each of the positions `at`, `Output.chosen`. It
        takes far less room than to capture all of them and to choose then.
      edits: activations to replace; a later edit of the same residual site wins.
      logits: whether to compute them.
      logits_at: int32[B, P] or None; compute float32[B, P, V] at these positions only, and nothing else of the last layer where there are
        neither captures nor edits.
      exact: keep the compiler from fusing across sites, so that results are bit by bit the same whatever is captured and edited.
      deterministic: False applies dropout, with the "dropout" random stream.
    """
    c = self.config
    # Token ids are never negative, which the compiler does not know.
    wanted = (*capture, *(choose[0] if choose else ()))
    chosen_width = max((site_shapes.width(c, site) for site in choose[0]), default=0) if choose else 0
    never = jnp.maximum(0, -jnp.min(tokens)) if exact else None
    recorder = Recorder(capture, at, edits, never, choose, chosen_width)
    dtype = jnp.dtype(self.compute.dtype)
    batch, length = tokens.shape
    if c.unattended:
      attended = ~jnp.isin(tokens, jnp.asarray(c.unattended))
      mask = attended if mask is None else mask & attended
    padded = None if mask is None else Padded.of_mask(mask)
    x = recorder.through("embed", None, self._embedded(tokens))
    if not c.rotary:
      if padded is None:
        positions = numerics.broadcast_rows(self.pos_embed[:length].astype(dtype), (batch, length, c.d_model))
      else:
        positions = jnp.take(self.pos_embed, padded.positions, axis=0).astype(dtype)
      x = x + recorder.through("pos_embed", None, positions)
    x = self.dropout(x, deterministic=deterministic)
    depth = c.n_layers if logits else max([0] + [site_shapes.depth(c, site) for site in wanted])
    only_at = None if wanted or edits else logits_at  # what the last layer computes
    for layer, block in enumerate(self.blocks[:depth]):
      x = recorder.through("pre", layer, x)
      slot = None if slots is None else slots[:, layer].astype(dtype)
      last_at = only_at if layer == c.n_layers - 1 else None
      if self.compute.remat and not (capture or edits or self.is_initializing()):
        # Without captures: a layer that runs twice would record them twice.
        x = nn.remat(lambda block, x, slot, at, padded: block(x, recorder, slot, deterministic, at, padded))(
          block, x, slot, last_at, padded
        )
      else:
        x = block(x, recorder, slot, deterministic, last_at, padded)
    if depth < c.n_layers:
      x = recorder.through("pre", depth, x)
    logits = logits or self.is_initializing()  # so that every parameter is made
    if not logits and recorder.uses("ln_final", "ln_final_scale"):
      through_norm(self.ln_f, x, recorder, "ln_final", None)
    out = self.logits(x, recorder, None if only_at is not None else logits_at) if logits else None
    return Output(out, recorder.captured, chosen=recorder.chosen)

  def _embedded(self, tokens):
    """int32[...] -> float[..., D]."""
    x = jnp.take(self.embed, tokens, axis=0).astype(jnp.dtype(self.compute.dtype))
    return x if self.config.embed_scale == 1.0 else x * jnp.asarray(self.config.embed_scale, x.dtype)

  def logits(self, x: jax.Array, recorder: Recorder | None = None, at: jax.Array | None = None) -> jax.Array:
    """float[..., D] -> float32[..., V]: final norm and unembedding, at the positions `at` of float[B, T, D] if there are any."""
    x, cap = rows_at(through_norm(self.ln_f, x, recorder, "ln_final", None), at), self.config.logit_cap
    x = (x @ self.embed.T.astype(x.dtype) if self.config.tied else self.unembed(x)).astype(jnp.float32)
    return cap * jnp.tanh(x / cap) if cap else x

  def init_cache(self, slots: jax.Array, length: int) -> tuple:
    """An empty cache for `length` tokens behind the slots: what `Block.cache` makes, per layer."""
    dtype = jnp.dtype(self.compute.dtype)
    return tuple(block.cache(slots[:, layer].astype(dtype), length) for layer, block in enumerate(self.blocks))

  def extend_cache(self, cache: tuple, tokens: int) -> tuple:
    """The same cache with room for so many tokens more."""
    return tuple(block.extend_cache(each, tokens) for block, each in zip(self.blocks, cache, strict=True))

  def step(self, tokens: jax.Array, position: jax.Array, cache: tuple, slots: int = 1) -> tuple[jax.Array, tuple]:
    """One token more: int32[B] at `position` (int32[], 0 for BOS), J = `slots` -> float32[B, V] logits of the next, and the cache."""
    x, cache, _ = self.advance(tokens, position, cache, slots)
    return self.logits(x)[:, 0], cache

  def advance(
    self, tokens: jax.Array, position: jax.Array, cache: tuple, slots: int = 1, capture: Sequence[Site] = ()
  ) -> tuple[jax.Array, tuple, dict[Site, jax.Array]]:
    """`step` without the logits.

    Args:
      tokens, position, cache, slots: as for `step`.
      capture: vector sites whose activations of this token are returned.

    Returns:
      The residual stream behind the last layer, float[B, 1, D], of which `logits` makes logits; the cache; and the activations that were
      captured, float[B, 1, D] each.
    """
    recorder = Recorder(capture, None, (), None) if capture else None
    x = self._embedded(tokens)[:, None, :]
    if recorder is not None:
      x = recorder.through("embed", None, x)
    if not self.config.rotary:
      learned = jnp.asarray(self.pos_embed)[position].astype(x.dtype)
      if recorder is not None:
        learned = recorder.through("pos_embed", None, jnp.broadcast_to(learned, x.shape))
      x = x + learned
    new = []
    for layer, (block, layer_cache) in enumerate(zip(self.blocks, cache, strict=True)):
      if recorder is not None:
        x = recorder.through("pre", layer, x)
      x, layer_cache = block.step(x, layer_cache, position, slots, recorder)
      new.append(layer_cache)
    if recorder is not None and recorder.uses("ln_final", "ln_final_scale"):
      through_norm(self.ln_f, x, recorder, "ln_final", None)
    return x, tuple(new), {} if recorder is None else recorder.captured

  def empty_cache(self, rows: int, length: int) -> tuple:
    """A cache of `length` tokens without slots (`slots` = 0 in `advance`): per layer (keys, values), float[C, G, K, B] each, zeros."""
    c = self.config
    blank = jnp.zeros((length, c.kv_heads, c.d_head, rows), jnp.dtype(self.compute.dtype))
    return tuple((blank, blank) for _ in range(c.n_layers))
