"""The mesh, and `pmap`: one program per device over the mesh's "data" axis.

`pmap` here has the contract of `jax.pmap` (one program per device, a named axis, explicit `psum` and `pmean`) and is written with
`jax.jit` and `jax.shard_map`, which is what `jax.pmap` itself has been since JAX 0.8. The "model" axis is left to the compiler.
"""

import functools
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import get_opaque_trace_state
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from inversionview_jax import progress
from inversionview_jax.devices import numerics
from inversionview_jax.errors import InversionViewError

DATA, MODEL = "data", "model"


def make_mesh(data: int | None = None, model: int = 1, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """A mesh ("data", "model"); one device is a mesh of one.

  Args:
    data: size of the data axis; None takes what `model` leaves.
    model: size of the model axis.
    devices: the devices to use; all by default.

  Raises:
    InversionViewError: the axes do not multiply to the number of devices, or one of them is empty.
  """
  devices = list(jax.devices() if devices is None else devices)
  data = len(devices) // max(model, 1) if data is None else data
  if data < 1 or model < 1 or data * model != len(devices):
    raise InversionViewError(f"a mesh of {data} x {model} (data x model) does not divide {len(devices)} devices")
  if devices[0].platform == "tpu" and len(devices) > 1:  # neighbours on the torus; elsewhere they are in order already
    from jax.experimental import mesh_utils

    placed = mesh_utils.create_device_mesh((data, model), devices, allow_split_physical_axes=True)
  else:
    placed = np.asarray(devices).reshape(data, model)
  # Auto axes: jax.make_mesh would make explicit ones, in which every array's type carries its sharding.
  return Mesh(placed, (DATA, MODEL), axis_types=(AxisType.Auto,) * 2)


def mesh_of(config: Mapping, devices: Sequence[jax.Device] | None = None) -> Mesh:
  """The mesh of a config: `mesh.model` is the size of the model axis; without one, data-parallel over all devices."""
  model = (config.get("mesh") or {}).get("model", 1)
  if isinstance(model, bool) or not isinstance(model, int) or model < 1:
    raise InversionViewError(f"mesh.model = {model!r} must be a whole number of at least 1")
  return make_mesh(model=model, devices=devices)


def pmap(
  function: Callable, mesh: Mesh, in_axes: Sequence[int | None], out_axes: Any, *, donate_argnums: Sequence[int] = ()
) -> Callable:
  """Compiles `function` to run once per device of the data axis.

  Args:
    function: takes each device's shard; may call `jax.lax.psum(x, parallel.DATA)` and its like.
    in_axes: per argument the axis that is split over the devices (in all of its leaves), or None for a whole copy each.
    out_axes: a pytree prefix of the result: the axis along which shards are joined, or None where all devices agree.
    donate_argnums: arguments whose buffers the result may take over.

  Returns:
    A function of global arrays. Nothing is summed on its own: gradients need an explicit `pmean` (see the tests). Arguments that are not
    on the mesh yet (NumPy arrays, which every host must hold alike) are put there.
  """
  out_specs = jax.tree.map(_spec, out_axes, is_leaf=lambda x: x is None)
  mapped = per_device(function, mesh, tuple(map(_spec, in_axes)), out_specs)
  named = functools.wraps(function)(lambda *args: mapped(*args))
  program: Any = jit(named, platform(mesh), donate_argnums)
  if not spans_hosts(mesh):
    return program  # jit puts them there itself

  def call(*args):
    if _is_traced():
      return program(*args)
    return program(*(put(x, NamedSharding(mesh, _spec(axis))) for x, axis in zip(args, in_axes, strict=True)))

  wrapped: Any = functools.wraps(function)(call)
  wrapped._cache_size, wrapped.lower, wrapped.trace = program._cache_size, program.lower, program.trace
  return wrapped


def per_device(function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any) -> Callable:
  """The part of `pmap` that goes inside a larger jitted program: `jax.shard_map`, manual over "data" and left to the compiler over "model"."""
  if mesh.shape[DATA] == 1 and mesh.shape[MODEL] > 1:
    # XLA's partitioner fails on collectives over an axis of one device beside another that is left to it (jaxlib 0.10.2). There is one
    # shard, the whole; the axis keeps its name.
    def whole(*args):
      out = jax.vmap(function, in_axes=None, axis_name=DATA, axis_size=1)(*args)
      return jax.tree.map(lambda x: x[0], out)

    return whole
  return jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs, axis_names={DATA}, check_vma=False)


def _spec(axis: int | None) -> PartitionSpec:
  return PartitionSpec() if axis is None else PartitionSpec(*(None,) * axis, DATA)


def platform(mesh: Mesh) -> str:
  return mesh.devices.flat[0].platform


def spans_hosts(mesh: Mesh) -> bool:
  """Whether some of its devices belong to other processes."""
  return len({device.process_index for device in mesh.devices.flat}) > 1


def put(tree: Any, sharding: Any) -> Any:
  """Every leaf on the devices of a sharding (or of a tree of them); what every host must hold alike, where there are several.

  Leaves that are spread over the devices of several hosts already stay as they are.
  """

  def one(x, where):
    if isinstance(x, jax.Array) and (x.sharding == where or not x.is_fully_addressable):
      return x
    if where.is_fully_addressable:
      return jax.device_put(x, where)
    x = np.asarray(x)
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

  one_for_all = isinstance(sharding, jax.sharding.Sharding)
  return jax.tree.map(lambda x: one(x, sharding), tree) if one_for_all else jax.tree.map(one, tree, sharding)


