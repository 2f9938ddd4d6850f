"""Training goes on from a finished target, with what got stuck shaken loose.

A small target can end with two tokens that it takes for the same: their embeddings have merged, or lie alike in the few directions that
the attention scores have kept. No gradient parts them any more. New embeddings for some of them, and noise on the query and key matrices,
which gives the scores directions again, do.
"""

from collections.abc import Sequence

import jax
import numpy as np
from ml_collections import ConfigDict

from inversionview_jax.errors import InversionViewError
from inversionview_jax.models.transformer import TransformerConfig
from inversionview_jax.targets.target import load_target
from inversionview_jax.tasks import Task

_TRIES = 4000


def parameters(start: ConfigDict, config: TransformerConfig, task: Task, seed: int):
  """Parameters to go on from.

  Args:
    start: `target` (a shipped target or a folder), `renew` (tokens that get a new embedding; may be empty), `stir` (standard deviation
      of the noise added to query and key matrices).
    config: of the model that is trained; must have the shape of the one that is loaded.
    task: whose tokens `renew` names.
    seed: of embeddings and noise.

  Returns:
    A pytree of float32 arrays, as `Transformer.init` gives.

  Raises:
    InversionViewError: no such target, another shape, or a token that the task does not have.
  """
  target = load_target(start.target, convention="raw", tokenizer=task.tokenizer)
  if target.config.for_use() != config.for_use():
    raise InversionViewError(
      f"target {start.target!r} has another shape ({target.config}) than the config asks for ({config})"
    )
  rng = np.random.default_rng(seed)
  params = jax.tree.map(lambda x: np.array(x, np.float32), target.params)  # copies that can be written to
  scores = [_scores(params[f"blocks_{layer}"]) for layer in range(config.n_layers)]
  for token in task.tokenizer.encode(start.renew) if start.renew else ():
    params["embed"][token] = _apart(params["embed"], token, scores, rng)
  for layer in range(config.n_layers):
    attention = params[f"blocks_{layer}"]["attn"]
    for name in ("q", "k"):
      kernel = attention[name]["kernel"]
      attention[name]["kernel"] = kernel + start.stir * rng.normal(size=kernel.shape).astype(np.float32)
  return params


def _scores(block) -> np.ndarray:
  """float[D, D]: what a layer's attention scores compare in two residual streams, all heads together, of unit size."""
  scale = block["ln1"]["scale"][:, None]
  found = (scale * block["attn"]["q"]["kernel"]) @ (scale * block["attn"]["k"]["kernel"]).T
  return found / np.linalg.norm(found)


def _apart(embed: np.ndarray, token: int, scores: Sequence[np.ndarray], rng) -> np.ndarray:
  """A new direction for a token's embedding: of many random ones, that which attention takes least for any other token."""
  others = np.delete(embed, token, axis=0)
  others = others / np.linalg.norm(others, axis=1, keepdims=True)
  tries = rng.normal(size=(_TRIES, embed.shape[1]))
  tries /= np.linalg.norm(tries, axis=1, keepdims=True)
  alike = np.max(
    [np.maximum((tries @ m @ others.T).max(axis=1), (tries @ m.T @ others.T).max(axis=1)) for m in scores], axis=0
  )
  return tries[np.argmin(alike)] * np.linalg.norm(embed[token])
