"""What an interrupted search has done already, in a folder: a JSON file for each step, with the settings that it was made with."""

import dataclasses
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

from inversionview_jax.causal.circuits import contents as what
from inversionview_jax.causal.circuits.contents import Contents
from inversionview_jax.causal.circuits.result import preimage_file
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import path_of, write_whole
from inversionview_jax.preimage import Preimage

_CONTENTS = "contents"


@dataclasses.dataclass(frozen=True)
class Stages:
  """The steps of a search that are kept in a folder; without a folder nothing is.

  Attributes:
    folder: of the circuit; None: nothing is kept.
    key: a digest of what the search is done with; steps of another are not taken.
  """

  folder: pathlib.Path | None
  key: str

  @classmethod
  def of(cls, out: "str | pathlib.Path | None", made_with: Mapping[str, Any]) -> "Stages":
    """The steps of a search with these settings."""
    text = json.dumps(made_with, sort_keys=True, default=str)
    return cls(None if out is None else path_of(out), hashlib.sha256(text.encode()).hexdigest()[:16])

  def _path(self, name: str) -> pathlib.Path | None:
    return None if self.folder is None else self.folder / "steps" / f"{name}.json"

  def load(self, name: str) -> Any:
    """What was kept of a step; None where nothing of these settings was."""
    path = self._path(name)
    if path is None or not path.is_file():
      return None
    try:
      data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
      return None  # made again
    return data["result"] if isinstance(data, dict) and data.get("key") == self.key else None

  def save(self, name: str, result: Any) -> Any:
    """Keeps the result of a step, plain data, and returns it as it would be read."""
    text = json.dumps({"key": self.key, "result": result}, ensure_ascii=False)
    path = self._path(name)
    if path is not None:
      path.parent.mkdir(parents=True, exist_ok=True)
      write_whole(path, text + "\n")
    return json.loads(text)["result"]

  def save_contents(self, contents: Mapping[str, Contents]) -> None:
    """Keeps what nodes carry, with their preimages."""
    if self.folder is None:
      return
    data = {}
    for name, one in contents.items():
      files = [preimage_file(name, i) for i in range(len(one.preimages))]
      for file, preimage in zip(files, one.preimages, strict=True):
        (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        preimage.to_json(self.folder / file)
      carried = [each.to_dict() for each in one.carried]
      data[name] = {
        "carried": carried,
        "bits": one.bits,
        "queries": one.queries,
        "problem": one.problem,
        "files": files,
      }
    self.save(_CONTENTS, data)

  def load_contents(self) -> dict[str, Contents] | None:
    """What nodes carry, where it was kept whole."""
    data = self.load(_CONTENTS)
    if data is None or self.folder is None:
      return None
    try:
      return {
        name: Contents(
          tuple(what.from_dict(each) for each in one["carried"]),
          None if one["bits"] is None else tuple(one["bits"]),
          one["queries"],
          tuple(Preimage.from_json(self.folder / file) for file in one["files"]),
          one["problem"],
        )
        for name, one in data.items()
      }
    except (OSError, InversionViewError):
      return None  # a file is gone: read again
