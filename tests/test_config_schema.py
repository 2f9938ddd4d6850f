"""The table of config keys: every key of every config is in it, its values pass, and others are refused by name before anything is made."""

import pathlib

import pytest
from refusals import refusal

from inversionview_jax import cli, config_schema, tasks
from inversionview_jax.commands.configs import load_config
from inversionview_jax.errors import InversionViewError

CONFIGS = pathlib.Path(__file__).parent.parent / "configs"
READER = {**config_schema.DATA, **config_schema.TRAINING, **config_schema.DECODER}
TARGET = {**config_schema.TRAINING, **config_schema.TARGET}
STUDY = config_schema.OF_COMMAND["study"]
OF_FILE = {
  "addition": READER, "counting": READER, "ioi": READER | STUDY, "factual": READER | STUDY, "text": READER, "ioi_smollm2": READER,
  "plan_gpt2_xl": config_schema.PLAN, "plan_llama_8b": config_schema.PLAN, "gallery": config_schema.OF_COMMAND["report"],
}  # fmt: skip


def dotted(config, prefix=""):
  for name, value in config.items():
    if hasattr(value, "keys"):
      yield from dotted(value, f"{prefix}{name}.")
    else:
      yield prefix + name


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda path: path.stem)
def test_every_key_of_a_config_is_in_the_table_and_its_value_passes(path):
  config = load_config(str(path), [])
  if "inputs" in config:
    config_schema.check_inputs(config.task, config.inputs)
    assert set(config.inputs) <= set(config_schema.INPUTS[config.task])
  if path.stem.startswith("verify_"):
    config_schema.check(config, config_schema.EXPERIMENTS)
    for name, settings in config.experiments.items():
      config_schema.check(settings, config_schema.EXPERIMENT, f"experiments.{name}.")
    return
  table = OF_FILE[path.stem]
  config_schema.check(config, table)
  own = {key for key in dotted(config) if key.split(".")[0] not in ("target", "inputs")}
  assert own <= set(table)
  target = config.get("target")
  if target is not None and tasks.is_language(config.task):
    config_schema.check(target, config_schema.LANGUAGE_TARGET)
    assert set(dotted(target)) <= set(config_schema.LANGUAGE_TARGET)
  elif target is not None:
    config_schema.check({**target, "seed": 0}, TARGET)
    # What is more is the transformer's own, which checks it.
    assert {key for key in dotted(target) if not key.startswith("model.")} <= set(TARGET)


def flipped(key: config_schema.Key):
  """Values that a key cannot have, whatever its kind."""
  yield from ({"a": 1}, object())
  if not key.optional:
    yield None
  if not key.kind.startswith(("tuple", "text, or tuple")):
    yield []
  if key.kind != "True or False":
    yield True
  if key.kind.startswith(("whole", "number")):
    yield from ("1", float("nan"), float("inf"), -1e-9, -5, 10**40)
  if key.kind.startswith("whole"):
    yield 1.0
  if key.kind.startswith("tuple"):
    yield from ("a0.0", (5,) if key.kind == "tuple of dicts" else ({},), 5)
  if key.kind.startswith("text, or tuple"):
    yield from (5, (5,))
  if key.kind.startswith("one of"):
    yield from ("no such", 3)
  if key.kind.startswith("text") and "whole" not in key.kind:
    yield 3


@pytest.mark.parametrize(
  "table",
  [READER, TARGET, config_schema.LANGUAGE_TARGET, config_schema.EXPERIMENTS, config_schema.OF_COMMAND["report"], *config_schema.INPUTS.values()],
  ids=["reader", "target", "language", "experiments", "report", *config_schema.INPUTS],
)  # fmt: skip
def test_every_other_value_of_every_key_is_refused_by_name(table):
  for name, key in table.items():
    for value in flipped(key):
      message = refusal(key.check, f"target.{name}", value)
      assert f"target.{name}" in message and len(message) < 250


@pytest.mark.parametrize(
  "key, value",
  [
    ("average", 2.0), ("average", 1), ("bos_rate", float("nan")), ("optimizer.b2", 2.0), ("optimizer.b2", 1.0), ("encoder_blocks", -1),
    ("reweight", float("nan")), ("save_every", -1), ("optimizer.warmup_steps", -5), ("n_slots", 0), ("encoder_width", -1), ("sites", 5),
    ("batch_size", 10**12), ("optimizer.lr", 0), ("optimizer.lr", -1.0), ("keep", 0), ("normalize", "whitened"), ("mesh.model", 0),
    ("compute.dtype", "float16"), ("seed", 2**40), ("optimizer", 3), ("mesh", 5), ("optimizer.clip", float("inf")),
  ],
)  # fmt: skip
def test_settings_that_cannot_be_are_refused(key, value):
  config = load_config(str(CONFIGS / "addition.py"), []).to_dict()
  node = config
  for part in key.split(".")[:-1]:
    node = node[part]
  node[key.split(".")[-1]] = value
  assert key in refusal(config_schema.check, config, READER)


