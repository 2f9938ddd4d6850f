"""Many preimages in one self-contained page: an index by site and position, what each activation encodes, plots, and the command that made it.

Made from plain data, saved or new; needs no JAX, no network and no script.
"""

import os
import re
import statistics
from collections.abc import Callable, Sequence

from inversionview_jax import sites, tasks
from inversionview_jax._version import __version__
from inversionview_jax.errors import InversionViewError
from inversionview_jax.files import path_of
from inversionview_jax.measures import consistency
from inversionview_jax.preimage import FORMAT, Preimage
from inversionview_jax.preimage.render import formatting, fragments, plots
from inversionview_jax.preimage.render.fragments import DisplayOptions, escape
from inversionview_jax.preimage.render.pages import document
from inversionview_jax.show import feature_table

_STYLE = """
header,nav,.rp-about{max-width:150rem;margin:0 auto 1.4rem}
h1{margin:0 0 .3rem}
summary.rp{font-size:1.05rem;font-weight:650;margin:1.2rem 0 .7rem;cursor:pointer}
summary.rp>small{font-weight:400;font-size:.88rem;color:light-dark(#5d6775,#97a1af)}
summary.rp:focus-visible{outline:2px solid light-dark(#3f72cf,#6d9bea);outline-offset:2px}
.rp-dim{color:light-dark(#5d6775,#97a1af);font-size:.88rem;margin:.2rem 0}
code.rp{display:block;white-space:pre-wrap;overflow-wrap:anywhere;padding:.6rem .8rem;border-radius:8px;background:light-dark(#e9edf2,#15181d);font-size:.82rem}
.rp-scroll{overflow-x:auto}
.rp-index{border-collapse:separate;border-spacing:3px;font-size:.8rem;font-variant-numeric:tabular-nums}
.rp-index :is(th,td){padding:0;text-align:center;font-weight:400}
.rp-index th{padding:.2rem .5rem;font-family:ui-monospace,Menlo,Consolas,monospace}
.rp-index a{display:block;min-width:2.6rem;padding:.35rem .4rem;border-radius:6px;color:inherit;text-decoration:none;
background:color-mix(in srgb,light-dark(#3f72cf,#6d9bea) calc(var(--r)*45%),light-dark(#e9edf2,#15181d))}
.rp-index a+a{margin-top:2px}
.rp-index a:is(:hover,:focus-visible){outline:2px solid currentColor}
.rp-sides{display:flex;flex-wrap:wrap;gap:1.2rem 2rem;align-items:start}
.rp-sides>.rp-card{flex:1;min-width:min(100%,18rem);max-width:44rem}
.rp-index caption{text-align:left;white-space:nowrap;padding-bottom:.3rem}
.inversionview.rp-card{max-width:none}
.rp-sides>.inversionview.rp-card{max-width:44rem}
main{max-width:150rem;margin:0 auto;grid-template-columns:repeat(auto-fit,minmax(min(100%,36rem),1fr))}
main>.inversionview{max-width:none;box-sizing:border-box;container-type:inline-size}
@container(min-width:33rem){.iv-sides{display:grid;grid-template-columns:minmax(0,1fr) minmax(0,1fr);gap:1.6rem;align-items:start}}
@media(max-width:40rem){.rp-index caption{white-space:normal}main .iv-sides>div+div{max-height:19rem;overflow-y:auto;border-top:1px solid light-dark(#e3e7ec,#2b3038)}}
@media print{.iv-sides>div+div{max-height:none!important}nav{break-after:page}}
main>.inversionview{scroll-margin-top:1rem}
main>.inversionview:target{outline:2px solid light-dark(#3f72cf,#6d9bea)}
.rp-left{border-left:4px solid light-dark(#a84e05,#f0a94a);padding:.2rem .8rem}
"""


