"""Causal experiments on three-digit addition: the paper's activation patching, and the ablation of "+".

    inversionview patch --config verify_addition --out W               # all twelve
    inversionview patch --config verify_addition:A1_F1S1 --out W       # one
    inversionview patch --config verify_addition --target T --out W    # another target of the task

A pair is an input of the held-out split and the same with some operand digits redrawn from 0 to 9 (leading zeros included) until the predicted
digit differs, the answer recomputed. The heads are patched at the position that predicts that digit, from the first to the last and back. The
condition "A1 == 1" selects answers of four digits, as in the paper; for a corrupted input it also accepts answers of three digits that begin
with 1. Where the sums of the hundreds and of the tens are both 9, a carry out of the ones would change the length.
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks

_NO_CHAIN = "not (F1 + S1 == 9 and F2 + S2 == 9)"
_SHORT, _LONG = "A1 != 1", "A1 == 1"
# name: predicted digit, where it is predicted, digits that change, condition on the clean and on the corrupted input
_PATCHES = {
  "A1_F1S1": ("A1", "=", ("F1", "S1"), "", ""),
  "A1_F2S2": ("A1", "=", ("F2", "S2"), "F1 + S1 < 10", ""),
  "A2_long_F1S1": ("A2", "A1", ("F1", "S1"), _LONG, _LONG),
  "A2_long_F2S2": ("A2", "A1", ("F2", "S2"), "F1 + S1 >= 10", _LONG),
  "A2_short_F2S2": ("A2", "A1", ("F2", "S2"), _SHORT, _SHORT),
  "A2_short_F3S3": ("A2", "A1", ("F3", "S3"), f"{_SHORT} and {_NO_CHAIN}", _SHORT),
  "A3_long_F2S2": ("A3", "A2", ("F2", "S2"), _LONG, _LONG),
  "A3_long_F3S3": ("A3", "A2", ("F3", "S3"), f"{_LONG} and {_NO_CHAIN}", _LONG),
  "A3_short_F3S3": ("A3", "A2", ("F3", "S3"), _SHORT, _SHORT),
  "A4_long_F3S3": ("A4", "A3", ("F3", "S3"), _LONG, _LONG),
  "A4_F1S1": ("A4", "A3", ("F1", "S1"), "", ""),
}
VARIANTS = ("all", *_PATCHES, "plus")


def get_config(variant: str = "all") -> ConfigDict:
  """All experiments, or the one of this name."""
  blocks.check_variant(variant, VARIANTS, __file__, "experiment")
  config = blocks.experiments("addition", pairs=100_000, batch_size=2_048)
  for name, (predict, position, change, where, contrast_where) in _PATCHES.items():
    if variant in ("all", name):
      config.experiments[name] = ConfigDict(
        {
          "kind": "patch",
          "about": f"predicting {predict} at {position}, changing {' and '.join(change)}"
          + (f", {where}" if where else ""),
          "contrast": {"change": change, "predict": predict, "where": where, "contrast_where": contrast_where},
          "addresses": (),  # none: every head
          "position": position,
          "orders": ("forward", "backward"),
        }
      )
  if variant in ("all", "plus"):
    config.experiments.plus = ConfigDict(
      {
        "kind": "ablate",
        "about": 'x0.post at "+" replaced by its mean: effect on the predictions after it',
        "addresses": ("x0.post@+",),
        "position": "+",
        "to": "mean",  # over the inputs of this experiment; or "zero"
        "read": ("=", "A1", "A2", "A3"),  # where predictions are compared
        "orders": ("together",),
      }
    )
  return config
