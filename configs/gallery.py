"""A page of preimages of both shipped readers.

    inversionview report --config configs/gallery.py --out configs/gallery.html
    inversionview report --config configs/gallery.py:addition --out addition.html --config.seed=1

Addition: every site at "=" of one sum, where the answer's first digit is predicted, and some sites at "A1" and "+". Counting: every site at ":",
where the count is predicted, and four sites at the queried letter.
"""

from ml_collections import ConfigDict

from inversionview_jax import config_blocks as blocks

VARIANTS = ("all", "addition", "counting")

_SUM, _STRING = "615+861=1476", "vvzccvczvvvzvcvc|v:8"
_ADDITION = (
  "x0.pre",
  *(f"a0.{h}" for h in range(4)),
  "x0.mid",
  "x0.post",
  *(f"a1.{h}" for h in range(4)),
  "x1.mid",
  "x1.post",
)
_COUNTING = ("x0.pre", "a0.0", "x0.mid", "m0", "x0.post", "a1.0", "x1.mid", "m1", "x1.post")


def get_config(variant: str = "all") -> ConfigDict:
  """Preimages of both readers, or those of one."""
  blocks.check_variant(variant, VARIANTS, __file__)
  config = ConfigDict()
  config.title = "What the activations of two small transformers encode"
  config.seed = 0
  config.num_samples = 1024
  config.shown = 30  # samples of each preimage, at most
  queries = []
  if variant in ("all", "addition"):
    queries += [("addition", _SUM, site, "=") for site in _ADDITION]
    queries += [("addition", _SUM, site, "A1") for site in ("a0.1", "a0.3", "a1.1", "x1.mid")]
    queries += [("addition", _SUM, site, "+") for site in ("x0.mid", "x0.post")]
  if variant in ("all", "counting"):
    queries += [("counting", _STRING, site, ":") for site in _COUNTING]
    queries += [("counting", _STRING, site, "query") for site in ("a0.0", "x0.mid", "m0", "x0.post")]
  config.queries = tuple(queries)  # (reader, text, site, position)
  return config
