"""The walkthrough notebook, run from its first cell to its last with a small random model."""

import os
import pathlib

import pytest
from small_models import gpt2_folder

import inversionview_jax

NOTEBOOK = pathlib.Path(inversionview_jax.__file__).parent / "targets" / "your_own_model.ipynb"


@pytest.mark.slow
def test_the_walkthrough_runs_with_another_model(tmp_path, monkeypatch):
  nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
  pytest.importorskip("ipykernel")
  notebook = nbformat.read(NOTEBOOK, 4)
  code = [cell for cell in notebook.cells if cell.cell_type == "code"]
  assert len(code) == 8 and not any(cell.outputs for cell in code)
  folder = gpt2_folder(tmp_path / "mine", layers=1, context=24)
  code[0].source = (
    "import inversionview_jax as iv\n"
    f"MODEL, TEXT, PARTICLES, BUDGET = {os.fspath(folder)!r}, 'Then, Mary and John', 16, 64"
  )
  monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
  monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path / "runtime"))
  nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3").execute()
  shown = [cell.outputs for cell in code]
  assert "1 layers" in shown[1][-1].data["text/plain"] and "text/html" in shown[5][-1].data
  values = eval(shown[7][-1].data["text/plain"])
  assert len(values) == 3 and values[0] != values[2]
