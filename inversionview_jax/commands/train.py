"""`inversionview train-target` and `inversionview train`: a target on its task, and a decoder on a target's activations."""

import argparse
import pathlib

from inversionview_jax.commands.configs import load_config
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import make_folder

_ABOUT = """\
Any setting of the config can be changed:

  inversionview {name} --config configs/addition.py:tiny --workdir W --config.seed=1 --config.{key}.lr=0.003

Running the same command again resumes from the newest checkpoint in the workdir. SIGTERM saves and exits with code 75, which means
"again". On several hosts run the same command on each of them: TPU slices, SLURM and Open MPI are recognised; elsewhere give --coordinator,
--num_processes and --process_id.
"""


def add_parser(commands) -> None:
  for name, key, run, about in (
    ("train-target", "target.optimizer", _train_target, "train a target model on its task"),
    ("train", "optimizer", _train, "train a decoder on a target's activations"),
  ):
    train = commands.add_parser(
      name,
      help=about,
      description=about.capitalize() + ".",
      epilog=_ABOUT.format(name=name, key=key),
      allow_abbrev=False,
      formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("--config", required=True, help="a config file and a variant, such as configs/addition.py:tiny")
    train.add_argument("--workdir", required=True, help="where everything of this run goes")
    _add_hosts(train)
    if name == "train":
      train.add_argument(
        "--target", help="a target to read (default: the one in the workdir, else the task's shipped one)"
      )
    train.set_defaults(run=run)


def _train_target(args, overrides) -> int:
  from inversionview_jax import tasks
  from inversionview_jax.devices import hosts, parallel
  from inversionview_jax.training import decoder_objective, loop

  config = load_config(args.config, overrides)
  _join(hosts, args)
  task, folder = tasks.get(config.task), make_folder(args.workdir) / "target"
  settings = config.target.copy_and_resolve_references()
  settings.unlock()
  settings.seed = config.seed
  for name in loop.OF_THE_RUN:  # where and how it is computed, said once for both models
    if name in config and name not in settings:
      settings[name] = config[name]
  mesh = parallel.mesh_of(settings)
  loop.refuse_workdir(settings, folder, mesh)
  rows, held_out = _rows(task, config)
  print(config)
  parallel.use_compilation_cache()
  metrics = loop.train(decoder_objective.TargetObjective(task, settings, held_out, mesh), rows, settings, folder, mesh)
  print(f"accuracy of whole answers, {metrics['held_out']:,.0f} held-out inputs: {metrics['accuracy']:.5f}")
  for name, value in metrics.items():
    if name.startswith("accuracy_"):
      print(f"{name}: {value:.5f}")
  print(f"target: {folder}")
  return 0


def _train(args, overrides) -> int:
  from inversionview_jax import tasks
  from inversionview_jax.devices import hosts, parallel
  from inversionview_jax.training import decoder_objective, loop

  config = load_config(args.config, overrides)
  _join(hosts, args)
  mesh = parallel.mesh_of(config)
  loop.refuse_workdir(config, pathlib.Path(args.workdir) / "decoder", mesh)
  of_a_model = tasks.is_language(config.task)
  task, target, source, workdir = (_language_target if of_a_model else _own_target)(args, config, mesh)
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


def _own_target(args, config, mesh):
  """-> task, target, where it came from, and the workdir, which now holds a copy of it."""
  from inversionview_jax import tasks
  from inversionview_jax.devices import hosts
  from inversionview_jax.targets.target import load_target, refuse_other_tokenizer

  task, workdir = tasks.get(config.task), make_folder(args.workdir)
  own = workdir / "target"
  has_own = (own / "model.json").exists()
  source = args.target or (str(own) if has_own else task.name)
  dtype = (config.get("compute") or {}).get("target_dtype", "") or None
  target = load_target(source, tokenizer=task.tokenizer, dtype=dtype, mesh=mesh)
  refuse_other_tokenizer(target, task, source)
  if has_own and args.target and load_target(own).fingerprint != target.fingerprint:
    raise InversionViewError(
      f"{workdir} has another target than {source}; use another --workdir, or leave out --target"
    )
  hosts.all_true(True)  # all have looked before one writes
  if (
    not has_own and hosts.is_writer()
  ):  # so that the workdir is a reader on its own, and goes on with this target when resumed
    load_target(source, convention="raw", tokenizer=task.tokenizer).save(own)
  return task, target, source, workdir


def _language_target(args, config, mesh):
  """The same for a language model, of which the workdir says where it is."""
  from inversionview_jax.devices import hosts
  from inversionview_jax.targets import language_model

  where = pathlib.Path(args.workdir) / "target"
  said = language_model.said_in(where)
  source = args.target or (said and said["path"]) or config.target.path
  target, task = language_model.load_for(config.task, config, source, names=tuple(config.sites), mesh=mesh)
  if said and said["fingerprint"] != target.fingerprint:
    raise InversionViewError(
      f"{args.workdir} reads another target or other layers ({said['path']}); use another --workdir"
    )
  hosts.all_true(True)  # as above
  workdir = make_folder(args.workdir)
  if hosts.is_writer():
    language_model.write(where, source, target)
  return task, target, source, workdir


def _rows(task, config):
  from inversionview_jax.tasks import datasets

  where = {"config": config.data.config, "data_dir": config.data.dir or None}
  return datasets.load_rows(task, "train", **where), datasets.load_rows(task, "test", **where)


def _add_hosts(command) -> None:
  """The flags by which processes on several hosts find one another, where the environment does not say."""
  command.add_argument("--coordinator", default="", metavar="HOST:PORT", help="the first process, as all can reach it")
  command.add_argument("--num_processes", type=int, default=0, help="how many processes there are")
  command.add_argument("--process_id", type=int, default=-1, help="which of them this is, from 0")


def _join(hosts, args) -> None:
  from inversionview_jax.training import checkpoints

  checkpoints.quiet()
  hosts.start(args.coordinator, args.num_processes, args.process_id)
  hosts.print_on_first_host_only()
