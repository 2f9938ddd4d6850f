"""Every config file and variant, and what the command line makes of them."""

import functools
import importlib.util
import json
import pathlib
import re
import shlex
import shutil
import subprocess
import sys

import pytest

from inversionview_jax import cli, tasks
from inversionview_jax.commands.configs import changed, config_keys, load_config, summary
from inversionview_jax.errors import InversionViewError
from inversionview_jax.models import decoder, transformer
from inversionview_jax.training import optimizers

ROOT = pathlib.Path(__file__).parent.parent
EVERY_FILE = sorted((ROOT / "configs").glob("*.py"))
# Those with a target to train; language models' configs are in test_language_configs.py, and verify_*.py hold experiments.
FILES = [path for path in EVERY_FILE if path.stem in ("addition", "counting")]


def module(path):
  spec = importlib.util.spec_from_file_location(path.stem, path)
  loaded = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(loaded)
  return loaded


EVERY = [(path, variant) for path in FILES for variant in module(path).VARIANTS]
EACH_FILE = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
EACH_VARIANT = pytest.mark.parametrize("path, variant", EVERY, ids=lambda part: getattr(part, "stem", part))
ADDITION = next(str(path) for path in FILES if path.stem == "addition")


def refusal(path, *overrides) -> str:
  with pytest.raises(InversionViewError) as caught:
    load_config(path, list(overrides))
  assert "\n" not in str(caught.value)
  return str(caught.value)


def test_every_task_has_a_config_with_the_three_variants():
  assert [path.stem for path in FILES] == sorted(name for name in tasks.names() if not tasks.is_language(name))
  assert all(module(path).VARIANTS[:3] == ("full", "tiny", "paper") for path in FILES)


@EACH_VARIANT
def test_variant_is_what_its_file_returns_and_locked(path, variant):
  config = load_config(f"{path}:{variant}", [])
  assert config.to_dict() == module(path).get_config(variant).to_dict()
  assert config.is_locked and config.task == path.stem
  with pytest.raises(AttributeError):
    config.target.optimizer.learning_rate = 1.0


@EACH_VARIANT
def test_variant_holds_every_key_that_training_reads(path, variant):
  config, task = load_config(f"{path}:{variant}", []), tasks.get(path.stem)
  for one in (config, config.target):
    transformer.TransformerConfig(task.tokenizer.vocab_size, task.length, **one.model)
    optimizers.make_optimizer(one.optimizer, one.steps)
    keys = {"batch_size", "steps", "steps_per_call", "average", "log_every", "eval_every", "save_every", "keep"}
    assert keys <= set(one)
  assert config.data.config in ("full", "tiny") and "eval_examples" in config.target
  decoders = {
    "sites",
    "encoder_blocks",
    "encoder_width",
    "n_slots",
    "pairs_per_text",
    "bos_rate",
    "reweight",
    "noise",
    "eval_queries",
    "final_queries",
    "seed",
  }
  assert decoders <= set(config) and config.normalize in decoder.NORMALIZATIONS
  names = config.sites or task.default_sites(config.target.model.n_layers, config.target.model.n_heads)
  assert len(names) == {"addition": 13, "counting": 9}[path.stem]
  assert variant != "paper" or (config.model.d_model, config.batch_size, config.steps) == (256, 256, 390_700)


@EACH_FILE
def test_no_variant_means_full(path):
  assert load_config(str(path), []) == load_config(f"{path}:full", [])


@EACH_FILE
def test_overrides_reach_nested_keys_and_every_type(path):
  config = load_config(
    f"{path}:tiny",
    [
      "--config.optimizer.lr=0.25", "--config.target.model.n_layers=3", "--config.data.dir=/somewhere",
      "--config.sites=('x0.pre', 'm1')", "--config.steps=7", "--config.optimizer.name", "adamw",
    ],
  )  # fmt: skip
  assert (config.optimizer.lr, config.target.model.n_layers, config.data.dir) == (0.25, 3, "/somewhere")
  assert (config.sites, config.steps, config.optimizer.name) == (("x0.pre", "m1"), 7, "adamw")
  assert load_config(str(path), ["--config.sites=x0.pre"]).sites == ("x0.pre",)
  untouched = load_config(f"{path}:tiny", [])
  assert config.target.optimizer == untouched.target.optimizer and config.batch_size == untouched.batch_size


@pytest.mark.parametrize(
  "override, named",
  [
    ("--config.stepps=7", "steps"), ("--config.optimizer.learning_rate=1", "optimizer.lr"),
    ("--config.target.model.n_layer=3", "target.model.n_layers"), ("--config.target.steps.more=3", "target.steps"),
  ],
)  # fmt: skip
def test_unknown_key_is_refused_with_the_closest_ones(override, named):
  message = refusal(f"{ADDITION}:tiny", override)
  assert override.removeprefix("--config.").split("=")[0] in message and named in message


@pytest.mark.parametrize(
  "override", ["--config.steps=many", "--config.steps=1.5", "--config.optimizer.lr=high", "--config.optimizer=3"]
)
def test_value_of_another_type_is_refused(override):
  key, value = override.removeprefix("--config.").split("=")
  message = refusal(ADDITION, override)
  assert key in message or value in message


@pytest.mark.parametrize("argument", ["--steps=7", "steps=7", "--confg.steps=7"])
def test_argument_that_is_no_setting_is_refused(argument):
  assert argument.split("=")[0].lstrip("-") in refusal(ADDITION, argument)


@EACH_FILE
def test_unknown_variant_is_refused_with_the_known_ones(path):
  message = refusal(f"{path}:tyni")
  assert "'tyni'" in message and "full, tiny, paper" in message