def read_folder(folder: "str | os.PathLike") -> tuple[list[Preimage], list[str]]:
  """All preimages of a folder and those below it, by path.

  Returns:
    The preimages, and a line for each file that was left out: one of another format or version, or a damaged one.

  Raises:
    InversionViewError: no such folder, or no preimage in it that can be read.
  """
  root = path_of(folder)
  if not root.is_dir():
    raise InversionViewError(
      f"no folder {os.fspath(folder)!r}: give one that holds preimages (`inversionview view --json`)"
    )
  preimages, left_out = [], []
  for path in sorted(root.rglob("*.json")):
    try:
      preimages.append(Preimage.from_json(path))
    except InversionViewError as error:
      reason = " ".join(str(error).split()).replace(str(root) + os.sep, "")
      left_out.append(f"{path.relative_to(root)}: {reason}")
  if not preimages:
    example = f"; for example {left_out[0]}" if left_out else ""
    raise InversionViewError(f"no preimage in {os.fspath(folder)!r}: no .json file of format {FORMAT!r}{example}")
  return preimages, left_out


def to_report(
  preimages: Sequence[Preimage],
  title: str = "What these activations encode",
  command: str = "",
  shown: int = 30,
  left_out: Sequence[str] = (),
  colors: bool = True,
) -> str:
  """An HTML page of many preimages.

  Args:
    preimages: at least one, in the order in which they are shown.
    title: of the page.
    command: the command line that made the page.
    shown: samples of each preimage at most.
    left_out: files that could not be read, a line each.
    colors: whether tokens are colored by their effect.
  """
  if not preimages:
    raise InversionViewError("a report needs at least one preimage: there is none")
  names = _anchors(preimages)
  options = DisplayOptions(shown, colors, notes=False, compact=True)
  readers = list(dict.fromkeys(p.reader for p in preimages))
  each = ", ".join(f"{escape(name)} ({sum(p.reader == name for p in preimages)})" for name in readers)
  about = f'<p class="rp-dim">{len(preimages)} preimages of {each} · inversionview_jax {__version__}</p>\n'
  if command:
    about += f'<p class="rp-dim">Made by</p><code class="rp">{escape(command)}</code>\n'
  if left_out:
    lines = "".join(f"<li>{escape(line)}</li>" for line in left_out)
    about += f'<div class="rp-left"><p>Left out, {len(left_out)} files:</p><ul>{lines}</ul></div>\n'
  body = f"<header><h1>{escape(title)}</h1>\n{about}</header>\n"
  for reader in readers:
    anchored = [(p, name) for p, name in zip(preimages, names, strict=True) if p.reader == reader]
    body += f'<nav aria-label="{escape(reader)}"><details open><summary class="rp">{escape(reader)} <small>{len(anchored)} preimages</small></summary>'
    body += (
      f'<div class="rp-sides"><div class="rp-scroll">{_index(anchored)}</div>{_rates(anchored)}</div></details></nav>\n'
    )
  sections = "".join(
    fragments.section(p, options, name, _encoded(p) + _settings(p)) for p, name in zip(preimages, names, strict=True)
  )
  body += f"<main>\n{sections}</main>\n{_about(preimages, options)}"
  return document(title, body, _STYLE)


def _anchors(preimages: Sequence[Preimage]) -> list[str]:
  """An id for each section, unique on the page."""
  names = []
  for k, p in enumerate(preimages):
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", f"{p.reader}-{p.query.site}")
    names.append(f"{plain}-{p.query.position}-{k}")
  return names


def _forward_order(site: str) -> tuple:
  """Sort key: the order of a forward pass; names that are no site come last."""
  kinds = tuple(sites.KINDS)
  try:
    parsed = sites.parse(site)
  except InversionViewError:
    return (1, site)
  last = 10**6 if parsed.kind.startswith("ln_final") else -1
  return (0, last if parsed.layer is None else parsed.layer, kinds.index(parsed.kind), parsed.head or 0)


