"""A reader of your own language model on your own texts, without editing this file.

    inversionview train --config configs/text.py --target CHECKPOINT --config.inputs.files=texts.txt --workdir W
    inversionview view "A text of yours" --reader W --site x0.pre --position END

CHECKPOINT is a Hugging Face folder or a .gguf file. Sites are the residual stream at five depths unless --config.sites="('a9.6','m3')" names
others; `inversionview heads` ranks the heads. `:written` needs no texts: they are those that the model itself writes. configs/README.md has the kinds of files and what happens to long and empty texts. Variant `:tiny`
runs in tests.
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks

VARIANTS = ("full", "written", "tiny")


def get_config(variant: str = "full") -> ConfigDict:
  """The settings of one variant."""
  blocks.check_variant(variant, VARIANTS, __file__)
  config = blocks.reader("text")
  config.target = blocks.language_target()
  config.inputs = ConfigDict(
    {
      "files": (),
      "field": "text",  # of .jsonl files and datasets
      "split": "train",  # of datasets
      "data_dir": "",  # of TensorFlow Datasets
      "length": 24,
      "vocabulary": "data",  # the decoder writes the tokens that occur in the texts; "all": any token
      "long": "cut",  # or "left" out
      "empty": "refuse",  # empty lines; or "skip"
      "positions": (),  # where queries are taken; (): everywhere
      "count": 8192,  # texts that the target writes where there are no files; a GPU writes them in seconds, a CPU in minutes
    }
  )
  config.model = blocks.transformer(256)
  config.encoder_blocks, config.encoder_width, config.n_slots = 3, 256, 8
  config.normalize = "standard"
  config.pairs_per_text = 8
  config.optimizer = blocks.muon(4e-3, adam_lr=2e-3)
  blocks.schedule(config, batch_size=16, steps=10_000, steps_per_call=5, log_every=50, save_every=500)
  config.eval_queries, config.final_queries = 32, 200
  if variant == "written":
    config.inputs.vocabulary = "all"
  if variant == "tiny":
    blocks.tiny_language_reader(config)
    config.encoder_width, config.n_slots, config.pairs_per_text = 32, 2, 2
    config.optimizer.warmup_steps = 1
  return config
