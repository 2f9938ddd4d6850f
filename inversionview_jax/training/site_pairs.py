"""Activations of every site for each text: for the statistics of sites, for evaluation, and for the token-count loss.

Shapes: B texts, T tokens, S sites, D width of the activation, E pairs per site and text.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from inversionview_jax.devices import parallel
from inversionview_jax.errors import InversionViewError
from inversionview_jax.sampling import collect
from inversionview_jax.sites import Site
from inversionview_jax.targets import Target
from inversionview_jax.tasks import Task


class SitePairs:
  """Draws pairs (text, activation) of every site at random positions of each text.

  Args:
    task: of the texts.
    target: its activations.
    sites: S of them.
    mesh: texts are divided over its data axis.
    texts_at_once: texts that the target is run on at a time.
  """

  def __init__(self, task: Task, target: Target, sites: Sequence[Site], mesh: Mesh, texts_at_once: int):
    self._task, self._target, self._sites, self._mesh = task, target, tuple(sites), mesh
    self._texts_at_once = texts_at_once
    self._programs: dict[int, Any] = {}  # E -> compiled program

  def draw(self, params: Any, texts: np.ndarray, seed: int, each: int = 1) -> collect.Pairs:
    """B * S * E pairs as NumPy arrays, the sites in turn for each text; made on all devices.

    Args:
      params: of the target.
      texts: int[B, T].
      seed: positions are a function of it and of a text's index.
      each: E.
    """
    size = min(len(texts), self._texts_at_once)
    size += -size % self._mesh.shape[parallel.DATA]
    program = self._program(each)
    rows = np.asarray(texts, np.int32), np.arange(len(texts), dtype=np.int32)
    return parallel.in_chunks(lambda part: program(params, *part, np.uint32(seed)), rows, size)

  def _program(self, each: int):
    if each not in self._programs:

      def pairs(params, tokens, index, seed):
        return self.pairs(params, tokens, parallel.fold_in_each(jax.random.key(seed), index), each)

      self._programs[each] = parallel.pmap(pairs, self._mesh, in_axes=(None, 0, 0, None), out_axes=0)
    return self._programs[each]

  def pairs(self, params: Any, tokens: jax.Array, keys: jax.Array, each: int = 1) -> collect.Pairs:
    """int32[B, T] texts, key[B] -> B * S * E pairs, for use inside of a program; one device's rows."""
    count = len(self._sites)
    mask, module = self._task.query_mask(tokens), self._target.module
    if self._task.bos_attention is None:
      at, _ = collect.draw(tokens, keys, mask, jnp.zeros(count), count * each, 0.0)
      activation, weight = collect.activations_each(module, params, tokens, at, self._sites), None
    else:  # one position of each text is the right one
      at, activation, counts = collect.attentive(
        module, params, tokens, mask, keys, self._sites, self._task.bos_attention
      )
      activation, weight = activation[:, :count], counts.reshape(-1).astype(jnp.float32)
    site = jnp.broadcast_to(jnp.tile(jnp.arange(count), each), at.shape)
    texts = jnp.repeat(tokens, count * each, axis=0)
    return collect.Pairs(texts, activation.reshape(len(texts), -1), site.reshape(-1), at.reshape(-1), weight)

  def training_pairs(self, pairs: collect.Pairs) -> collect.Pairs:
    """The pairs with a weight above 0; raises `InversionViewError` for a site that has fewer than two."""
    if pairs.weight is None:
      return pairs
    kept = pairs.weight > 0
    for number, site in enumerate(self._sites):
      if (count := int(kept[pairs.site == number].sum())) < 2:
        raise InversionViewError(
          f"{site} attends to BOS with {self._task.bos_attention:g} or more in all but {count} of {int((pairs.site == number).sum()):,} texts: "
          "it is not read; leave it out of sites, or raise inputs.bos_attention"
        )
    return jax.tree.map(lambda x: x[kept], pairs)
