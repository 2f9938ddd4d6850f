"""`inversionview train-target` and `inversionview train`: train a target on its task, and a decoder on a target's activations."""

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from inversionview_jax import config_schema
from inversionview_jax.commands import configs, flags, phases
from inversionview_jax.commands.configs import load_config
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import output_folder, path_of
from inversionview_jax.terminal import print_text

if TYPE_CHECKING:
  from jax.sharding import Mesh
  from ml_collections import ConfigDict

_EPILOG = """\
Every setting of the config can be changed; --help-config lists the keys:

  inversionview {name} --config addition:tiny --workdir W --config.seed=1 --config.{key}.lr=0.003

--config takes the name of one of the project's own configs ({configs}) or the path of a file.
Running the same command again resumes from the newest checkpoint in the workdir, which one run at a time uses. SIGTERM saves and exits with
code 75: run it again to resume. On several hosts run the same command on each of them: TPU slices, SLURM and Open MPI are detected;
elsewhere give --coordinator, --num-processes and --process-id.
"""


def add_parser(commands: Any) -> None:
  """Adds `train-target` and `train` to the commands."""
  for name, key, run, summary in (
    ("train-target", "target.optimizer", run_train_target, "train a target model on its task"),
    ("train", "optimizer", run_train, "train a decoder on a target's activations"),
  ):
    parser = flags.add_command(
      commands,
      name,
      run,
      summary,
      f"{summary.capitalize()}.",
      epilog=_EPILOG.format(name=name, key=key, configs="addition, counting, ioi, factual, text"),
      overrides=True,
    )
    flags.add(parser, "config", required=True)
    flags.add(parser, "workdir", required=True)
    if name == "train":
      flags.add(
        parser, "target", unset="the one in the workdir, else the config's, else the one that ships for the task"
      )
      flags.add(parser, "family")
      flags.add(parser, "ignore-config-key", repeated=True)
    flags.add_hosts(parser)


def run_train_target(args: argparse.Namespace, overrides: list[str]) -> int:
  """Trains the target, and prints its accuracy on held-out inputs."""
  from inversionview_jax import tasks
  from inversionview_jax.devices import hosts, parallel
  from inversionview_jax.training import loop, model_shapes, target_objective

  config = load_config(args.config, overrides)
  _refuse_reader_settings(overrides, config)
  settings = _target_settings(args, config)
  workdir = path_of(args.workdir)
  _join(hosts, args)
  task = tasks.get(config.task)
  mesh = parallel.mesh_of(settings)
  runs = phases.of(settings, workdir, "target", "start.target", overrides, "target.")
  for run in runs:
    loop.refuse_workdir(run.config, run.folder, mesh)
    model_shapes.transformer_config(task, run.config)  # refuses what does not fit, before the data are made
  hosts.refuse_in_use(workdir, loop.IN_USE)
  rows, held_out = _rows(task, config)
  parallel.use_compilation_cache()
  _print_kind(args, config)
  for run in phases.to_do(runs):
    objective = target_objective.TargetObjective(task, run.config, held_out, mesh)
    with output_folder(workdir), hosts.exclusive(workdir, loop.IN_USE):
      if not args.quiet:
        print_text(configs.summary(args.config, config, run.folder / "config.json", is_of_target))
      metrics = loop.train(objective, rows, run.config, run.folder, mesh)
    print_text(f"accuracy of whole answers, {metrics['held_out']:,.0f} held-out inputs: {metrics['accuracy']:.5f}")
    for name, value in metrics.items():
      if name.startswith("accuracy_"):
        print_text(f"{name}: {value:.5f}")
  print_text(f"target: {runs[-1].folder}")
  return 0


