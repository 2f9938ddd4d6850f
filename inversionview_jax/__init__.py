"""inversionview_jax: read what a neural activation says, from the inputs that would have put nearly the same activation there.

    import inversionview_jax as iv

    reader = iv.load_reader("addition")
    reader.preimage("615+861=1476", site="a0.0", position="=")

InversionView: Huang, Panwar, Goyal and Hahn, NeurIPS 2024, arXiv 2405.17653.
"""

import importlib

from inversionview_jax._version import __version__
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preimage import Preimage, Query, Sample
from inversionview_jax.tasks.registration import register_when_imported

# Saved preimages are shown without JAX, which takes a second to import; what needs it is found here when it is asked for.
_LAZY = {
  "Request": "reading.reader",
  "Reader": "reading.reader",
  "load_reader": "reading.reader",
  "shipped_readers": "reading.reader",
  "Edit": "targets.target",
  "Target": "targets.target",
  "load_target": "targets.target",
  "ablate": "causal.interventions",
  "attribute": "causal.attribution",
  "patch": "causal.interventions",
  "verify": "causal.verification",
}
__all__ = ["__version__", "InversionViewError", "Preimage", "Query", "Sample", *_LAZY]

register_when_imported()


def __getattr__(name: str):
  if name in _LAZY:
    return getattr(importlib.import_module(f"inversionview_jax.{_LAZY[name]}"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__():
  return sorted([*globals(), *_LAZY])
