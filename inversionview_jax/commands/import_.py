"""`inversionview import`: reads decoders and preimages of the paper's release."""

import argparse
import dataclasses
import pathlib
from typing import TYPE_CHECKING, Any

from inversionview_jax.commands import flags
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import check_can_make, files_together, make_folder, path_of
from inversionview_jax.terminal import print_text

if TYPE_CHECKING:
  from inversionview_jax.targets import Target
  from inversionview_jax.tasks import Task

_DESCRIPTION = """\
Read files of the paper's PyTorch release; the folder decides which kind they are.

A decoder (a Hugging Face folder whose config.json names probed_acts) becomes a reader of the same logits:

  inversionview import checkpoint-390700 --task addition --target T --out W
  inversionview view "615+861=1476" --reader W --site a0.0 --position =

A directory of the viewer (a folder for each text) becomes a preimage for each file; no model is needed:

  inversionview import cached_addition_generation --task addition --out D
"""


def add_parser(commands: Any) -> None:
  """Adds `import` to the commands."""
  parser = flags.add_command(
    commands, "import", run, "read decoders and preimages of the paper's release", _DESCRIPTION
  )
  parser.add_argument("source", help="a folder")
  flags.add(parser, "task", required=True)
  flags.add(parser, "target")
  flags.add(parser, "epsilon")
  flags.add(parser, "out", required=True)


def run(args: argparse.Namespace, rest: list[str]) -> int:
  """Converts the folder."""
  del rest
  from inversionview_jax import tasks
  from inversionview_jax.pretrained import release

  source = path_of(args.source)
  if not source.is_dir():
    raise InversionViewError(f"no folder {args.source!r}")
  check_can_make(args.out)
  task = tasks.get(args.task)
  if release.is_release(source):
    return _import_decoder(args, source, task)
  if (source / "config.json").exists():
    raise InversionViewError(
      f"{args.source} is a Hugging Face folder, but its config.json names no probed_acts: it is no decoder of the paper's release"
    )
  return _import_preimages(args, source, task)


def _import_preimages(args: argparse.Namespace, source: pathlib.Path, task: "Task") -> int:
  from inversionview_jax.show import paper_viewer

  preimages = [  # all of them are read before the first is written
    (page.path, paper_viewer.preimage_of(page, task, args.epsilon, source.name)) for page in paper_viewer.read(source)
  ]
  with files_together(args.out) as folder:
    for path, preimage in preimages:
      make_folder(folder / path.split("/")[0])
      preimage.to_json(folder / path)
  print_text(f"{len(preimages)} preimages written to {args.out}")
  return 0


def _import_decoder(args: argparse.Namespace, source: pathlib.Path, task: "Task") -> int:
  if args.epsilon is not None:
    raise InversionViewError(f"--epsilon {args.epsilon} is for preimages; a reader takes it with each query")
  from inversionview_jax.pretrained import release
  from inversionview_jax.targets import task_and_target
  from inversionview_jax.training import decoder_objective

  out = path_of(args.out)
  if (out / "decoder" / "model.json").exists() or (out / "target" / "model.json").exists():
    raise InversionViewError(f"{args.out} holds a reader already; give another --out")
  config, variables, metadata = release.load(source)
  name = args.target or task.name
  (_, target), (_, raw) = task_and_target(task.name, name), task_and_target(task.name, name, convention="raw")
  _check(config, metadata, target, task, args.source)
  # The release lets a decoder write BOS, or PAD in the middle of a text; a reader never does. All other logits are the same.
  t = task.tokenizer
  config = dataclasses.replace(config, forbidden=(t.bos_id, t.pad_id))
  notes = {"imported": source.name, "cross_attn": bool(config.transformer.cross_width)}
  with files_together(out) as folder:
    raw.save(folder / "target")
    decoder_objective.save_decoder(folder / "decoder", variables, config, target, task, notes)
  print_text(f"{len(config.sites)} sites: {', '.join(config.sites)}\nreader: {out}")
  return 0


def _check(config: Any, metadata: dict[str, Any], target: "Target", task: "Task", source: str) -> None:
  """Refuses a decoder that writes other tokens than the task, or reads another model than the target."""
  t = task.tokenizer
  if config.transformer.vocab_size != t.vocab_size:
    raise InversionViewError(
      f"the decoder in {source} writes {config.transformer.vocab_size} tokens, the task {task.name} has {t.vocab_size}"
    )
  for name, ours in (("bos_token_id", t.bos_id), ("eos_token_id", t.eos_id), ("pad_token_id", t.pad_id)):
    if metadata.get(name) is not None and metadata[name] != ours:
      raise InversionViewError(
        f"the decoder in {source} has {name} {metadata[name]}, the task {task.name} {ours}: their vocabularies differ"
      )
  if config.transformer.n_ctx < task.length:
    raise InversionViewError(
      f"the decoder in {source} writes at most {config.transformer.n_ctx} tokens, texts of {task.name} have {task.length}"
    )
  if config.d_activation != target.config.d_model:
    raise InversionViewError(
      f"the decoder in {source} reads activations of width {config.d_activation}, the target {target.name!r} has "
      f"{target.config.d_model}; give the model it was trained on with --target"
    )
  for site in config.sites:
    target.site(site)
