"""Sharding rules: parameters over the mesh's "model" axis, optimizer state over "data" as well.

A rule matches the end of a leaf's path, so that it holds for the parameters of a target, those of a decoder, their moving average and the
optimizer's moments alike, all of which name a matrix in the same way (`.../attn/q/kernel`).
"""

import re
from collections.abc import Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from inversionview_jax.devices.parallel import DATA, MODEL
from inversionview_jax.errors import InversionViewError

# (pattern, dimensions to shard over "model", the first that divides). Of two matrices that follow one another the first is split by its outputs
# and the second by its inputs, so that a layer needs one all-reduce.
RULES = (
  (r"(attn/[qkv]|mlp/(fc|gate)|encoder/(in_\d+|slot_\d+))/kernel$", (1,)),  # by outputs: heads, hidden units
  (r"(attn/[qkv]|mlp/(fc|gate)|encoder/(in_\d+|slot_\d+))/bias$", (0,)),
  (r"(attn/o|mlp/proj|encoder/out_\d+)/kernel$", (0,)),  # by inputs
  (r"mlp/experts/(gate|fc)/kernel$", (2,)),  # of a mixture of experts each expert, as an MLP
  (r"mlp/experts/(gate|fc)/bias$", (1,)),
  (r"mlp/experts/proj/kernel$", (1,)),
  (r"(^|/)embed$", (0, 1)),  # by tokens; by width where the vocabulary does not divide, as 50,257
  (r"(^|/)unembed/kernel$", (1, 0)),
  (r"(^|/)unembed/bias$", (0,)),
  (r"(^|/)(pos_embed|widen/kernel)$", (1,)),
)


def shards_optimizer(config: Mapping[str, Any]) -> bool:
  """Whether a config shards the optimizer's state over "data" as well (`mesh.shard_optimizer`)."""
  return bool((config.get("mesh") or {}).get("shard_optimizer", False))


def path_name(path: tuple[Any, ...]) -> str:
  """The key path of a leaf as a string, such as "blocks_0/attn/q/kernel"."""
  return "/".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def spec(name: str, shape: tuple[int, ...], mesh: Mesh, over_data: bool = False) -> PartitionSpec:
  """The `PartitionSpec` of one leaf.

  Args:
    name: its `path_name`.
    shape: its shape; a dimension that the axis size does not divide is not sharded.
    mesh: with the axes "data" and "model".
    over_data: also shard it over "data", along the largest dimension that divides (ZeRO-1: for arrays that a device updates and does not need
      whole in the forward pass).
  """
  axes: list[str | None] = [None] * len(shape)
  model, data = mesh.shape[MODEL], mesh.shape[DATA]
  if model > 1:
    dimensions = next((dims for rule, dims in RULES if re.search(rule, name)), ())
    split = next((d for d in dimensions if d < len(shape) and shape[d] and shape[d] % model == 0), None)
    if split is not None:
      axes[split] = MODEL
  if over_data and data > 1:
    free = [d for d, axis in enumerate(axes) if axis is None and shape[d] and shape[d] % data == 0]
    if free:
      axes[max(free, key=lambda d: shape[d])] = DATA
  # PartitionSpec(None) and PartitionSpec() mean the same but do not compare equal.
  while axes and axes[-1] is None:
    axes.pop()
  return PartitionSpec(*axes)


def specs(tree: Any, mesh: Mesh, over_data: bool = False) -> Any:
  """A tree of the `spec` of every leaf; a leaf is anything with a shape."""
  return jax.tree_util.tree_map_with_path(lambda path, x: spec(path_name(path), x.shape, mesh, over_data), tree)


def shardings(tree: Any, mesh: Mesh, over_data: bool = False) -> Any:
  """`specs` as `NamedSharding`s, for `jax.device_put` and for constraints inside a program."""
  return jax.tree.map(lambda s: NamedSharding(mesh, s), specs(tree, mesh, over_data), is_leaf=_is_spec)


def check_shardable(tree: Any, mesh: Mesh, what: str) -> None:
  """Checks that a model axis is of use.

  Args:
    tree: parameters.
    mesh: with the axes "data" and "model".
    what: whose parameters these are, for the message.

  Raises:
    InversionViewError: the mesh has a model axis, and no leaf of the tree can be sharded over it.
  """
  if mesh.shape[MODEL] == 1 or not jax.tree.leaves(tree):
    return
  if not any(MODEL in s for s in jax.tree.leaves(specs(tree, mesh), is_leaf=_is_spec)):
    raise InversionViewError(
      f"mesh.model = {mesh.shape[MODEL]} divides no matrix of the {what}: its widths must be multiples; take mesh.model = 1"
    )


def with_shardings(tree: Any, shardings: Any) -> Any:
  """`jax.ShapeDtypeStruct`s of the tree's shapes and dtypes with these shardings, for compiling without values."""
  return jax.tree.map(lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), tree, shardings)


def _is_spec(x: Any) -> bool:
  return isinstance(x, PartitionSpec)