def _index(anchored: Sequence[tuple[Preimage, str]]) -> str:
  """A table with a row for each site and a column for each position; each cell links to its preimages."""
  columns = list(
    dict.fromkeys(
      (p.query.label or str(p.query.position)) for p, _ in sorted(anchored, key=lambda item: item[0].query.position)
    )
  )
  cells: dict[tuple[str, str], str] = {}
  for p, name in anchored:
    key = p.query.site, p.query.label or str(p.query.position)
    label = f"{p.query.site} at {key[1]} of {p.query.text}"
    shade, shown = formatting.brief(p)
    link = f'<a href="#{name}" style="--r:{shade:.2f}" title="{escape(label)}">{shown}</a>'
    cells[key] = cells.get(key, "") + link
  head = "".join(f'<th scope="col">{escape(column)}</th>' for column in columns)
  rows = ""
  for site in sorted({p.query.site for p, _ in anchored}, key=_forward_order):
    rows += f'<tr><th scope="row">{escape(site)}</th>'
    rows += "".join(f"<td>{cells.get((site, column), '')}</td>" for column in columns) + "</tr>"
  kinds = {
    "share inside ε" if p.method == "decoder" else "bits" if p.bits is not None else "distinct inputs"
    for p, _ in anchored
  }
  unsure = "; ? has not converged" if any(p.converged is False for p, _ in anchored) else ""
  caption = f'<caption class="rp-dim">{" or ".join(sorted(kinds))}, by site and position{unsure}</caption>'
  return f'<table class="rp-index">{caption}<thead><tr><td></td>{head}</tr></thead><tbody>{rows}</tbody></table>'


def _rates(anchored: Sequence[tuple[Preimage, str]]) -> str:
  """Of each site, as bars: the mean in-epsilon rate of candidates; of particles, all of which lie inside, the mean bits where they are known."""
  tables = ""
  drawn = [p for p, _ in anchored if p.method == "decoder"]
  if drawn:
    rows = [(site, mean, f"{100 * mean:.0f} %{count}") for site, mean, count in _means(drawn, lambda p: p.rate)]
    tables += plots.rates(rows, "in-epsilon rate of the candidates by site, mean")
  known = [p for p, _ in anchored if p.bits is not None]
  if known:
    means = _means(known, lambda p: p.bits or 0.0)
    most = max(mean for _, mean, _ in means) or 1.0
    rows = [(site, mean / most, f"{mean:.2f} bits{count}") for site, mean, count in means]
    tables += plots.rates(rows, "information by site, mean")
  return f'<div class="inversionview rp-card">{tables}</div>' if tables else ""


def _means(preimages: Sequence[Preimage], value: Callable[[Preimage], float]) -> list[tuple[str, float, str]]:
  """Of each site in forward order: its name, the mean over its preimages, and of how many as text."""
  rows = []
  for site in sorted({p.query.site for p in preimages}, key=_forward_order):
    values = [value(p) for p in preimages if p.query.site == site]
    rows.append((site, statistics.fmean(values), f" of {len(values)}" if len(values) > 1 else ""))
  return rows


def _encoded(p: Preimage) -> str:
  """What the activation encodes, where its task is known here."""
  task = tasks.known(p.task)
  if task is None:
    return ""
  return feature_table.encoded_features(consistency.activation_reading(p, task), most=6, notes=False)


def _settings(p: Preimage) -> str:
  """Site, metric, how the samples were found and with which bits, as a line below the counts."""
  facts = dict(formatting.facts(p))
  how = [facts[name] for name in ("method", "bits") if name in facts]
  if p.method == "decoder":
    pairs = sorted({(s.temperature, s.noise) for s in p.samples})
    settings = ", ".join(f"({t:g}, {eta:g})" for t, eta in pairs[:6]) + (", …" if len(pairs) > 6 else "")
    how = [f"candidates at (temperature, noise) {settings}"]
  where = f"{p.query.site} at position {formatting.position_text(p.query)}"
  parts = (where, facts["distance"], *how, f"{p.convention} weights", f"seed {p.seed}")
  return f'<p class="iv-note">{escape(" · ".join(parts))}</p>'


def _about(preimages: Sequence[Preimage], options: DisplayOptions) -> str:
  """The explanation of the sections, once for all."""
  return (
    '<footer class="inversionview rp-card rp-about"><p class="iv-note">Each section is one activation: the query with its position framed '
    "(shaded: where the head attends to), the distances of all samples, what those inside ε share, and some of the samples. "
    "What it encodes: a property of the query; how many of the inputs inside ε have it; how many random inputs have it; bars show how much "
    f"of the gap between random inputs and all is closed.</p>{fragments.legend(preimages[0], options)}</footer>\n"
  )
