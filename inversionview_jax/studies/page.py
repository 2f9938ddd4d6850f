"""The page of a study: a table of places, and of each what it encodes, what patching says, and some of its preimages. Needs no JAX."""

from collections.abc import Mapping, Sequence
from typing import Any

from inversionview_jax.preimage import Preimage
from inversionview_jax.preimage.render import fragments
from inversionview_jax.preimage.render.fragments import DisplayOptions, escape
from inversionview_jax.preimage.render.pages import document
from inversionview_jax.studies import data

_STYLE = """
header,nav,section.st{max-width:80rem;margin:0 auto 1.4rem}
h1{margin:0 0 .3rem}
.st-dim{color:light-dark(#5d6775,#97a1af);font-size:.88rem;margin:.2rem 0}
code.st{display:block;white-space:pre-wrap;overflow-wrap:anywhere;padding:.6rem .8rem;border-radius:8px;background:light-dark(#e9edf2,#15181d);font-size:.82rem}
.st-scroll{overflow-x:auto}
table.st{border-collapse:collapse;font-size:.85rem;font-variant-numeric:tabular-nums}
table.st :is(th,td){padding:.25rem .6rem;text-align:right;border-bottom:1px solid light-dark(#d5dae1,#2a2f37);white-space:nowrap}
table.st :is(th,td):is(:first-child,.l),table.st-places :is(th,td):last-child{text-align:left}
table.st td.l:not(:first-child),table.st-places td:last-child{white-space:normal;min-width:9rem}
tr.st-yes td:first-child{font-weight:700}
section.st summary{cursor:pointer;margin:.4rem 0}
@media(max-width:700px){table.st-places :is(th,td):nth-child(n+3):nth-child(-n+12){display:none}}
@media print{section.st details:not([open])>summary{display:none}}
section.st main{display:grid;gap:1rem;grid-template-columns:repeat(auto-fit,minmax(min(100%,27rem),1fr))}
"""
SHOWN = 12  # samples of each preimage


def to_page(
  study: Mapping[str, Any], preimages: Mapping[str, Sequence[Preimage]], title: str, picture: str = ""
) -> str:
  """A self-contained page.

  Args:
    study: what `data.result` returned.
    preimages: "SITE@POSITION" -> preimages of that place.
    title: of the page.
    picture: SVG of the study's circuit, where it has one.
  """
  target = study["target"]
  name = target.get("name") or target.get("target") or ""
  lines = [f"{escape(str(name))} · task {escape(study['task'])} · inversionview_jax {escape(study['version'])}"]
  lines += [escape(line) for line in study.get("summary", ())]
  header = f"<header><h1>{escape(title)}</h1>" + "".join(f'<p class="st-dim">{line}</p>' for line in lines)
  header += f'<p class="st-dim">Made by</p><code class="st">{escape(study["command"])}</code></header>\n'
  rows = "".join(_row(place) for place in study["places"])
  head = "".join(f'<th scope="col">{escape(one)}</th>' for one in data.HEADINGS)
  table = f'<nav class="st-scroll"><table class="st st-places"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{_notes(study)}</nav>\n'
  options = DisplayOptions(SHOWN, notes=False, compact=True)
  sections = "".join(_section(place, preimages.get(_name(place), ()), options) for place in study["places"])
  return document(title, header + _roles(study) + _circuit(study, picture) + table + sections, _STYLE)


def _name(place: Mapping[str, Any]) -> str:
  return f"{place['site']}@{place['position']}"


def _row(place: Mapping[str, Any]) -> str:
  cells = data.row(place)
  first = f'<td><a href="#{escape(_name(place))}">{escape(cells[0])}</a></td>'
  rest = "".join(f"<td>{escape(cell)}</td>" for cell in cells[1:])
  return f'<tr class="{"st-yes" if place["verified"] else "st-no"}">{first}{rest}</tr>'


def _notes(study: Mapping[str, Any]) -> str:
  return (
    '<p class="st-dim">members: median number of inputs inside ε of a query · rate: share of them that have the query\'s value of the '
    "feature, mean over queries; base: of all inputs of the pool; control: of the members of other queries · direct effect: contribution to "
    "the logit of the answer less that of another one; rank: of the answer among all tokens by that contribution · patch: what the "
    "activation of an input that differs in the feature only takes from that logit difference; same value: what one of an input with the same "
    "value of the feature takes · a reading names a feature from a rate of 0.8 and 0.7 of what chance leaves, up to a control of base + 0.1; "
    "in brackets the largest epsilon at which it does; patching agrees where it changes more than three standard errors, and the same value "
    "at most half of it</p>"
  )


