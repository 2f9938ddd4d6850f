"""Self-contained pages: one file, no scripts, nothing loaded."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING

from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import write_whole
from inversionview_jax.preimage.render.fragments import DisplayOptions, escape, section
from inversionview_jax.preimage.render.style import PAGE_STYLE, STYLE

if TYPE_CHECKING:
  from inversionview_jax.preimage.data import Preimage

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def document(title: str, body: str, style: str = "") -> str:
  """A complete HTML document whose content policy forbids it to load or run anything; `body` is HTML, `title` text."""
  return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{escape(title)}</title>
<style>{STYLE}{PAGE_STYLE}{style}</style>
</head>
<body>
{body}</body>
</html>
"""


def to_page(
  preimages: Preimage | Sequence[Preimage],
  title: str = "InversionView",
  shown: int = 100,
  options: DisplayOptions | None = None,
) -> str:
  """A self-contained page of one or several preimages, in columns where the window is wide enough.

  Args:
    preimages: at least one.
    title: of the page.
    shown: samples of each preimage at most.
    options: what is shown, in place of `shown`.
  """
  preimages = [preimages] if not isinstance(preimages, Sequence) else list(preimages)
  if not preimages:
    raise InversionViewError("a page needs at least one preimage: the list is empty")
  options = options or DisplayOptions(shown)
  sections = "".join(section(p, options) for p in preimages)
  return document(title, f"<h1>{escape(title)}</h1>\n<main>\n{sections}</main>\n")


def write_page(
  path: str | os.PathLike, preimages: Preimage | Sequence[Preimage], title: str = "InversionView", shown: int = 100
) -> None:
  """Writes `to_page` to `path`, whole or not at all; raises `InversionViewError` when its folder is missing."""
  write_whole(path, to_page(preimages, title, shown))
