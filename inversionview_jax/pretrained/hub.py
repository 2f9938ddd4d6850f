"""Models of the Hugging Face Hub by their id: from the local cache, or downloaded into it through `huggingface_hub`.

What is in the cache is used without a look at the network. Only config.json, safetensors and files of tokenizers are downloaded, never pickles.
HF_HOME, HF_HUB_CACHE, HF_HUB_OFFLINE, HF_ENDPOINT and HF_TOKEN count as they do in `huggingface_hub`, read when a model is loaded.
"""

import contextlib
import dataclasses
import errno
import os
import pathlib
import re
import shutil
from typing import Any

from inversionview_jax import terminal, values
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import read_json
from inversionview_jax.pretrained.tokenizer_files import SETTINGS, VOCABULARIES

# Ids from before every model had an owner. No other id is without one.
CANONICAL = {
  "gpt2": "openai-community/gpt2",
  "gpt2-medium": "openai-community/gpt2-medium",
  "gpt2-large": "openai-community/gpt2-large",
  "gpt2-xl": "openai-community/gpt2-xl",
  "distilgpt2": "distilbert/distilgpt2",
}
_PART = r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}"
_ID = re.compile(rf"((?:{_PART}/)?{_PART})(?:@([A-Za-z0-9][A-Za-z0-9._/+-]{{0,199}}))?")
_FILES = (
  ".gguf",
  ".safetensors",
  ".json",
  ".bin",
  ".pt",
  ".pth",
  ".py",
  ".zip",
)  # such a name is a file that is not there
_COMMIT = re.compile(r"[0-9a-f]{40}")
_WHOLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
_SPARE = 50_000_000  # bytes that a download leaves free


@dataclasses.dataclass(frozen=True)
class Snapshot:
  """A model in the local cache.

  Attributes:
    folder: with its config.json, weights and tokenizer.
    repository: its id, as OWNER/NAME.
    revision: the hash of its commit.
  """

  folder: pathlib.Path
  repository: str
  revision: str

  @property
  def id(self) -> str:
    """OWNER/NAME@COMMIT, which is this snapshot for ever."""
    return f"{self.repository}@{self.revision}"


def parse(name: str) -> tuple[str, str | None] | None:
  """``(id, revision or None)`` of "OWNER/NAME", "OWNER/NAME@REVISION" or one of `CANONICAL`; None where a name cannot be an id."""
  match = _ID.fullmatch(name)
  if match is None or "--" in match[1] or ".." in name or match[1].lower().endswith(_FILES):
    return None
  return (match[1], match[2]) if "/" in match[1] or match[1] in CANONICAL else None


def snapshot(name: str) -> Snapshot:
  """The model of an id, in the local cache; downloads what is not there.

  Args:
    name: OWNER/NAME, or one of `CANONICAL`, with @REVISION (a branch, a tag or the hash of a commit) where it is not the main one.

  Raises:
    InversionViewError: no such model, revision or safetensors; a gated or private one; no network, space or permission; an interrupted download.
  """
  parsed = parse(name)
  if parsed is None:
    raise InversionViewError(f"{name!r} is no id of a model: give OWNER/NAME, or OWNER/NAME@REVISION")
  where, revision = _Place.now(), parsed[1]
  ids = _spellings(parsed[0])
  cached = [found for each in ids if (found := where.cached(each, revision))]
  for found in cached:
    if _lacks(found.folder) is None:
      if not where.offline:
        _complete_tokenizer(where, found)
      return found
  if where.offline:
    if cached:
      problem = (
        f"the cache {where.cache} holds only a part of {cached[0].repository}: {_lacks(cached[0].folder)} is missing"
      )
    else:
      problem = f"{name} is not in the cache {where.cache}"
    raise InversionViewError(
      f"{problem}, and HF_HUB_OFFLINE is set; download it where there is a network: {_command(ids[0], revision)}"
    )
  return _download(where, ids, revision)


def is_cached(name: str) -> bool:
  """Whether something of the model of an id is in the local cache."""
  parsed = parse(name)
  return parsed is not None and any(_Place.now().cached(each, parsed[1]) for each in _spellings(parsed[0]))