def run_train(args: argparse.Namespace, overrides: list[str]) -> int:
  """Trains the decoder, and prints its in-epsilon rate at each site."""
  from inversionview_jax.devices import hosts, parallel
  from inversionview_jax.training import decoder_objective, loop

  config = load_config(args.config, overrides)
  workdir = path_of(args.workdir)
  runs = phases.of(config, workdir, "decoder", "init_from", overrides)
  for run in runs:
    _check(args, run.config)
  _join(hosts, args)
  mesh = parallel.mesh_of(config)
  for run in runs:
    loop.refuse_workdir(run.config, run.folder, mesh)
  hosts.refuse_in_use(workdir, loop.IN_USE)
  choice = _Target(args, config, workdir, mesh)
  decoder_objective.shape_of(
    runs[0].config, choice.task, choice.target
  )  # refuses what does not fit, before the data are made
  rows, held_out = _rows(choice.task, config)
  _print_kind(args, config)
  for run in phases.to_do(runs):
    objective = decoder_objective.DecoderObjective(choice.task, run.config, choice.target, rows, held_out, mesh)
    hosts.all_true(True)  # every host has checked before one writes
    with output_folder(workdir), hosts.exclusive(workdir, loop.IN_USE):
      choice.store()
      if not args.quiet:
        print_text(configs.summary(args.config, config, run.folder / "config.json", _is_of_reader(config)))
      print_text(f"target: {choice.source}")
      metrics = loop.train(objective, rows, run.config, run.folder, mesh)
    print_text(f"in-epsilon rate, mean over sites: {metrics['rate']:.3f}; lowest: {metrics['rate_lowest']:.3f}")
    for name, value in metrics.items():
      if name.startswith("rate/"):
        print_text(f"  {name.removeprefix('rate/'):8} {value:.3f}")
  print_text(f"reader: {workdir}")
  return 0


def _print_kind(args: argparse.Namespace, config: "ConfigDict") -> None:
  """Prints what kind of run a config is, such as a smoke test, where it says so."""
  if about := config.get("about"):
    print_text(f"{args.config} is {about}")


def is_of_target(key: str) -> bool:
  """Whether `train-target` reads this key of a config: its block `target`, and what both models share."""
  from inversionview_jax.training import loop

  return key.split(".")[0] in ("target", "task", "seed", "data", *loop.SHARED_KEYS)


def _is_of_reader(config: "ConfigDict") -> Callable[[str], bool]:
  """A function (key) -> whether `train` reads it: all but the shape and the training of a target."""
  trained = "model" in (config.get("target") or {})
  return lambda key: not (trained and key.startswith("target."))


def _refuse_reader_settings(overrides: Sequence[str], config: "ConfigDict") -> None:
  """Raises `InversionViewError` for a setting of the decoder's training, which would change nothing here.

  It may be given together with the target's setting of the same name, as in a command line that is used for both commands.
  """
  given = [
    argument.split("=")[0].removeprefix("--config.") for argument in overrides if argument.startswith("--config.")
  ]
  for key in given:
    if is_of_target(key) or f"target.{key}" in given:
      continue
    target: Any = config.get("target") or {}
    for part in key.split("."):
      target = target[part] if hasattr(target, "keys") and part in target else None
    remedy = f"that of the target is --config.target.{key}" if target is not None else "leave it out"
    raise InversionViewError(
      f"--config.{key} is a setting of `inversionview train` and changes nothing of a target: {remedy}"
    )


def _target_settings(args: argparse.Namespace, config: "ConfigDict") -> "ConfigDict":
  """The settings of a target's training: the config's block `target`, with what both models share; raises `InversionViewError`."""
  from inversionview_jax import tasks
  from inversionview_jax.training import identity, loop

  identity.refuse_renamed(config)
  config_schema.check(config, config_schema.DATA)
  if tasks.is_language(config.task):
    raise InversionViewError(
      f"config {args.config}: the task {config.task} is about a language model, which is not trained here: "
      "run `inversionview train`, with its checkpoint as --target"
    )
  if not hasattr(config.get("target"), "keys") or "model" not in config.target:
    raise InversionViewError(f"config {args.config} has no target.model, the shape of a target to train")
  settings = config.target.copy_and_resolve_references()
  settings.unlock()
  settings.seed = config.get("seed")
  for name in loop.SHARED_KEYS:  # where and how it is computed: the same for both models unless the target has its own
    if name in config and name not in settings:
      settings[name] = config[name]
  config_schema.check(settings, {**config_schema.TRAINING, **config_schema.TARGET}, "target.")
  return settings


