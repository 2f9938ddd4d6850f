"""Warm start of a target: the parameters of a finished one, chosen embeddings reinitialised, noise added to W_Q and W_K.

A small target can end with two tokens that it does not distinguish: their embeddings are equal, or alike in the few directions that its
attention scores depend on. The gradients of the two are then equal too. New embeddings for some of the tokens, and noise on the query and
key matrices, which makes scores depend on more directions, end that.
"""

from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.targets import load_target
from inversionview_jax.tasks import Task

_CANDIDATES = 4000  # random directions from which a new embedding is chosen


def parameters(start: ConfigDict, config: TransformerConfig, task: Task, seed: int) -> dict:
  """Initial parameters from a finished target.

  Args:
    start: `target` (a shipped target or a folder), `reinit_tokens` (text of the tokens that get a new embedding; may be empty),
      `qk_noise_std` (standard deviation of the noise added to query and key matrices).
    config: of the model that is trained; must have the shape of the one that is loaded.
    task: whose tokens `reinit_tokens` names.
    seed: of embeddings and noise.

  Returns:
    A pytree of float32 arrays, as `Transformer.init` gives.

  Raises:
    InversionViewError: no such target, another shape, or a token that the task does not have.
  """
  target = load_target(start.target, convention="raw", tokenizer=task.tokenizer)
  if target.config.for_inference() != config.for_inference():
    raise InversionViewError(
      f"target {start.target!r} has another shape ({target.config}) than the config describes ({config})"
    )
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: np.array(x, np.float32), target.params)  # writable copies
  forms = [_score_form(params[f"blocks_{layer}"]) for layer in range(config.n_layers)]
  for token in task.tokenizer.encode(start.reinit_tokens) if start.reinit_tokens else ():
    params["embed"][token] = _new_embedding(params["embed"], token, forms, rng)
  for layer in range(config.n_layers):
    attention = params[f"blocks_{layer}"]["attn"]
    for name in ("q", "k"):
      kernel = attention[name]["kernel"]
      noise = rng.normal(size=kernel.shape).astype(np.float32)
      attention[name]["kernel"] = kernel + start.qk_noise_std * noise
  return params


def _score_form(block: dict) -> np.ndarray:
  """float[D, D]: the bilinear form of a layer's attention scores in two residual streams, all heads together, of unit norm."""
  scale = block["ln1"]["scale"][:, None]
  form = (scale * block["attn"]["q"]["kernel"]) @ (scale * block["attn"]["k"]["kernel"]).T
  return form / np.linalg.norm(form)


def _new_embedding(embed: np.ndarray, token: int, forms: Sequence[np.ndarray], rng: np.random.Generator) -> np.ndarray:
  """float[D]: of many random directions the one whose attention scores with all other tokens are lowest, with the token's own norm."""
  others = np.delete(embed, token, axis=0)
  others = others / np.linalg.norm(others, axis=1, keepdims=True)
  candidates = rng.normal(size=(_CANDIDATES, embed.shape[1]))
  candidates /= np.linalg.norm(candidates, axis=1, keepdims=True)
  highest = np.max(
    [np.maximum((candidates @ m @ others.T).max(axis=1), (candidates @ m.T @ others.T).max(axis=1)) for m in forms],
    axis=0,
  )
  return candidates[np.argmin(highest)] * np.linalg.norm(embed[token])
