"""What a wheel of the package holds, and that it works outside of a checkout."""

import os
import pathlib
import shutil
import subprocess
import sys
import sysconfig

import pytest

ROOT = pathlib.Path(__file__).parent.parent


@pytest.fixture(scope="module")
def in_the_wheel() -> dict[str, str]:
  """Path in the wheel -> path in the checkout of every file, as setuptools finds them."""
  code = (
    "import os, setuptools, setuptools.dist\n"
    "dist = setuptools.dist.Distribution({'script_name': 'setup.py'})\n"
    "dist.parse_config_files(['setup.cfg'])\n"
    "build = dist.get_command_obj('build_py')\n"
    "build.ensure_finalized()\n"
    "for package, _, path in build.find_all_modules(): print(package.replace('.', '/') + '/' + os.path.basename(path), path, sep='\\t')\n"
    "for package, source, _, names in build.data_files:\n"
    "  for name in names: print(package.replace('.', '/') + '/' + name, source + '/' + name, sep='\\t')\n"
  )
  pytest.importorskip("setuptools")
  done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
  assert done.returncode == 0, done.stderr
  return dict(line.split("\t") for line in done.stdout.splitlines() if "\t" in line)


def test_the_wheel_has_every_module(in_the_wheel):
  """setup.cfg lists the packages one by one, as configs/ has its place among them."""
  modules = {str(path.relative_to(ROOT)) for path in (ROOT / "inversionview_jax").rglob("*.py")}
  assert modules - set(in_the_wheel) == set()


def test_the_wheel_has_every_config_inside_of_the_package(in_the_wheel):
  configs = sorted(path.name for path in (ROOT / "configs").glob("*.py"))
  assert len(configs) > 10
  for name in configs:
    assert in_the_wheel[f"inversionview_jax/configs/{name}"] == f"configs/{name}"
  assert not any(path.startswith("configs/") for path in in_the_wheel)


def test_the_wheel_has_the_shipped_models_and_notebooks(in_the_wheel):
  folder = ROOT / "inversionview_jax"
  data = [path for suffix in ("*.safetensors", "*.ipynb", "facts.json", "py.typed") for path in folder.rglob(suffix)]
  assert len(data) >= 8
  assert {str(path.relative_to(ROOT)) for path in data} <= set(in_the_wheel)


QUICK = (
  "--config.steps=4", "--config.steps_per_call=2", "--config.batch_size=8", "--config.eval_queries=2", "--config.final_queries=2",
)  # fmt: skip
QUICK_TARGET = ("--config.target.steps=4", "--config.target.steps_per_call=2", "--config.target.batch_size=8")


@pytest.mark.slow
def test_an_installed_wheel_trains_by_a_config_s_name(tmp_path):
  """In an environment of its own, far from any checkout; this one's libraries are borrowed for it."""
  source = tmp_path / "source"
  listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True)
  for name in listed.stdout.splitlines():
    if (ROOT / name).is_file() and not name.startswith("tests/"):
      (source / name).parent.mkdir(parents=True, exist_ok=True)
      shutil.copyfile(ROOT / name, source / name)
  pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
  subprocess.run(
    [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(tmp_path), str(source)], check=True
  )
  (wheel,) = tmp_path.glob("*.whl")
  shutil.rmtree(source)
  subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")], check=True)
  python = tmp_path / "venv" / "bin" / "python"
  subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
  (site,) = (tmp_path / "venv" / "lib").glob("python*/site-packages")
  borrowed = sysconfig.get_path("purelib")
  (site / "borrowed.pth").write_text(
    f"{borrowed}\n"
  )  # its packages; .pth files inside of it, such as an editable install, are not read

  def run(*argv):
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    command = [str(tmp_path / "venv" / "bin" / "inversionview"), *argv]
    done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout

  data = f"--config.data.dir={tmp_path / 'data'}"
  where = subprocess.run(
    [str(python), "-c", "import inversionview_jax as iv; print(iv.__file__)"],
    cwd=tmp_path,
    capture_output=True,
    text=True,
  )
  assert where.stdout.startswith(str(site))
  run("train-target", "--config", "addition:tiny", "--workdir", "W", data, *QUICK_TARGET)
  out = run("train", "--config", "addition:tiny", "--workdir", "W", data, *QUICK)
  assert "in-epsilon rate" in out and "config addition:tiny" in out
  view = run(
    "view",
    "615+861=1476",
    "--reader",
    "W",
    "--site",
    "a0.0",
    "--position",
    "=",
    "--method",
    "decoder",
    "--num-samples",
    "8",
  )
  assert "8 candidates" in view or "of 8" in view