@dataclasses.dataclass(frozen=True)
class _Place:
  """Where models come from: the cache, the Hub's address, and whether it may be reached."""

  cache: pathlib.Path
  endpoint: str
  offline: bool

  @classmethod
  def now(cls) -> "_Place":
    """As the environment has it now; `huggingface_hub` reads it when it is imported."""
    from huggingface_hub import constants

    given = os.environ.get
    cache = given("HF_HUB_CACHE") or given("HUGGINGFACE_HUB_CACHE")
    if not cache and given("HF_HOME"):
      cache = os.path.join(given("HF_HOME", ""), "hub")
    cache = os.path.expandvars(os.path.expanduser(cache or constants.HF_HUB_CACHE))
    endpoint = (given("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")
    switch = given("HF_HUB_OFFLINE") or given("TRANSFORMERS_OFFLINE")
    offline = constants.HF_HUB_OFFLINE if switch is None else switch.upper() in ("1", "ON", "YES", "TRUE")
    return cls(pathlib.Path(cache), endpoint, offline)

  def cached(self, repository: str, revision: str | None) -> Snapshot | None:
    """The snapshot of a revision that the cache has, whole or in part."""
    own = self.cache / f"models--{repository.replace('/', '--')}"
    commit = revision or "main"
    try:
      if not _COMMIT.fullmatch(commit):
        commit = (own / "refs" / commit).read_text().strip()
      folder = own / "snapshots" / commit
      return Snapshot(folder, repository, commit) if commit and folder.is_dir() else None
    except (OSError, ValueError):
      return None


def _spellings(repository: str) -> list[str]:
  """The ids under which a cache or a hub may have a model, its present one first."""
  older = next((name for name, present in CANONICAL.items() if repository in (name, present)), None)
  return [repository] if older is None else [CANONICAL[older], older]


def _lacks(folder: pathlib.Path) -> str | None:
  """The first file without which the model of a snapshot cannot be read, or None."""
  if not (folder / "config.json").exists():
    return "config.json"
  if (folder / _WHOLE).exists():
    return None
  if not (folder / _INDEX).exists():
    return _WHOLE
  return next((shard for shard in _shards(folder / _INDEX) if not (folder / shard).exists()), None)


def _shards(index: pathlib.Path) -> list[str]:
  """Names of the files in a model.safetensors.index.json."""
  content = values.mapping(str(index), read_json(index))
  table = values.mapping(f"{index}: weight_map", content.get("weight_map"))
  return sorted(
    {pathlib.PurePath(values.text(f"{index}: weight_map of {name}", file)).name for name, file in table.items()}
  )


def _complete_tokenizer(where: _Place, found: Snapshot) -> None:
  """Downloads the tokenizer of a model that another program has put into the cache without one, if there is a network."""
  if any((found.folder / name).exists() for name in VOCABULARIES) or _known_missing(found, "tokenizer.json"):
    return
  try:
    _metadata(
      where, found.repository, "config.json", found.revision
    )  # soon known to fail; a download would try for half a minute
    _tokenizer_files(where, found)
  except Exception:
    return  # the model is there


def _known_missing(found: Snapshot, file: str) -> bool:
  """Whether the cache has a note that a model has no such file."""
  return (found.folder.parent.parent / ".no_exist" / found.revision / file).exists()


def _command(repository: str, revision: str | None) -> str:
  """The command that downloads a model into the cache."""
  chosen = f" --revision {revision}" if revision else ""
  return f'hf download {repository}{chosen} --include "*.json" --include "*.safetensors" --include "*.model" --include "*.txt"'


class _Missing(Exception):
  """A repository does not have the file of this name."""


def _download(where: _Place, ids: list[str], revision: str | None) -> Snapshot:
  """Downloads the first of these ids that the Hub knows."""
  from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

  for number, repository in enumerate(ids):
    try:
      commit = _metadata(where, repository, "config.json", revision).commit_hash
      break
    except Exception as error:
      absent = isinstance(error, RepositoryNotFoundError) and not isinstance(error, GatedRepoError)
      if not absent or number + 1 == len(ids):
        raise _refusal(error, where, ids[0], revision) from None
  terminal.print_message(f"downloading {repository}@{commit} from {where.endpoint} into {where.cache}")
  try:
    config = _file(where, repository, "config.json", revision)
    found = Snapshot(config.parent, repository, config.parent.name)
    _tokenizer_files(where, found)
    _weights(where, found)  # last, so that a snapshot with weights has all the rest
  except Exception as error:
    raise _refusal(error, where, repository, revision) from None
  return found


def _metadata(where: _Place, repository: str, file: str, revision: str | None) -> Any:
  """Size and commit of a file; raises `_Missing` where it is not there."""
  import huggingface_hub
  from huggingface_hub.errors import EntryNotFoundError

  url = huggingface_hub.hf_hub_url(repository, file, revision=revision, endpoint=where.endpoint)
  try:
    found = huggingface_hub.get_hf_file_metadata(url, endpoint=where.endpoint)
  except EntryNotFoundError:
    raise _Missing(file) from None
  if not _COMMIT.fullmatch(found.commit_hash or ""):
    raise InversionViewError(f"{where.endpoint} answers, but not as a Hugging Face hub does; is HF_ENDPOINT right?")
  return found


def _file(where: _Place, repository: str, file: str, revision: str | None) -> pathlib.Path:
  """Downloads one file into the cache, with a bar on a terminal; raises `_Missing` where it is not there."""
  import huggingface_hub
  from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

  try:
    return pathlib.Path(
      huggingface_hub.hf_hub_download(
        repository, file, revision=revision, cache_dir=where.cache, endpoint=where.endpoint
      )
    )
  except LocalEntryNotFoundError:  # the network ended
    raise
  except EntryNotFoundError:
    raise _Missing(file) from None


def _tokenizer_files(where: _Place, found: Snapshot) -> None:
  """Downloads the files of the tokenizer that are there: a tokenizer.json, or what its older kinds consist of."""
  for name in ("tokenizer.json", *SETTINGS, *VOCABULARIES):
    if name in VOCABULARIES and (found.folder / "tokenizer.json").exists():
      return
    if not _known_missing(found, name) and not (found.folder / name).exists():
      with contextlib.suppress(_Missing):
        _file(where, found.repository, name, found.revision)


def _weights(where: _Place, found: Snapshot) -> None:
  """Downloads the weights, whole or in shards."""
  try:
    size = _metadata(where, found.repository, _WHOLE, found.revision).size
    names = [_WHOLE]
  except _Missing:
    index = _file(where, found.repository, _INDEX, found.revision)
    names, size = _shards(index), read_json(index).get("metadata", {}).get("total_size")
  names = [name for name in names if not (found.folder / name).exists()]
  free = shutil.disk_usage(found.folder).free
  if names and isinstance(size, int) and size + _SPARE > free:
    raise OSError(errno.ENOSPC, f"{size / 1e9:.1f} GB are needed and {free / 1e9:.1f} GB are free")
  for name in names:
    _file(where, found.repository, name, found.revision)


def _refusal(error: Exception, where: _Place, repository: str, revision: str | None) -> InversionViewError:
  """What went wrong with a download, in one line with the remedy."""
  from huggingface_hub import errors

  status = getattr(getattr(error, "response", None), "status_code", None)
  if isinstance(error, InversionViewError):
    return error
  if isinstance(error, _Missing) and str(error) == "config.json":
    what = f"{repository} on {where.endpoint} has no config.json: it is no model of transformers (of GGUF files, download one and give its path)"
  elif isinstance(error, _Missing):
    what = (
      f"{repository} has no safetensors ({error} is not there), and pickled weights are never opened; give a revision that has them, as "
      f"{repository}@refs/pr/1, or convert it with transformers' save_pretrained and give the folder"
    )
  elif isinstance(error, errors.GatedRepoError):
    what = f"{repository} is gated: accept its terms at {where.endpoint}/{repository} and log in with: hf auth login (or set HF_TOKEN)"
  elif isinstance(error, errors.RevisionNotFoundError):
    what = f"{repository} has no revision {revision!r} on {where.endpoint}"
  elif isinstance(error, errors.RepositoryNotFoundError) or status in (401, 404):
    what = (
      f"there is no folder and no model {repository!r}: neither in the cache {where.cache} nor, for the public or with your token, on "
      f"{where.endpoint} ({status or 404}); check the name, or log in with: hf auth login"
    )
  elif status == 403:
    what = f"{where.endpoint} refuses {repository} (403): your token may not read it; log in with: hf auth login (or set HF_TOKEN)"
  elif isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
    what = f"no space for {repository} in the cache {where.cache}: {error.strerror}; free some, or set HF_HOME to another disk"
  elif isinstance(error, OSError) and error.errno in (
    errno.EACCES,
    errno.EROFS,
    errno.EPERM,
    errno.ENOTDIR,
    errno.EEXIST,
  ):
    what = f"cannot write {repository} into the cache {where.cache}: {error.strerror}; set HF_HOME to a folder of yours"
  elif status is not None:
    what = f"{where.endpoint} answers {status} for {repository}; try again later, or: {_command(repository, revision)}"
  else:
    cause = error.__cause__ or error
    reason = next((line.strip() for line in str(cause).splitlines() if line.strip()), type(cause).__name__)
    what = (
      f"cannot download {repository} from {where.endpoint} ({reason[:200]}); it is not whole in the cache {where.cache}. With a network the same "
      f"command goes on where it ended, or: {_command(repository, revision)}"
    )
  return InversionViewError(" ".join(what.split()))
