"""Records and texts of .txt and .jsonl files, TensorFlow Datasets, and Hugging Face datasets saved to disk.

Every record comes with its file and line, for error messages.
"""

import glob
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any

from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import open_file, parse_json, path_of, read_lines

TFDS = "tfds:"


def absolute(files: str | Sequence[str]) -> list[str]:
  """Absolute paths of files and patterns; names of TensorFlow Datasets ("tfds:name") unchanged."""
  files = [f for f in ([files] if isinstance(files, str | os.PathLike) else files) if str(f)]
  return [str(f) if str(f).startswith(TFDS) else str(path_of(f).absolute()) for f in files]


def records(
  files: str | Sequence[str], split: str = "train", data_dir: str = "", empty: str = "refuse"
) -> Iterator[tuple[str, dict]]:
  """Yields (where, record) for all records of some files; `where` is file and line, "a.jsonl:12".

  Args:
    files: paths, patterns ("data/*.txt"), "tfds:name" or "tfds:name/config"; one or several. A .txt has a text on each line (its field is
      "text"), a .jsonl an object on each line, a .json a list of objects; a folder is a Hugging Face dataset saved to disk (.arrow) or
      has .parquet files.
    split: of a dataset that has several.
    data_dir: folder of TensorFlow Datasets; "": the default of TFDS.
    empty: treatment of empty lines: "refuse" or "skip".

  Raises:
    InversionViewError: nothing there; a file that cannot be read; a line that is empty, not UTF-8 or not JSON (by its number).
  """
  if not files:
    raise InversionViewError(
      "no files to read texts from: set inputs.files (.txt, .jsonl, a dataset folder or tfds:NAME)"
    )
  for name in absolute(files):
    if name.startswith(TFDS):
      yield from _tfds(name, split, data_dir)
      continue
    paths = sorted(glob.glob(name, recursive=True)) if any(c in name for c in "*?[") else [name]
    if not paths:
      raise InversionViewError(f"no file matches {name!r}")
    for path in map(pathlib.Path, paths):
      yield from _of_path(path, split, empty)


def texts(
  files: str | Sequence[str], field: str = "text", split: str = "train", data_dir: str = "", empty: str = "refuse"
) -> Iterator[tuple[str, str]]:
  """Yields (where, text): one field of `records`, which must be text."""
  for where, record in records(files, split, data_dir, empty):
    value = record.get(field) if isinstance(record, dict) else None
    if not isinstance(value, str):
      have = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
      raise InversionViewError(f"{where}: there is no text in the field {field!r} (there: {have}); set inputs.field")
    if not value.strip():
      if empty == "skip":
        continue
      raise InversionViewError(f"{where}: the text is empty; remove it, or set inputs.empty to skip")
    yield where, value


def _of_path(path: pathlib.Path, split: str, empty: str):
  if path.is_dir():
    yield from _dataset(path, split)
  elif not path.exists():
    raise InversionViewError(f"no file {str(path)!r} to read texts from")
  elif path.suffix == ".json":
    content = read_json(path, _content(path), str(path))
    if not isinstance(content, list):
      raise InversionViewError(f"{path} holds no list of records; a file with one on each line is called .jsonl")
    yield from ((f"{path}[{i}]", record) for i, record in enumerate(content))
  elif path.suffix in (".jsonl", ".ndjson"):
    for where, line in _lines(path, empty):
      yield where, read_json(path, line.encode(), where)
  elif path.suffix == ".parquet":
    yield from _parquet(path)
  elif path.suffix == ".arrow":
    yield from _arrow(path)
  elif path.suffix in (".txt", ".text", ""):
    yield from ((where, {"text": line}) for where, line in _lines(path, empty))
  else:
    raise InversionViewError(
      f"{path}: files of this kind are not read; .txt, .jsonl, .json, .parquet and .arrow are, and folders of datasets"
    )


def _content(path: pathlib.Path) -> bytes:
  try:
    with open_file(path) as file:
      return file.read()
  except OSError as error:
    raise InversionViewError(f"cannot read {str(path)!r}: {error.strerror}") from None


def _lines(path: pathlib.Path, empty: str) -> Iterator[tuple[str, str]]:
  number = 0
  for number, line in read_lines(path):
    if line.strip():
      yield f"{path}:{number}", line
    elif empty != "skip":
      raise InversionViewError(f"{path}:{number} is empty; remove the line, or set inputs.empty to skip")
  if not number:
    raise InversionViewError(f"{path} is empty")


