"""The panel of attention patterns: one large, its row of the chosen position in words, and the others to choose from."""

import numpy as np

from inversionview_jax import sites
from inversionview_jax.preimage.render import plots
from inversionview_jax.preimage.render.fragments import escape
from inversionview_jax.show.explorer.inputs import Input
from inversionview_jax.show.explorer.panels import card, pick, position_of
from inversionview_jax.show.explorer.state import View

_THUMBNAILS = 16  # attention patterns shown at once; where there are more heads, those of one layer are shown
_MOST_KEYS = 6  # of a row that is put in words


def attention(view: View, encoded: Input) -> str:
  """The attention pattern of one head, large, and those of the others to choose from."""
  n_layers, n_heads = encoded.patterns.shape[:2]
  layer, head = chosen_head(view, encoded)
  position = position_of(view, encoded)
  layers = range(n_layers) if n_layers * n_heads <= _THUMBNAILS else [layer]
  small = "".join(
    f'{pick(f"head {h} of layer {l}", head=f"{l}.{h}")} aria-pressed="{str((l, h) == (layer, head)).lower()}" class="ex-thumb">'
    f"{plots.pattern(encoded.strings, encoded.patterns[l, h], labels=False)}a{l}.{h}</button>"
    for l in layers
    for h in range(n_heads)
  )
  others = ""
  if len(layers) < n_layers:
    others = "".join(
      f'{pick(f"layer {l}", head=f"{l}.{head}")} aria-pressed="{str(l == layer).lower()}" class="ex-chip">{l}</button>'
      for l in range(n_layers)
    )
    others = f'<p class="ex-chips">layer {others}</p>'
  large = plots.pattern(encoded.strings, encoded.patterns[layer, head], -1 if position is None else position)
  note = (
    "Each row is a query position, each column a key position; the framed row is the chosen position. A row adds up to 1."
    if view.notes
    else ""
  )
  row = "" if position is None else _row_of(encoded, encoded.patterns[layer, head], position)
  body = f'<h2>Attention of a{layer}.{head}</h2><div class="ex-attention"><div>{large}{row}</div><div>{others}<div class="ex-thumbs" data-keys>{small}</div></div></div>'
  return card(body, note)


def _row_of(encoded: Input, pattern: np.ndarray, position: int) -> str:
  """The row of a query position in words: the keys with the most weight, as a table."""
  weights = pattern[position, : position + 1]
  lines, shown = "", [int(k) for k in np.argsort(-weights, kind="stable")[:_MOST_KEYS] if weights[k] >= 0.01]
  for k in shown:
    label = encoded.labels[k]
    name = f"{escape(label)} " if label and label != encoded.strings[k] else ""
    about = escape(encoded.about_position(k))
    lines += (
      f'<tr><th scope="row">{name}<code>{escape(encoded.strings[k]) or "∅"}</code><small> position {k}{f", {about}" if about else ""}</small></th>'
      f'<td class="iv-bar" style="--r:{100 * weights[k]:.0f}%">{weights[k]:.2f}</td></tr>'
    )
  rest = float(weights.sum() - sum(weights[k] for k in shown))
  query = encoded.labels[position] or f"position {position}"
  caption = f"From <code>{escape(encoded.strings[position]) or '∅'}</code> ({escape(query)}) the head attends to"
  more = f'<p class="iv-note">all others together {rest:.2f}</p>' if rest >= 0.005 else ""
  return f'<table class="iv-features ex-row-of"><caption>{caption}</caption><tbody>{lines}</tbody></table>{more}'


def chosen_head(view: View, encoded: Input) -> tuple[int, int]:
  """(layer, head) whose attention is shown."""
  n_layers, n_heads = encoded.patterns.shape[:2]
  layer, _, head = view.head.partition(".")
  if layer.isdecimal() and head.isdecimal() and int(layer) < n_layers and int(head) < n_heads:
    return int(layer), int(head)
  site = sites.parse(view.site)
  return (0, 0) if site.layer is None or site.head is None else (site.layer, site.head)
