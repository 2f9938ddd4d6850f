"""inversionview_jax: read what a neural activation encodes, from the inputs that put nearly the same activation there.

    import inversionview_jax as iv

    reader = iv.load_reader("addition")
    reader.preimage("615+861=1476", site="a0.0", position="=")

InversionView: Huang, Panwar, Goyal and Hahn, NeurIPS 2024, arXiv 2405.17653.
"""

import importlib
from typing import TYPE_CHECKING

from inversionview_jax._version import __version__
from inversionview_jax.errors import InversionViewError
from inversionview_jax.preimage import Preimage, Query, Sample
from inversionview_jax.tasks.registration import register_when_imported

if TYPE_CHECKING:
  from inversionview_jax.causal.attribution import Attribution, attribute
  from inversionview_jax.causal.circuits import Circuit, circuit
  from inversionview_jax.causal.interventions import Effects, ablate, patch
  from inversionview_jax.causal.verification import Verdict, verify
  from inversionview_jax.measures.claim_check import ClaimCheck
  from inversionview_jax.measures.claims import check
  from inversionview_jax.reading import Reader, Request, load_reader, preimage, shipped_readers
  from inversionview_jax.targets import Edit, Run, Target, load_target, logit_lens
  from inversionview_jax.tasks import Mixture, Task

# Saved preimages are shown without JAX, which takes a second to import: these names are imported when they are first used.
_LAZY = {
  "Attribution": "causal.attribution",
  "Circuit": "causal.circuits",
  "ClaimCheck": "measures.claim_check",
  "Edit": "targets",
  "Effects": "causal.interventions",
  "Mixture": "tasks",
  "Reader": "reading",
  "Request": "reading",
  "Run": "targets",
  "Target": "targets",
  "Task": "tasks",
  "Verdict": "causal.verification",
  "ablate": "causal.interventions",
  "attribute": "causal.attribution",
  "circuit": "causal.circuits",
  "check": "measures.claims",
  "load_reader": "reading",
  "load_target": "targets",
  "logit_lens": "targets",
  "patch": "causal.interventions",
  "preimage": "reading",
  "shipped_readers": "reading",
  "verify": "causal.verification",
}
__all__ = [
  "Attribution",
  "Circuit",
  "ClaimCheck",
  "Edit",
  "Effects",
  "InversionViewError",
  "Mixture",
  "Preimage",
  "Query",
  "Reader",
  "Request",
  "Run",
  "Sample",
  "Target",
  "Task",
  "Verdict",
  "__version__",
  "ablate",
  "attribute",
  "check",
  "circuit",
  "load_reader",
  "load_target",
  "logit_lens",
  "patch",
  "preimage",
  "shipped_readers",
  "verify",
]

register_when_imported()
# `iv.preimage` is the function. The folder of that name, which was bound here when it was imported above, is used by its full name.
globals().pop("preimage")


def __getattr__(name: str) -> object:
  if name in _LAZY:
    return getattr(importlib.import_module(f"inversionview_jax.{_LAZY[name]}"), name)
  raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
  return sorted({*globals(), *_LAZY})