def test_a_key_that_is_missing_is_named_with_what_it_must_be():
  config = load_config(str(CONFIGS / "addition.py"), []).to_dict()
  del config["optimizer"]["b2"]
  assert "optimizer.b2 (number, 0 to less than 1" in refusal(config_schema.check, config, READER)
  del config["optimizer"]
  assert "optimizer.name" in refusal(config_schema.check, config, READER)


def test_the_texts_of_one_call_are_bounded():
  fits = {"batch_size": 2**20, "steps_per_call": 10**6, "steps": 16}
  config_schema.check_call(fits)
  with pytest.raises(InversionViewError, match=r"target.steps_per_call = 17"):
    config_schema.check_call(fits | {"steps": 17}, "target.")


def test_the_table_in_the_documentation_is_that_of_the_program():
  """To write it anew: print config_schema.described of each of these."""
  text = (CONFIGS / "README.md").read_text()
  tables = (config_schema.TRAINING, config_schema.DECODER, config_schema.TARGET, config_schema.LANGUAGE_TARGET)
  for table in (*tables, *config_schema.INPUTS.values()):
    assert config_schema.described(table) in text


@pytest.mark.parametrize("command", config_schema.OF_COMMAND)
def test_help_config_lists_every_key_with_its_type_and_meaning(command, capsys):
  with pytest.raises(SystemExit) as ended:
    cli.main([command, "--help-config"])
  lines = [line for line in capsys.readouterr().out.splitlines() if line and not line.startswith("of the task ")]
  keys = list(config_schema.OF_COMMAND[command].items())
  for table in config_schema.INPUTS.values() if command in config_schema.WITH_INPUTS else ():
    keys += [(f"inputs.{name}", key) for name, key in table.items()]
  assert ended.value.code == 0
  for line, (name, key) in zip(lines, keys, strict=True):
    assert line.split()[0] == name and key.kind in line and key.meaning in line


def test_every_command_that_takes_a_config_lists_its_keys():
  commands = next(action for action in cli._parser()._actions if action.dest == "command").choices
  takes = {name for name, parser in commands.items() if any(action.dest == "config" for action in parser._actions)}
  assert takes == set(config_schema.OF_COMMAND)


@pytest.mark.parametrize("command", ["train", "patch", "heads"])
@pytest.mark.parametrize(
  "setting, named",
  [("length=2", "inputs.length = 2 must be"), ("vocabulary='some'", "inputs.vocabulary = 'some'"), ("positions=('S1',)", "'S1'")],
)  # fmt: skip
def test_settings_of_the_inputs_are_checked_before_a_model_is_looked_for(command, setting, named, tmp_path, capsys):
  lines = ["def get_config():", f"  config = blocks.{'reader' if command == 'train' else 'experiments'}('text'{'' if command == 'train' else ', 8, 8'})"]  # fmt: skip
  lines += ["  blocks.schedule(config, 8, 8)", "  config.eval_queries = config.final_queries = 1"] if command == "train" else ["  config.experiments = ConfigDict({'a': {'kind': 'patch'}})"]  # fmt: skip
  lines += [f"  config.inputs = ConfigDict(dict({setting}))", "  return config"]
  (tmp_path / "c.py").write_text(
    "from ml_collections import ConfigDict\nfrom inversionview_jax import config_blocks as blocks\n" + "\n".join(lines)
  )
  where = {"train": ["--workdir", f"{tmp_path}/W"], "patch": ["--out", f"{tmp_path}/W"], "heads": []}[command]
  assert cli.main([command, "--config", f"{tmp_path}/c.py", "--target", f"{tmp_path}/nosuch", *where]) == 2
  error = capsys.readouterr().err
  assert named in error and error.count("\n") == 1 and not (tmp_path / "W").exists()


def test_configs_of_the_project_pass_what_help_config_lists():
  files = {
    "train": "addition.py",
    "train-target": "addition.py",
    "plan": "plan_gpt2_xl.py",
    "report": "gallery.py",
    "heads": "verify_ioi.py",
  }
  for command, file in files.items():
    config_schema.check(load_config(str(CONFIGS / file), []), config_schema.OF_COMMAND[command])