@pytest.mark.parametrize("name", ["no/such/config.py", "no/such/config.py:tiny", "configs", "", "addition.py.old"])
def test_missing_file_is_refused(name):
  assert "addition:tiny" in refusal(name)


@pytest.mark.parametrize("path", EVERY_FILE, ids=lambda path: path.stem)
def test_every_config_is_found_by_its_name(path, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert load_config(path.stem, []).to_json_best_effort() == load_config(str(path), []).to_json_best_effort()


def test_a_name_takes_variants_and_settings_and_a_file_goes_first(tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert load_config("addition:tiny", ["--config.steps=7"]).steps == 7
  assert load_config("addition:tiny", []) == load_config(f"{ADDITION}:tiny", [])
  (tmp_path / "addition").write_text(
    "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'mine': 1})\n"
  )
  assert load_config("addition", []).mine == 1


@pytest.mark.parametrize(
  ("name", "named"),
  [
    ("aditoin", "addition"),
    ("adition:tiny", "addition"),
    ("configs/addition.py:tiny", "--config addition:tiny"),
    ("addition:tyni", "tiny"),
  ],
)
def test_a_wrong_name_is_refused_with_the_right_one(name, named, tmp_path, monkeypatch):
  monkeypatch.chdir(tmp_path)
  assert named in refusal(name)


def test_a_config_is_shown_as_what_differs_from_its_default():
  assert changed(ADDITION, load_config(ADDITION, ["--config.steps=30000"])) == {}
  config = load_config("addition:tiny", ["--config.optimizer.lr=0.5", "--config.seed=3"])
  different = changed("addition:tiny", config)
  full = load_config("addition", [])
  assert different["optimizer.lr"] == (0.5, full.optimizer.lr) and different["seed"] == (3, 0)
  assert different["data.config"] == ("tiny", "full") and "optimizer.b2" not in different
  shown = summary("addition:tiny", config, "W/decoder/config.json", only=lambda key: not key.startswith("target."))
  assert shown.startswith("config addition:tiny: ") and "W/decoder/config.json" in shown.splitlines()[0]
  assert re.search(r"^  seed +3 +\(default 0\)$", shown, re.MULTILINE) and "target." not in shown
  assert len(shown.splitlines()) == 1 + sum(not key.startswith("target.") for key in different)


@pytest.mark.parametrize(
  "content, named",
  [("def get_config(: pass", "syntax"), ("x = 1", "get_config"), ("get_config = lambda: {'task': 1}", "ConfigDict")],
)
def test_broken_file_is_refused(tmp_path, content, named):
  path = tmp_path / "broken.py"
  path.write_text(content)
  message = refusal(str(path))
  assert "broken.py" in message and named in message


class Hyper:
  """A stand-in for launch/hyper.py."""

  @staticmethod
  def sweep(name, values):
    return [{name: value} for value in values]

  @staticmethod
  def product(sweeps):
    units = [{}]
    for sweep in sweeps:
      units = [before | after for before in units for after in sweep]
    return units


@EACH_FILE
def test_sweep_sets_keys_that_exist_to_values_they_can_have(path):
  trials = module(path).get_hyper(Hyper)
  assert len(trials) > 1 and len({tuple(trial.items()) for trial in trials}) == len(trials)
  known = config_keys(str(path))
  for trial in trials:
    assert all(key.removeprefix("config.") in known for key in trial)
    config = load_config(str(path), [f"--{key}={value}" for key, value in trial.items()])
    for key, value in trial.items():
      assert functools.reduce(lambda branch, part: branch[part], key.split(".")[1:], config) == value


def test_every_config_loads_where_it_is_copied_to_and_without_jax(tmp_path):
  """A copy of one file in another folder, read from there, has the values of the original."""
  program = """
import json, pathlib, sys
from inversionview_jax.commands.configs import load_config
print(json.dumps({path: load_config(path, []).to_json_best_effort() for path in sys.argv[1:]}))
assert "jax" not in sys.modules
"""
  copies = [pathlib.Path(shutil.copy(path, tmp_path / f"copy_of_{path.name}")) for path in EVERY_FILE]
  done = subprocess.run(
    [sys.executable, "-c", program, *(copy.name for copy in copies)],
    cwd=tmp_path, env={"PATH": "", "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
  )  # fmt: skip
  assert done.returncode == 0, done.stderr
  loaded = json.loads(done.stdout)
  for path, copy in zip(EVERY_FILE, copies, strict=True):
    assert loaded[copy.name] == load_config(str(path), []).to_json_best_effort(), path.name


@pytest.mark.parametrize("path", EVERY_FILE, ids=lambda path: path.stem)
def test_docstring_of_every_config_is_short(path):
  lines = module(path).__doc__.strip().splitlines()
  assert len(lines) <= 14 and lines[0].endswith(".") and any("inversionview " in line for line in lines)


@pytest.mark.parametrize("path", EVERY_FILE, ids=lambda path: path.stem)
def test_commands_in_docstrings_are_parsed(path, monkeypatch):
  monkeypatch.chdir(ROOT)
  lines = [line for line in module(path).__doc__.splitlines() if line.startswith("    inversionview ")]
  assert lines
  for line in lines:
    args, rest = cli._parser().parse_known_args(shlex.split(line, comments=True)[1:])
    assert load_config(args.config, rest) if getattr(args, "config", None) else not rest


def test_two_configs_share_no_mutable_block():
  first, second = (module(FILES[0]).get_config() for _ in range(2))
  first.optimizer.lr, first.target.model.n_layers = 0.5, 7
  assert second.optimizer.lr != 0.5 and second.target.model.n_layers != 7
