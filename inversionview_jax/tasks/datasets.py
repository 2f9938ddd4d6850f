"""A task's inputs in memory, from a TFDS dataset that is made at its first use.

Shapes: N rows, T tokens.
"""

import contextlib
import itertools
import os
from collections.abc import Iterator

import numpy as np

from inversionview_jax.errors import InversionViewError, one_of
from inversionview_jax.files import path_of
from inversionview_jax.progress import bar
from inversionview_jax.tasks.base import TINY, Task

_CHUNK = 4096  # records read by one call; by the thousand they cost 10 us each, one by one 200
_SLOW = 50_000  # records that take about a second to read, and so deserve a progress bar


def load_rows(
  task: Task,
  split: str,
  *,
  config: str = "full",
  data_dir: str | os.PathLike | None = None,
  limit: int | None = None,
  progress: bool = True,
) -> np.ndarray:
  """The tokens of a split, in memory; row i is the input ``task.split(split)[i]``.

  The first call makes the dataset (TFDS ``inversionview_<task>``, in array_record files), in about a minute per million
  inputs; later calls read it, in about 10 seconds per million. Several processes may start at once on a local
  `data_dir`: one makes the dataset, the others wait. A bucket (``gs://``) has no locks: let one finish there first.

  Args:
    task: whose inputs.
    split: "train" or "test".
    config: "full", or "tiny" for the first 20,000 train and 5,000 test inputs.
    data_dir: where datasets are kept; by default ``$TFDS_DATA_DIR``, or else ``~/tensorflow_datasets``.
    limit: number of rows to read; None: all.
    progress: whether a bar is shown, on stderr, for what takes more than a second.

  Returns:
    int8[N, T], or int16 or int32 where the vocabulary needs it.

  Raises:
    InversionViewError: an unknown split or config, a limit below 1, a `data_dir` that cannot be written, or a dataset
      that is damaged or holds other inputs than the task makes today.
  """
  if split not in ("train", "test"):
    raise one_of("split", split, ("train", "test"))
  if config not in ("full", "tiny"):
    raise one_of("dataset config", config, ("full", "tiny"))
  if limit is not None and limit < 1:
    raise InversionViewError(f"limit is {limit}: give the number of rows to read, at least 1")
  if not task.dataset:
    index = task.split(split)[: {"full": None, "tiny": TINY[split]}[config]][:limit]
    return task.tokens(index).astype(_narrowest(task))
  root = os.fspath(data_dir or os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets")
  root = root if "://" in root else os.fspath(path_of(root))
  folder = os.path.join(root, f"inversionview_{task.name}", config)
  try:
    builder = _existing(task, config, root, folder, progress)
    with _naming(folder):
      return _read(builder, split, limit, progress)
  except OSError as error:
    raise InversionViewError(
      f"cannot make or open the dataset {folder} ({error}): give a data_dir (or TFDS_DATA_DIR) that can be written"
    ) from error


def _existing(task: Task, config: str, root: str, folder: str, progress: bool):
  """The TFDS builder of a dataset that exists, made first if it does not."""
  import tensorflow_datasets as tfds

  def find():
    with _naming(folder):
      return make_builder(config=config, data_dir=root)

  make_builder = tfds.builder_cls(f"inversionview_{task.name}")
  builder = find()
  if not builder.data_path.exists():
    with _lock(folder):
      # A new builder: it looks for its files once, and another process may have made them while this one waited.
      builder = find()
      if not builder.data_path.exists():
        total = sum(len(builder.indices(split)) for split in ("train", "test"))
        with bar(f"making {builder.name}/{config}", total, progress) as advance, _no_tfds_bars():
          builder.on_progress = advance
          builder.download_and_prepare()
  return builder


def _read(builder, split: str, limit: int | None, progress: bool) -> np.ndarray:
  """The tokens of a split, int8[N, T] or wider; a sample of 100 rows is compared with the task's, and a difference is an error."""
  import grain
  import tensorflow_datasets as tfds

  task, indices = builder.TASK, builder.indices(split)[:limit]
  source = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
  dtype = _narrowest(task)
  rows = np.empty((len(indices), task.length), dtype)
  chunks = grain.MapDataset.source(_Chunks(source, rows.shape, dtype))
  start = 0
  what, show = f"reading {builder.name}/{builder.builder_config.name}", progress and len(rows) > _SLOW
  with bar(what, len(rows), show) as advance:
    for chunk in chunks.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=4)):
      rows[start : start + len(chunk)] = chunk
      start += len(chunk)
      advance(len(chunk))
  sample = np.linspace(0, len(rows) - 1, 100, dtype=int)
  if not np.array_equal(rows[sample], task.tokens(indices[sample])):
    raise ValueError("it was made by another version of this package")
  return rows


def _narrowest(task: Task):
  """The narrowest integer type that holds the task's token ids."""
  return next(t for t in (np.int8, np.int16, np.int32) if task.tokenizer.vocab_size - 1 <= np.iinfo(t).max)


class _Chunks:
  """A grain data source whose element i holds the tokens of the i-th `_CHUNK` records: int[_CHUNK, T].

  Without TensorFlow, TFDS decodes all features of a record or none: 55 us. Taking one from its protocol buffer costs 4.
  """

  def __init__(self, source, shape: tuple[int, int], dtype):
    self._source, self._shape, self._dtype = source, shape, dtype

  def __len__(self) -> int:
    return -(-self._shape[0] // _CHUNK)

  def __getitem__(self, i: int) -> np.ndarray:
    from tensorflow_datasets.proto import tf_example_pb2

    records = self._source.__getitems__(range(i * _CHUNK, min((i + 1) * _CHUNK, self._shape[0])))
    parse = tf_example_pb2.Example.FromString
    ids = itertools.chain.from_iterable(parse(record).features.feature["tokens"].int64_list.value for record in records)
    return np.fromiter(ids, self._dtype).reshape(len(records), self._shape[1])


@contextlib.contextmanager
def _naming(folder: str) -> Iterator[None]:
  """Turns the different exceptions of TFDS, array_record and protobuf for a bad file into one line that names the folder."""
  try:
    yield
  except OSError:
    raise
  except Exception as error:  # pylint: disable=broad-except
    why = str(error).strip().split("\n")[0]
    raise InversionViewError(
      f"cannot read the dataset {folder} ({why}): delete that folder, and it will be made again"
    ) from error


@contextlib.contextmanager
def _lock(folder: str) -> Iterator[None]:
  """A lock that one process holds at a time; the system releases it when the process ends, however that happens."""
  if "://" in folder:
    yield
    return
  import fcntl

  os.makedirs(folder, exist_ok=True)
  with open(os.path.join(folder, ".lock"), "w") as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    yield


@contextlib.contextmanager
def _no_tfds_bars() -> Iterator[None]:
  """Turns TFDS's progress bars off, which have no total and would overwrite ours."""
  import tensorflow_datasets as tfds

  tfds.display_progress_bar(False)
  try:
    yield
  finally:
    tfds.display_progress_bar(True)