def _roles(study: Mapping[str, Any]) -> str:
  """The table of roles, where the study has one."""
  if not (roles := study.get("roles")):
    return ""
  rows = [(*data.role_row(one), one["evidence"]) for one in roles]
  return _table((*data.ROLE_HEADINGS, "by what a head has it"), rows)


def _circuit(study: Mapping[str, Any], picture: str) -> str:
  """The circuit's picture and its nodes, where the study has one."""
  if not (nodes := study.get("circuit")):
    return ""
  return f'<nav class="st-scroll">{picture}</nav>\n' + _table(data.NODE_HEADINGS, list(map(data.node_row, nodes)))


def _table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  head = "".join(f'<th scope="col" class="l">{escape(name)}</th>' for name in headings)
  body = "".join("<tr>" + "".join(f'<td class="l">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows)
  return f'<nav class="st-scroll"><table class="st"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></nav>\n'


def _section(place: Mapping[str, Any], preimages: Sequence[Preimage], options: DisplayOptions) -> str:
  name = _name(place)
  measures = " · ".join(f"{key} {value:.2f}" for key, value in place["measures"].items())
  first = place["readings"][0]
  patches = "".join(
    f"<li>{escape(one['feature'])}: {one['only']['mean']:.3f} of {one['total']['mean']:.3f} "
    f"(n = {one['only']['n']}); same value {one['rest']['mean']:.3f}; {'agrees' if one['agrees'] else 'does not agree'}</li>"
    for one in place["patches"]
  )
  shown = "".join(fragments.section(p, options) for p in preimages)
  folded = f"<summary>samples of {len(preimages)} preimages</summary>"
  samples = f"<details>{folded}<main>{shown}</main></details>" if preimages else ""
  role = f" · {escape(place['role'])}" if place["role"] else ""
  return (
    f'<section class="st" id="{escape(name)}"><h2><code>{escape(name)}</code>{role}</h2><p>{escape(place["verdict"])}</p>'
    f'<p class="st-dim">{escape(measures)} · {first["queries"]} queries read, {first["too_few"]} with too few members</p>'
    f'<div class="st-scroll">{_rates(place["readings"])}</div>'
    f"<ul>{patches}</ul>{samples}</section>\n"
  )


def _rates(readings: Sequence[Mapping[str, Any]]) -> str:
  """A table of features: rate and control of each at every epsilon, in bold where the reading names it."""
  by_name = [{one["feature"]: one for one in reading["features"]} for reading in readings]
  names = list(dict.fromkeys(name for found in by_name for name in found))
  epsilons = "".join(
    f'<th scope="colgroup" colspan="2">ε {reading["epsilon"]:g}, {reading["members"]:.0f} members</th>'
    for reading in readings
  )
  head = f'<tr><th scope="col" rowspan="2">feature</th><th scope="col" rowspan="2">base</th>{epsilons}</tr>'
  head += "<tr>" + '<th scope="col">rate</th><th scope="col">control</th>' * len(readings) + "</tr>"
  rows = ""
  for name in names:
    base = next(found[name]["base"] for found in by_name if name in found)
    cells = f"<td>{escape(name)}</td><td>{base:.2f}</td>"
    for found in by_name:
      if (one := found.get(name)) is None:
        cells += "<td>-</td><td>-</td>"
        continue
      interval = f"95 %: {one['rate']['low']:.2f} to {one['rate']['high']:.2f}"
      if one["elsewhere"] is not None:
        interval += f"; of other subjects {one['elsewhere']:.2f}"
      rate = f"{one['rate']['value']:.2f}"
      control = "-" if one["control"] is None else f"{one['control']:.2f}"
      cells += f'<td title="{interval}">{f"<b>{rate}</b>" if one["named"] else rate}</td><td>{control}</td>'
    rows += f"<tr>{cells}</tr>"
  return f'<table class="st"><thead>{head}</thead><tbody>{rows}</tbody></table>'
