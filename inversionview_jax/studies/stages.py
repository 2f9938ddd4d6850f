"""Results of a study's steps on disk, so that the same command goes on where it was interrupted."""

import io
import json
import os
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import path_of, read_json, write_whole

_KEY = "key.json"


class Stages:
  """Arrays by the name of a step, in a folder that belongs to one study.

  Args:
    folder: made if it does not exist; None keeps nothing.
    key: plain data on which all results depend.

  Raises:
    InversionViewError: the folder holds the steps of another study, or cannot be made.
  """

  def __init__(self, folder: "str | os.PathLike | None", key: Mapping[str, Any]):
    self._folder: pathlib.Path | None = None
    if folder is None:
      return
    self._folder = path_of(folder)
    try:
      self._folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
      raise InversionViewError(f"cannot make the folder {self._folder}: {error.strerror}") from None
    written = json.loads(json.dumps(key))
    if (self._folder / _KEY).exists():
      other = read_json(self._folder / _KEY)
      if other != written:
        names = [name for name in {**other, **written} if other.get(name) != written.get(name)]
        raise InversionViewError(
          f"{self._folder} holds the steps of another study ({', '.join(names)} differ): take another --workdir, or remove it"
        )
    write_whole(self._folder / _KEY, json.dumps(written, indent=1) + "\n")

  def arrays(self, name: str, make: Callable[[], Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """The arrays of a step: those that are stored under its name, or else what `make` returns, which is then stored."""
    if self._folder is None:
      return dict(make())
    path = self._folder / f"{name}.npz"
    if path.exists():
      try:
        with np.load(path, allow_pickle=False) as stored:
          return {key: stored[key] for key in stored.files}
      except (OSError, ValueError, EOFError) as error:
        raise InversionViewError(f"{path} cannot be read ({error}): remove it, and it is made again") from None
    made = dict(make())
    content = io.BytesIO()
    np.savez(content, **made)  # type: ignore[arg-type]
    write_whole(path, content.getvalue())
    return made