def read_json(path: str | os.PathLike, content: bytes, where: str) -> Any:
  """The value of a JSON file or line; raises `InversionViewError` naming `where`."""
  try:
    text = content.decode("utf-8-sig")  # without a byte order mark
  except UnicodeDecodeError as error:
    raise InversionViewError(f"{path} is not UTF-8 (at byte {error.start}); convert the file, as with iconv") from None
  return parse_json(text, where, finite=False)  # data sets that pandas wrote have NaN in fields that are not read


def _pyarrow(path):
  try:
    import pyarrow
  except ImportError:
    raise InversionViewError(
      f"reading {path} needs the pyarrow package; install it with: pip install 'inversionview-jax[datasets]'"
    ) from None
  return pyarrow


def _dataset(folder: pathlib.Path, split: str):
  """A folder that `datasets.save_to_disk` wrote, or one with .parquet files."""
  if (folder / "dataset_dict.json").exists():
    splits = read_json(folder, _content(folder / "dataset_dict.json"), str(folder / "dataset_dict.json"))
    if split not in splits.get("splits", ()):
      raise InversionViewError(f"{folder} has no split {split!r}; it has {', '.join(splits.get('splits', ()))}")
    folder = folder / split
  state = folder / "state.json"
  if state.exists():
    content = read_json(folder, _content(state), str(state))
    if content.get("_indices_files"):
      raise InversionViewError(f"{folder} keeps the order of its rows apart; save it again after .flatten_indices()")
    for entry in content.get("_data_files", ()):
      path = folder / entry["filename"]
      if not path.exists():
        raise InversionViewError(f"{folder} is not whole: {path.name} is missing")
      yield from _arrow(path)
    return
  parts = sorted(folder.rglob("*.parquet"))
  own = [path for path in parts if path.name.startswith(f"{split}-") or path.parent.name == split]
  if not parts:
    raise InversionViewError(
      f"{folder} holds no dataset: neither state.json (datasets' save_to_disk) nor .parquet files; or name the files, as in 'folder/*.txt'"
    )
  for path in own or parts:
    yield from _parquet(path)


def _arrow(path: pathlib.Path):
  arrow = _pyarrow(path)
  from pyarrow import ipc

  try:
    with arrow.memory_map(str(path)) as source:
      try:
        batches = ipc.open_stream(source)
      except arrow.ArrowInvalid:
        source.seek(0)
        file = ipc.open_file(source)
        batches = (file.get_batch(i) for i in range(file.num_record_batches))
      yield from _rows(path, batches)
  except (arrow.ArrowInvalid, OSError) as error:
    raise InversionViewError(f"cannot read {path}: truncated or corrupt ({str(error).splitlines()[0]})") from None


def _parquet(path: pathlib.Path):
  arrow = _pyarrow(path)
  from pyarrow import parquet

  try:
    with parquet.ParquetFile(path) as file:
      yield from _rows(path, file.iter_batches(1024))
  except (arrow.ArrowInvalid, OSError) as error:
    raise InversionViewError(f"cannot read {path}: truncated or corrupt ({str(error).splitlines()[0]})") from None


def _rows(path, batches):
  number = 0
  for batch in batches:
    for record in batch.to_pylist():
      yield f"{path}[{number}]", record
      number += 1


def _tfds(name: str, split: str, data_dir: str):
  import tensorflow_datasets as tfds

  dataset = name.removeprefix(TFDS)
  try:
    builder = tfds.builder(dataset, data_dir=data_dir or None)
  except Exception as error:  # pylint: disable=broad-except
    raise InversionViewError(f"no TensorFlow dataset {dataset!r}: {_first_line(error)}") from None
  if not builder.is_prepared():
    raise InversionViewError(
      f"the TensorFlow dataset {dataset!r} is not in {builder.data_path}; make it with tfds.builder({dataset!r}).download_and_prepare()"
    )
  if split not in builder.info.splits:
    raise InversionViewError(f"{dataset} has no split {split!r}; it has {', '.join(builder.info.splits)}")
  try:
    source = builder.as_data_source(split)
    for number in range(len(source)):
      record = source[number]
      yield f"{dataset}[{number}]", {k: v.decode() if isinstance(v, bytes) else v for k, v in record.items()}
  except InversionViewError:
    raise
  except Exception as error:  # pylint: disable=broad-except
    raise InversionViewError(f"cannot read the TensorFlow dataset {dataset!r}: {_first_line(error)}") from None


def _first_line(error) -> str:
  return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
