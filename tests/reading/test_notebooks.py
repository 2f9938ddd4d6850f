"""The notebook of each study, run from its first cell to its last: addition and counting with the shipped readers, IOI with a small random model."""

import os
import pathlib
import re

import pytest
from small_models import gpt2_folder

import inversionview_jax

FOLDER = pathlib.Path(inversionview_jax.__file__).parent / "reading"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def code_cells(name):
  nbformat = pytest.importorskip("nbformat")
  notebook = nbformat.read(FOLDER / f"{name}.ipynb", 4)
  return notebook, [cell for cell in notebook.cells if cell.cell_type == "code"]


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_are_kept_without_outputs(name):
  _, code = code_cells(name)
  assert len(code) >= 7 and not any(cell.outputs or cell.execution_count for cell in code)


def run(name, tmp_path, monkeypatch, **settings):
  """What every code cell shows, with other values of variables of the first one."""
  nbclient = pytest.importorskip("nbclient")
  pytest.importorskip("ipykernel")
  notebook, code = code_cells(name)
  for variable, value in settings.items():
    code[0].source, count = re.subn(rf"^{variable} = .*", f"{variable} = {value!r}", code[0].source, flags=re.MULTILINE)
    assert count == 1, variable
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
  monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
  nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
  return [[output.get("data", {}) for output in cell.outputs] for cell in code]


def texts(shown) -> str:
  return "\n".join(data.get("text/plain", "") for outputs in shown for data in outputs)


@pytest.mark.slow
def test_addition(tmp_path, monkeypatch):
  shown = run("addition", tmp_path, monkeypatch, PARTICLES=256)
  assert "Reader 'addition'" in texts(shown)
  page = shown[3][-1]["text/html"]
  assert "<details>" in page and "ε = 0.1" in page  # the preimage shows itself, twenty samples and the rest folded
  reading = shown[4][-1]["text/plain"]
  assert re.search(r"C2 .*encodes", reading) and not re.search(r"^ *F2 .* encodes", reading, re.MULTILINE)
  assert "holds" in shown[5][-1]["text/plain"] and shown[5][-1]["text/plain"] != shown[6][-1]["text/plain"]
  assert "a0.0" in shown[7][-1]["text/plain"] and "C2" in shown[8][-1]["text/plain"]


@pytest.mark.slow
def test_counting(tmp_path, monkeypatch):
  shown = run("counting", tmp_path, monkeypatch, PARTICLES=256)
  assert all("text/html" in shown[n][-1] for n in (1, 2, 3))
  assert re.search(r"^ *count .* encodes", shown[5][-1]["text/plain"], re.MULTILINE)
  bits = eval(shown[6][-1]["text/plain"])  # the notebook is ours
  assert set(bits) == {("a0.0", "query"), ("x1.post", ":")} and bits["x1.post", ":"][0] > 15


@pytest.mark.slow
def test_ioi(tmp_path, monkeypatch):
  folder = os.fspath(gpt2_folder(tmp_path / "mine", layers=1))
  shown = run("ioi", tmp_path, monkeypatch, MODEL=folder, PARTICLES=16, BUDGET=64)
  assert "1 layers" in texts(shown) and "text/html" in shown[4][-1]
  assert len(eval(shown[3][-1]["text/plain"])) >= 2  # heads by their direct effect
  assert "Effects" in shown[6][-1]["text/plain"]
