"""Display of a `Preimage`: terminal text, HTML fragments, self-contained pages; needs no JAX.

All show the same: reader and site, the query's tokens with the position marked (and, at a head, its attention), then samples by distance with
a line at epsilon, each token colored by the effect of the activation on its probability (arXiv 2405.17653).

Token strings and names come from vocabularies and files, so none is trusted: control characters are made visible, rich markup is never
parsed, and every string that enters HTML is escaped. Pages have no scripts and load nothing.
"""

from inversionview_jax.preimage.render.fragments import DisplayOptions, to_html
from inversionview_jax.preimage.render.pages import to_page, write_page
from inversionview_jax.preimage.render.style import STYLE
from inversionview_jax.preimage.render.terminal import TerminalView, print_preimage, to_rich, to_text
from inversionview_jax.terminal import visible

__all__ = [
  "STYLE",
  "DisplayOptions",
  "TerminalView",
  "print_preimage",
  "to_html",
  "to_page",
  "to_rich",
  "to_text",
  "visible",
  "write_page",
]
