"""The compiled programs of path patching. What is sent from where and to which head is data; only a receiver's layer is compiled in.

Shapes: B pairs, T tokens, L layers, H heads, K d_head, D d_model.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from inversionview_jax.causal.circuits.ablation import captured_parts, difference
from inversionview_jax.devices import parallel
from inversionview_jax.models.capture import Recorder, SiteEdit
from inversionview_jax.sites import Site

_INPUTS = ("q_heads", "k_heads", "v_heads")


@functools.cache
def captures(module, mesh) -> Callable:
  """(params, rows) -> what both runs hold, each [B, ...]: "z" and "mlp" of the clean and ("other_") of the corrupted one, the residual streams
  that attention and MLP of each layer read ("attention", "inside", float[B, L, T, D]), the last one ("last"), and how the embeddings differ
  ("embedding"), float[B, T, D]."""
  config, layers = module.config, range(module.config.n_layers)
  embedding = [Site("embed"), *(() if config.rotary else (Site("pos_embed"),))]
  pre = [Site("pre", layer) for layer in layers]
  mid = [] if config.attn_only else pre if config.parallel else [Site("mid", layer) for layer in layers]
  last = Site("post", config.n_layers - 1)

  def run(params, rows):
    z, mlp, out = captured_parts(module, params, rows["clean"], [*embedding, *dict.fromkeys([*pre, *mid]), last])
    other_z, other_mlp, other = captured_parts(module, params, rows["corrupted"], embedding)
    changed = sum(other[site].astype(jnp.float32) - out[site] for site in embedding)
    found = {"z": z, "other_z": other_z, "last": out[last], "embedding": changed}
    found["attention"] = jnp.stack([out[site] for site in pre], axis=1)
    if mlp is not None:
      found |= {"mlp": mlp, "other_mlp": other_mlp, "inside": jnp.stack([out[site] for site in mid], axis=1)}
    return found

  return parallel.pmap(run, mesh, (None, 0), 0)


@functools.cache
def sender_change(module, mesh) -> Callable:
  """(params, sender, rows, runs) -> float[B, T, D]: what the sender's corrupted write changes in the residual stream."""

  def changed(model, sender, group, runs):
    here = group == sender["group"]
    change = jnp.where((here & (sender["layer"] < 0))[..., None], runs["embedding"], 0)
    for layer, block in enumerate(model.blocks):
      mine, z = here & (sender["layer"] == layer), runs["z"][:, layer]
      head = (jnp.arange(z.shape[2]) == sender["part"])[:, None]
      other = jnp.where(mine[:, :, None, None] & head, runs["other_z"][:, layer], z)
      # As attention writes it: a norm behind attention takes all heads together.
      change = change + block._attention_write(block.attn.write(other)) - block._attention_write(block.attn.write(z))
      if "mlp" in runs:
        is_mlp = mine & (sender["part"] == z.shape[2])
        change = change + jnp.where(is_mlp[..., None], runs["other_mlp"][:, layer] - runs["mlp"][:, layer], 0)
    return change

  def run(params, sender, rows, runs):
    return module.apply({"params": params}, sender, rows["group"], runs, method=changed)

  return parallel.pmap(run, mesh, (None, None, 0, 0), 0)


@functools.cache
def receiver_outputs(module, mesh, layer: int, of_mlp: bool) -> Callable:
  """(params, runs, change float[B, T, D]) -> the MLP's write float[B, T, D] in a changed residual stream, or the heads' z with only their
  queries, keys or values (first axis of three) made from it, float[3, B, T, H, K]; first axis behind B."""

  def outputs(model, runs, change):
    block = model.blocks[layer]
    if of_mlp:
      return block._mlp_write(runs["inside"][:, layer] + change)
    clean = block._attention_read(runs["attention"][:, layer])
    site_of = {kind: Site(kind, layer) for kind in _INPUTS}
    changed = Recorder(list(site_of.values()), None, (), None)
    block.attn.mix(block._attention_read(runs["attention"][:, layer] + change), recorder=changed)

    def with_only(kind):
      edit = SiteEdit(kind, jnp.array(layer), jnp.array(0), None, changed.captured[site_of[kind]])
      return block.attn.mix(clean, recorder=Recorder((), None, (edit,), None))[0]

    return jnp.stack([with_only(kind) for kind in _INPUTS], axis=1)  # [B, 3, T, H, K]

  def run(params, runs, change):
    return module.apply({"params": params}, runs, change, method=outputs)

  return parallel.pmap(run, mesh, (None, 0, 0), 0)


@functools.partial(jax.jit, static_argnums=(1,))
def _of_head(outputs, way: int, head):
  return jnp.take(outputs[:, way], head, axis=2)


def of_head(outputs: jax.Array, way: int, head: int) -> jax.Array:
  """float[B, 3, T, H, K] -> float[B, T, K]: one head's, by one of its inputs."""
  return _of_head(outputs, way, jnp.int32(head))


@functools.cache
def patched(module, mesh, of_mlp: bool) -> Callable:
  """(params, receiver, rows, output) -> float32[B]: the logit difference with the receiver's output at its own positions."""

  def run(params, receiver, rows, output):
    here = rows["group"] == receiver["group"]
    kind = "mlp" if of_mlp else "z"
    edit = SiteEdit(kind, receiver["layer"], receiver["part"], None, output, here)
    return difference(module, params, rows["clean"], [edit], rows)

  return parallel.pmap(run, mesh, (None, None, 0, 0), 0)


@functools.cache
def patched_logits(module, mesh) -> Callable:
  """(params, rows, runs, change) -> float32[B]: the logit difference of the last residual stream with a change."""

  def run(params, rows, runs, change):
    row, at = jnp.arange(len(change)), rows["read_at"]
    logits = module.apply({"params": params}, (runs["last"] + change)[row, at], method="logits")
    return logits[row, rows["answer"]] - logits[row, rows["foil"]]

  return parallel.pmap(run, mesh, (None, 0, 0, 0), 0)


@functools.cache
def gradients(module, mesh) -> Callable:
  """(params, rows) -> the gradients of the logit difference by z, float[B, L, T, H, K], and by the MLPs' writes, float[B, L, T, D]."""

  def run(params, rows):
    z, mlp, _ = captured_parts(module, params, rows["clean"])
    layers = range(module.config.n_layers)

    def objective(values):
      kinds = ("z_heads", "mlp")[: len(values)]
      edits = [
        SiteEdit(kind, jnp.array(n), jnp.array(0), None, value[:, n], mode="add")
        for kind, value in zip(kinds, values, strict=True)
        for n in layers
      ]
      return jnp.sum(difference(module, params, rows["clean"], edits, rows))

    found = jax.grad(objective)([jnp.zeros_like(x) for x in (z, mlp) if x is not None])
    return dict(zip(("z", "mlp"), found, strict=False))

  return parallel.pmap(run, mesh, (None, 0), 0)


@functools.cache
def estimate(mesh, of_mlp: bool) -> Callable:
  """(receiver, rows, runs, gradients, output) -> float32[]: the sum over pairs of the output's change times its gradient."""
  name = "mlp" if of_mlp else "z"

  def run(receiver, rows, runs, gradients, output):
    def mine(x):
      x = jnp.take(x[name], receiver["layer"], axis=1)
      return x if of_mlp else jnp.take(x, receiver["part"], axis=2)

    here = (rows["group"] == receiver["group"])[..., None]
    return jax.lax.psum(jnp.sum(jnp.where(here, (output - mine(runs)) * mine(gradients), 0)), parallel.DATA)

  return parallel.pmap(run, mesh, (None, 0, 0, 0, 0), None)