def _check(args: argparse.Namespace, config: "ConfigDict") -> None:
  """Raises `InversionViewError` for settings of a decoder's training that cannot be, before anything is loaded or made."""
  from inversionview_jax import tasks
  from inversionview_jax.training import identity

  identity.refuse_renamed(config)
  config_schema.check(config, {**config_schema.DATA, **config_schema.TRAINING, **config_schema.DECODER})
  language, target = tasks.is_language(config.task), config.get("target")
  if not language and config.get("inputs"):
    raise InversionViewError(
      f"config {args.config}: the task {config.task} has no inputs.{next(iter(config.inputs))}; take a config of that task"
    )
  if not language:
    return
  config_schema.check_inputs(config.task, config.get("inputs"))
  if not hasattr(target, "keys") or "path" not in target:
    raise InversionViewError(
      f"config {args.config} is of another kind of task than {config.task}, which is about a language model: it has no target.path; "
      f"take a config of that task, such as --config {config.task if config.task in tasks.names() else 'text'}"
    )
  config_schema.check(target, config_schema.LANGUAGE_TARGET, "target.")


class _Target:
  """The target that a decoder is trained on.

  The workdir gets a copy of it, so that it is a reader on its own and resumes with this target, or a reference to a language model's checkpoint.

  Args:
    args, config: of the command.
    workdir: of the run; nothing is written before `store`.
    mesh: of the target's parameters.

  Attributes:
    task, target: as loaded.
    source: where the target is from.

  Raises:
    InversionViewError: a target that cannot be loaded, or another one than that of the workdir.
  """

  def __init__(self, args: argparse.Namespace, config: "ConfigDict", workdir: pathlib.Path, mesh: "Mesh"):
    from inversionview_jax import tasks
    from inversionview_jax.sampling.written import written_by
    from inversionview_jax.targets import load_target, task_and_target

    self._own, self._config = workdir / "target", config
    self._before = reference, has_copy = self._stored()
    self._language = tasks.is_language(config.task)
    if self._language:
      self.source = args.target or (reference and reference["path"]) or config.target.path
    else:
      self.source = args.target or (str(self._own) if has_copy else config.task)
    stored = reference or {}
    self._loading: dict[str, Any] = {
      "family": args.family or stored.get("family"),
      "ignore_config_keys": tuple(args.ignore_config_key or stored.get("ignore_config_keys") or ()),
    }
    # A target that writes the texts needs all of its layers.
    sites = None if config.task == "text" and not config.inputs.files else tuple(config.sites)
    task, self.target = task_and_target(config.task, self.source, config, sites=sites, mesh=mesh, **self._loading)
    self.task = written_by(task, self.target)
    if reference and reference["fingerprint"] != self.target.fingerprint:
      raise InversionViewError(
        f"{workdir} reads another target or other layers ({reference['path']}); use another --workdir"
      )
    if has_copy and args.target and load_target(self._own).fingerprint != self.target.fingerprint:
      raise InversionViewError(
        f"{workdir} has another target than {self.source}; use another --workdir, or leave out --target"
      )

  def _stored(self) -> tuple[dict | None, bool]:
    """The reference in the workdir, and whether it has a copy of a target."""
    from inversionview_jax.targets import read_reference

    return read_reference(self._own), (self._own / "model.json").exists()

  def store(self) -> None:
    """Writes the copy or the reference, where it is not there; called with the lock of the workdir."""
    from inversionview_jax.devices import hosts
    from inversionview_jax.targets import task_and_target, write_reference

    if not hosts.all_true(not hosts.is_writer() or self._stored() == self._before):
      raise InversionViewError(f"another run has changed {self._own} meanwhile: run the same command again")
    if hosts.is_writer():
      if self._language:
        write_reference(self._own, self.source, self.target)
      elif not self._before[1]:
        task_and_target(self._config.task, self.source, convention="raw", **self._loading)[1].save(self._own)
      self._before = self._stored()


def _rows(task, config):
  """Indices of the training inputs and of the held-out ones."""
  from inversionview_jax.tasks import datasets

  location = {"config": config.data.config, "data_dir": config.data.dir or None}
  return datasets.load_rows(task, "train", **location), datasets.load_rows(task, "test", **location)


def _join(hosts, args) -> None:
  """Connects the hosts, before anything touches a device."""
  from inversionview_jax.training import checkpoints

  checkpoints.silence_orbax()
  hosts.start(*flags.hosts_of(args))
  hosts.print_on_first_host_only()
