"""Where each parameter lives: rules that shard a tree over the mesh's "model" axis, and optimizer state over "data" as well.

A rule looks at the end of a leaf's path, so that it holds for the parameters of a target, those of a decoder, their moving average and the
optimizer's moments alike, all of which name a matrix in the same way (`.../attn/q/kernel`).
"""

import re

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inversionview_jax.devices.parallel import DATA, MODEL
from inversionview_jax.errors import InversionViewError

# The dimension that is split over "model", the first that divides: a pair of maps is split between them, so that a layer costs one sum.
RULES = (
  (r"(attn/[qkv]|mlp/(fc|gate)|encoder/(in_\d+|slot_\d+))/kernel$", (1,)),  # by what they write: heads, inner units
  (r"(attn/[qkv]|mlp/(fc|gate)|encoder/(in_\d+|slot_\d+))/bias$", (0,)),
  (r"(attn/o|mlp/proj|encoder/out_\d+)/kernel$", (0,)),  # by what they read
  (r"(^|/)embed$", (0, 1)),  # tokens; a vocabulary such as 50,257 does not divide, then the width
  (r"(^|/)unembed/kernel$", (1, 0)),
  (r"(^|/)unembed/bias$", (0,)),
  (r"(^|/)(pos_embed|widen/kernel)$", (1,)),
)


def spreads_optimizer(config) -> bool:
  """Whether a config spreads the optimizer's state over "data" as well (`mesh.shard_optimizer`)."""
  return bool((config.get("mesh") or {}).get("shard_optimizer", False))


def name_of(path) -> str:
  """The path of a leaf, as "blocks_0/attn/q/kernel"."""
  return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def spec(name: str, shape: tuple[int, ...], mesh: Mesh, spread: bool = False) -> PartitionSpec:
  """Where the leaf of this name and shape lives.

  Args:
    name: its path.
    shape: its shape; a dimension that does not divide is not split.
    mesh: ("data", "model").
    spread: also split it over "data", along the largest dimension that divides (ZeRO-1: what each device updates, not what it reads).
  """
  axes: list[str | None] = [None] * len(shape)
  model, data = mesh.shape[MODEL], mesh.shape[DATA]
  if model > 1:
    wanted = next((dims for rule, dims in RULES if re.search(rule, name)), ())
    split = next((d for d in wanted if d < len(shape) and shape[d] and shape[d] % model == 0), None)
    if split is not None:
      axes[split] = MODEL
  if spread and data > 1:
    free = [d for d, axis in enumerate(axes) if axis is None and shape[d] and shape[d] % data == 0]
    if free:
      axes[max(free, key=lambda d: shape[d])] = DATA
  while (
    axes and axes[-1] is None
  ):  # PartitionSpec(None) and PartitionSpec() are the same place, but do not compare equal
    axes.pop()
  return PartitionSpec(*axes)


def specs(tree, mesh: Mesh, spread: bool = False):
  """The `spec` of every leaf (anything with a shape)."""
  return jax.tree_util.tree_map_with_path(lambda path, x: spec(name_of(path), x.shape, mesh, spread), tree)


def shardings(tree, mesh: Mesh, spread: bool = False):
  """The same as shardings, for `jax.device_put` and for constraints inside a program."""
  return jax.tree.map(
    lambda s: NamedSharding(mesh, s), specs(tree, mesh, spread), is_leaf=lambda x: isinstance(x, PartitionSpec)
  )


def check_splits(tree, mesh: Mesh, what: str) -> None:
  """Raises `InversionViewError` if the mesh has a model axis and no leaf of the tree can be split over it: nothing would be gained."""
  if mesh.shape[MODEL] == 1 or not jax.tree.leaves(tree):
    return
  found = jax.tree.leaves(specs(tree, mesh), is_leaf=lambda x: isinstance(x, PartitionSpec))
  if not any(MODEL in s for s in found):
    raise InversionViewError(
      f"mesh.model = {mesh.shape[MODEL]} divides no matrix of the {what}: its widths must be multiples; take mesh.model = 1"
    )


def with_shardings(tree, where):
  """The tree as `jax.ShapeDtypeStruct`s that say where each leaf lives, for compiling without the numbers."""
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, where)