def fetch(tree: Any) -> Any:
  """Every leaf as a NumPy array, on every host; the hosts must call this together."""

  def one(x):
    if not isinstance(x, jax.Array) or x.is_fully_addressable or x.is_fully_replicated:
      return np.asarray(x)
    from jax.experimental import multihost_utils

    return np.asarray(multihost_utils.process_allgather(x, tiled=True))

  return jax.tree.map(one, tree)


def replicate(tree: Any, mesh: Mesh) -> Any:
  """A whole copy of every leaf on every device."""
  return put(tree, NamedSharding(mesh, PartitionSpec()))


def from_parts(shape: tuple[int, ...], mesh: Mesh, axis: int, part: Callable[[int, int], np.ndarray]) -> jax.Array:
  """An array split along `axis` over the data axis, of which each host makes only what its own devices hold.

  Args:
    shape: of the whole.
    mesh: ("data", "model").
    axis: the one that is split.
    part: (shard, number of shards) -> that shard's slice of the array; called once for each shard this host holds.
  """
  shards, made = mesh.shape[DATA], {}

  def slice_of(index):
    shard = (index[axis].start or 0) * shards // shape[axis]
    if shard not in made:
      made[shard] = part(shard, shards)
    return made[shard]

  return jax.make_array_from_callback(shape, NamedSharding(mesh, _spec(axis)), slice_of)


def shard(tree: Any, mesh: Mesh, axis: int = 0) -> Any:
  """Every leaf split over the data axis; raises `InversionViewError` if a leaf does not divide."""
  size = mesh.shape[DATA]
  for leaf in jax.tree.leaves(tree):
    if leaf.shape[axis] % size:
      raise InversionViewError(
        f"a batch of {leaf.shape[axis]} does not divide over {size} devices; use a multiple of {size}"
      )
  return put(tree, NamedSharding(mesh, _spec(axis)))


def pad_rows(rows: np.ndarray, size: int) -> np.ndarray:
  """Rows and copies of the first of them, `size` in all, so that a short batch has the shape of the others; the caller cuts them off."""
  return np.concatenate([rows, np.repeat(rows[:1], size - len(rows), axis=0)])


def in_chunks(program: Callable, rows: Any, size: int) -> Any:
  """Runs a program of fixed shape over any number of rows: chunk, pad the last chunk, run, trim.

  Args:
    program: (chunk of rows) -> a pytree of arrays whose first axis is that of the chunk, times a whole number.
    rows: a pytree of arrays with N rows each.
    size: rows of a chunk; the last one is filled up with copies of its first row.

  Returns:
    The results for the N rows, a pytree of NumPy arrays.
  """
  count, parts = len(jax.tree.leaves(rows)[0]), []
  for start in progress.counted(range(0, count, size)):
    chunk = jax.tree.map(lambda x: pad_rows(np.asarray(x[start : start + size]), size), rows)
    valid = min(size, count - start)
    out = fetch(program(chunk))
    parts.append(jax.tree.map(lambda x: x[: len(x) // size * valid], out))
  return parts[0] if len(parts) == 1 else jax.tree.map(lambda *each: np.concatenate(each), *parts)


def fold_in_each(key: jax.Array, index: jax.Array) -> jax.Array:
  """One key per global index, int32[N] -> key[N], so that results do not depend on the number of devices."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, index)


def jit(
  function: Callable, platform: str | None = None, donate_argnums: int | Sequence[int] = (), **kwargs: Any
) -> Callable:
  """`jax.jit` with this package's compiler options where JAX takes them: at the top level, not under another transformation.

  Args:
    function: what is compiled.
    platform: for which; None for JAX's default backend, which is looked up at the first call and not when a module is imported.
    donate_argnums: arguments whose buffers the result may take over; at the top level.
    **kwargs: of `jax.jit`.

  Returns:
    The compiled function, with the `trace` and `lower` of `jax.jit`. Under `jax.jit`, `jax.grad`, `jax.jvp` or `jax.vmap` it is plain
    `jax.jit(function)`: `compiler_options` may only be given to the outermost `jit`.
  """
  plain = jax.jit(function, **kwargs)

  @functools.cache
  def compiled():
    target = platform or jax.default_backend()
    options = numerics.compiler_options(target)
    return target, jax.jit(function, donate_argnums=donate_argnums, compiler_options=options, **kwargs)

  def at_top_level(run, *args, **named):
    target, program = compiled()
    with numerics.compiled_for(target):
      return run(program)(*args, **named)

  def call(*args, **named):
    if _is_traced():
      return plain(*args, **named)
    return at_top_level(lambda program: program, *args, **named)

  wrapped: Any = functools.wraps(function)(call)
  wrapped._cache_size = lambda: compiled()[1]._cache_size()
  wrapped.trace = functools.partial(at_top_level, lambda program: program.trace)
  wrapped.lower = functools.partial(at_top_level, lambda program: program.lower)
  return wrapped


def _is_traced() -> bool:
  """Whether a JAX transformation is under way in this thread."""
  return get_opaque_trace_state() != _top_level()


@functools.cache
def _top_level():
  with jax.core.eval_context():
    return get_opaque_trace_state()


def use_compilation_cache() -> None:
  """Keeps compiled programs on disk between processes, unless JAX_COMPILATION_CACHE_DIR is set (empty: not at all).

  JAX's own default keeps only what took a second to compile; here a reader's start-up is many programs below that.
  """
  directory = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
  if "JAX_COMPILATION_CACHE_DIR" in os.environ or directory is not None:
    return
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  jax.config.update("jax_compilation_cache_dir", os.path.join(home, "inversionview_jax", "xla"))
  jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
  jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
