"""A `Preimage` for the eye: terminal text, HTML fragments, self-contained pages; needs no JAX.

All say the same: whose activation it is, the query's tokens with the position marked (and, at a head, where it attends to), then samples
by distance with a line at epsilon, each token coloured by what the activation did to its probability (arXiv 2405.17653).

Token strings and names come from vocabularies and files, so none is trusted: control characters are made visible, rich markup is never
parsed, and every string that enters HTML is escaped. Pages have no scripts and load nothing.
"""

from inversionview_jax.preimage.render.fragments import Look, to_html
from inversionview_jax.preimage.render.pages import to_page, write_page
from inversionview_jax.preimage.render.style import STYLE
from inversionview_jax.preimage.render.terminal import TerminalView, print_preimage, to_rich, to_text
from inversionview_jax.preimage.render.words import visible

__all__ = [
  "STYLE",
  "Look",
  "TerminalView",
  "print_preimage",
  "to_html",
  "to_page",
  "to_rich",
  "to_text",
  "visible",
  "write_page",
]
