"""Causal experiments on character counting: the paper's activation patching, both kinds of contrast, both orders.

    inversionview patch --config verify_counting --out W
    inversionview patch --config verify_counting:flip --out W

The corrupted input is another string with another count ("another"), or the same with one letter flipped ("flip"). Patched are, one after the
other, the position embeddings of the queried letter and of ":"; the first layer's head at the queried letter, together with that letter's
embedding; the same head at ":"; and the second layer's head at ":". An activation is taken at a label (such as ":") of the corrupted input and
put at the same label of the clean one, which may be another index. Strings whose length alone determines the count (3 letters, or 27) are left out.
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks

_ABOUT = {"another": "the count, against another string", "flip": "the count, against one letter flipped"}
VARIANTS = ("all", *_ABOUT)


def get_config(variant: str = "all") -> ConfigDict:
  """Both experiments, or the one of this name."""
  blocks.check_variant(variant, VARIANTS, __file__, "experiment")
  config = blocks.experiments("counting", pairs=20_480, batch_size=1_024)
  for name, about in _ABOUT.items():
    if variant in ("all", name):
      config.experiments[name] = ConfigDict(
        {
          "kind": "patch",
          "about": about,
          "contrast": {"kind": name, "same_length": False, "where": "3 < length < 27", "contrast_where": ""},
          # one string per step; what a step names is patched at once
          "addresses": ("pos_embed@query pos_embed@:", "a0.0@query embed@query", "a0.0@:", "a1.0@:"),
          "position": ":",
          "orders": ("forward", "backward"),
        }
      )
  return config
