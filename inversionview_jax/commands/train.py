"""`inversionview train-target` and `inversionview train`: train a target on its task, and a decoder on a target's activations."""

import argparse
import pathlib
from typing import Any

from inversionview_jax.commands import flags
from inversionview_jax.commands.configs import load_config
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import make_folder

_EPILOG = """\
Every setting of the config can be changed:

  inversionview {name} --config configs/addition.py:tiny --workdir W --config.seed=1 --config.{key}.lr=0.003

Running the same command again resumes from the newest checkpoint in the workdir. SIGTERM saves and exits with code 75, which asks to
be run again. On several hosts run the same command on each of them: TPU slices, SLURM and Open MPI are detected; elsewhere give --coordinator,
--num-processes and --process-id.
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
      epilog=_EPILOG.format(name=name, key=key),
      overrides=True,
    )
    flags.add(parser, "config", required=True)
    flags.add(parser, "workdir", required=True)
    if name == "train":
      flags.add(
        parser, "target", unset="the one in the workdir, else the config's, else the one that ships for the task"
      )
      flags.add(parser, "family")
    flags.add_hosts(parser)


def run_train_target(args: argparse.Namespace, overrides: list[str]) -> int:
  """Trains the target, and prints its accuracy on held-out inputs."""
  from inversionview_jax import tasks
  from inversionview_jax.devices import hosts, parallel
  from inversionview_jax.training import loop, target_objective

  config = load_config(args.config, overrides)
  _join(hosts, args)
  task, folder = tasks.get(config.task), make_folder(args.workdir) / "target"
  settings = config.target.copy_and_resolve_references()
  settings.unlock()
  settings.seed = config.seed
  for name in loop.SHARED_KEYS:  # where and how it is computed: the same for both models unless the target has its own
    if name in config and name not in settings:
      settings[name] = config[name]
  mesh = parallel.mesh_of(settings)
  loop.refuse_workdir(settings, folder, mesh)
  rows, held_out = _rows(task, config)
  print(config)
  parallel.use_compilation_cache()
  metrics = loop.train(target_objective.TargetObjective(task, settings, held_out, mesh), rows, settings, folder, mesh)
  print(f"accuracy of whole answers, {metrics['held_out']:,.0f} held-out inputs: {metrics['accuracy']:.5f}")
  for name, value in metrics.items():
    if name.startswith("accuracy_"):
      print(f"{name}: {value:.5f}")
  print(f"target: {folder}")
  return 0


def run_train(args: argparse.Namespace, overrides: list[str]) -> int:
  """Trains the decoder, and prints its in-epsilon rate at each site."""
  from inversionview_jax.devices import hosts, parallel
  from inversionview_jax.training import decoder_objective, loop

  config = load_config(args.config, overrides)
  _join(hosts, args)
  mesh = parallel.mesh_of(config)
  loop.refuse_workdir(config, pathlib.Path(args.workdir) / "decoder", mesh)
  task, target, source, workdir = _target(args, config, mesh)
  rows, held_out = _rows(task, config)
  print(config)
  print(f"target: {source}")
  metrics = loop.train(
    decoder_objective.DecoderObjective(task, config, target, rows, held_out, mesh),
    rows,
    config,
    workdir / "decoder",
    mesh,
  )
  print(f"in-epsilon rate, mean over sites: {metrics['rate']:.3f}; lowest: {metrics['rate_lowest']:.3f}")
  for name, value in metrics.items():
    if name.startswith("rate/"):
      print(f"  {name.removeprefix('rate/'):8} {value:.3f}")
  print(f"reader: {workdir}")
  return 0


def _target(args, config, mesh):
  """The target that the decoder is trained on; the workdir then holds a copy of it, or a reference to a language model's checkpoint.

  Returns:
    The task, the target, its source, and the workdir.
  """
  from inversionview_jax import tasks
  from inversionview_jax.devices import hosts
  from inversionview_jax.targets import load_target, read_reference, task_and_target, write_reference

  workdir, own = pathlib.Path(args.workdir), pathlib.Path(args.workdir) / "target"
  reference, has_copy = read_reference(own), (own / "model.json").exists()
  if tasks.is_language(config.task):
    source = args.target or (reference and reference["path"]) or config.target.path
  else:
    source = args.target or (str(own) if has_copy else config.task)
  family = args.family or (reference and reference.get("family"))
  task, target = task_and_target(config.task, source, config, sites=tuple(config.sites), mesh=mesh, family=family)
  if reference and reference["fingerprint"] != target.fingerprint:
    raise InversionViewError(
      f"{workdir} reads another target or other layers ({reference['path']}); use another --workdir"
    )
  if has_copy and args.target and load_target(own).fingerprint != target.fingerprint:
    raise InversionViewError(
      f"{workdir} has another target than {source}; use another --workdir, or leave out --target"
    )
  make_folder(workdir)
  hosts.all_true(True)  # every host has checked before one writes
  if hosts.is_writer():
    if tasks.is_language(config.task):
      write_reference(own, source, target)
    elif not has_copy:  # so that the workdir is a reader on its own, and resumes with this target
      task_and_target(config.task, source, convention="raw", family=family)[1].save(own)
  return task, target, source, workdir


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
