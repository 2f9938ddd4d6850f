"""Colors and CSS of the picture of a circuit and of its page; text has a contrast of at least 4.5 on its ground, light and dark."""

# What an edge goes through: (name, light, dark).
EDGES = {
  "q": ("queries", "#8a4fd0", "#b794f4"),
  "k": ("keys", "#0b7d8a", "#45bccb"),
  "v": ("values", "#2f62c2", "#6d9bea"),
  "in": ("input of an MLP", "#a84e05", "#f0a94a"),
  "out": ("logits", "#3a7d2c", "#7fc866"),
}


def _both(name: str, light: str, dark: str) -> str:
  """A declaration for viewers that do not know `light-dark`, and one for those that do."""
  return f"{name}:{light};{name}:light-dark({light},{dark})"


# `light-dark` follows the color scheme of the page around the picture; a file of its own follows that of its reader.
PICTURE_STYLE = (
  ".cp{font-family:system-ui,-apple-system,'Segoe UI',Roboto,sans-serif;font-size:12px}"
  f".cp text{{{_both('fill', '#1c2127', '#e2e6ec')}}}"
  f".cp .cp-dim{{{_both('fill', '#5d6775', '#97a1af')}}}"
  f".cp .cp-ground{{{_both('fill', '#ffffff', '#15181d')}}}"
  f".cp .cp-band{{{_both('fill', '#f4f6f8', '#1b1f26')}}}"
  f".cp .cp-card{{{_both('fill', '#ffffff', '#232830')};{_both('stroke', '#a3acb8', '#626c7a')};stroke-width:1}}"
  f".cp .cp-bar{{{_both('fill', '#3f72cf', '#6d9bea')}}}"
  f".cp .cp-under{{{_both('fill', '#b3261e', '#f28b82')}}}"
  ".cp .cp-name{font-weight:700;font-size:13px}.cp .cp-share{font-variant-numeric:tabular-nums}"
  ".cp .cp-pos{font-weight:650;font-size:13px}.cp .cp-small{font-size:11px}"
  ".cp a{cursor:pointer;text-decoration:none}.cp a:focus{outline:none}"
  f".cp a:hover .cp-card,.cp a:focus-visible .cp-card{{{_both('stroke', '#1c2127', '#ffffff')};stroke-width:2.5}}"
  ".cp .cp-edge{fill:none;stroke-linecap:round}.cp .cp-edge.cp-minus{stroke-dasharray:5 5}"
  + "".join(f".cp .cp-{through}{{{_both('stroke', light, dark)}}}" for through, (_, light, dark) in EDGES.items())
  + ".cp .cp-edge:hover{stroke-opacity:1}"
)

# What a page and the explorer have in common; classes with the prefix "cp-" lie in an element of class "inversionview".
NODE_STYLE = (
  ".inversionview a{color:light-dark(#2f62c2,#8ab4f8);cursor:pointer}"
  ".inversionview :is(a,summary):focus-visible{outline:2px solid light-dark(#3f72cf,#6d9bea);outline-offset:2px;border-radius:3px}"
  ".inversionview h3{margin:1rem 0 .3rem;font-size:.9rem}.inversionview small{font-size:.85em;color:var(--dim)}"
  "svg.cp{display:block;max-width:100%;height:auto;margin:0 auto}.cp-narrow{display:none}"
  "svg.cp-curve{width:100%}.cp-curve path{fill:none}.cp-grid{stroke:light-dark(#e3e7ec,#2b3038)}"
  ".cp-ours{stroke:light-dark(#2f62c2,#6d9bea);stroke-width:2}.cp-random{stroke:light-dark(#5d6775,#97a1af);stroke-width:1.5;stroke-dasharray:4 3}"
  ".cp-curve .cp-ours-band{fill:light-dark(#2f62c2,#6d9bea);fill-opacity:.2}.cp-curve .cp-random-band{fill:light-dark(#5d6775,#97a1af);fill-opacity:.2}"
  ".cp-point{fill:light-dark(#2f62c2,#6d9bea)}.cp-chosen{fill:light-dark(#a84e05,#f0a94a)}.cp-size{stroke:light-dark(#a84e05,#f0a94a);stroke-dasharray:2 3}"
  ".inversionview dl.cp-figures{display:flex;flex-wrap:wrap;gap:.3rem 1.4rem;margin:0 0 .6rem}.inversionview .cp-figures>div{display:block}"
  ".inversionview .cp-figures dt{width:auto;font-size:.78rem}.inversionview .cp-figures dd{font-size:1.1rem;font-weight:650;font-variant-numeric:tabular-nums}"
  ".cp-keys{display:flex;flex-wrap:wrap;gap:.2rem 1.1rem;margin:.5rem 0;font-size:.82rem}"
  ".cp-key{display:inline-block;width:1.5rem;height:0;border-top:4px solid;border-radius:2px;vertical-align:.22em;margin-right:.4rem}"
  + "".join(
    f".cp-key-{through}{{border-color:light-dark({light},{dark})}}" for through, (_, light, dark) in EDGES.items()
  )
  + ".cp-key-minus{border-top:3px dashed}"
  ".cp-line-ours::before,.cp-line-random::before{content:'';display:inline-block;width:1.5rem;vertical-align:.25em;margin-right:.4rem;"
  "border-top:2px solid light-dark(#2f62c2,#6d9bea)}.cp-line-random::before{border-top:2px dashed light-dark(#5d6775,#97a1af)}"
  ".cp-detail>p{margin:0 0 .7rem;font-size:.9rem}.cp-close{float:right;font-size:.8rem;padding:.2rem .4rem}"
  ".cp-problem{color:var(--eps)}.inversionview.inversionview .cp-features :is(td,th){padding:.2rem .35rem .2rem 0;white-space:normal;font-size:.82rem}"
  ".inversionview.inversionview .cp-features thead th{white-space:normal;overflow-wrap:normal;padding:.2rem .35rem .2rem 0;font-size:.7rem;vertical-align:bottom}"
  ".inversionview.inversionview .cp-features td{white-space:nowrap}.inversionview.inversionview .cp-features td:last-child{color:inherit}"
  ".inversionview .cp-edges>div{margin:0 0 .4rem}.inversionview .cp-edges dt{width:2.2rem}"
  ".inversionview :is(.cp-edges ul,.cp-read,.cp-list){list-style:none;margin:0;padding:0;font-size:.86rem}"
  ".inversionview details{margin:.6rem 0 0;font-size:.9rem}.inversionview summary{cursor:pointer;padding:.2rem 0}"
  ".cp-preimage{border-top:1px solid var(--line);margin-top:.8rem}"
  # The narrow picture is not scaled, so that its texts keep their size.
  ".cp-narrow .cp{font-size:11px}.cp-narrow .cp .cp-small{font-size:10px}.cp-narrow .cp .cp-pos{font-size:11px}"
  "@media(max-width:44rem){.cp-wide{display:none}.cp-narrow{display:block;overflow-x:auto}}"
)

PAGE_STYLE = (
  "body{max-width:110rem;margin:0 auto}header{margin:0 0 1rem}h1{margin:0 0 .2rem}"
  ".cp-about{margin:0;font-size:.88rem;color:light-dark(#5d6775,#97a1af);overflow-wrap:anywhere}"
  ".inversionview.inversionview h2{font-size:1.05rem;font-weight:650;margin:0 0 .6rem}"
  ".cp-top{display:grid;grid-template-columns:minmax(0,1fr) minmax(21rem,26rem);gap:1.2rem;align-items:start;margin:0 0 1.2rem}"
  ".cp-top>.inversionview,.cp-side>.inversionview,.inversionview.cp-below{max-width:none}"
  ".cp-side{position:sticky;top:1rem;display:grid;gap:1.2rem;max-height:calc(100vh - 2rem);overflow:hidden auto}.cp-side>*{min-width:0}"
  ".inversionview.cp-picture{padding:.6rem}.inversionview .cp-list{columns:22rem;margin:.5rem 0}"
  ".inversionview.cp-detail{display:none}.inversionview.cp-detail:target{display:block;order:-1;outline:none}"
  ".inversionview.inversionview .cp-nodes :is(td,th){padding:.3rem .9rem .3rem 0;font-variant-numeric:tabular-nums}"
  ".inversionview.inversionview .cp-nodes tbody th{font:600 .9rem ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace}"
  ".cp-nodes .cp-rank{color:var(--dim);width:1.6rem}.inversionview.inversionview .cp-nodes tbody tr{border-top:1px solid var(--line)}"
  ".inversionview.inversionview .cp-numbers{width:auto}.inversionview.inversionview .cp-numbers :is(td,th){padding:.1rem 1.4rem .1rem 0}"
  ".inversionview .cp-settings dt{width:auto;min-width:9rem}"
  "@media(max-width:68rem){.cp-top{grid-template-columns:minmax(0,1fr)}.cp-side{position:static;max-height:none;overflow:visible}"
  ".inversionview.cp-detail{scroll-margin-top:.5rem}}"
  "@media(max-width:44rem){.inversionview.cp-picture{padding:.4rem .1rem}.cp-picture>p{padding:0 .5rem}"
  ".cp-nodes thead{display:none}.inversionview.inversionview .cp-nodes tr{display:block;position:relative;padding:.5rem 0}"
  ".inversionview.inversionview .cp-nodes :is(td,th){display:block;padding:.05rem 0}.inversionview.inversionview .cp-nodes .cp-rank{position:absolute;right:0}"
  ".inversionview.inversionview .cp-nodes :is([data-name=attribution],[data-name=bits],[data-name='inside ε']){display:none}"
  ".inversionview.inversionview .cp-nodes :is(th,[data-name=share]){display:inline-block;padding-right:.8rem}}"
  "@media print{body{background:none;padding:0}.cp-top{display:block}.cp-side{position:static;max-height:none;overflow:visible;display:block}"
  ".inversionview{border:0;break-inside:auto}.inversionview.cp-detail{display:block;break-inside:avoid-page;margin-top:1rem}.cp-close{display:none}"
  "svg.cp-curve{max-width:26rem;margin:0}*{print-color-adjust:exact}.cp-wide{display:block}.cp-narrow{display:none}.cp-wide svg{max-height:24cm}"
  "details::details-content{content-visibility:visible;display:block}.inversionview a{color:inherit;text-decoration:none}}"
)


def highlight(number: int, when: str = "") -> str:
  """Rules that mark a node, by its index, and its edges, while the others fade.

  Args:
    number: of the node.
    when: a selector of an element around the picture; "" for always.
  """
  here = f"{when} " if when else ""
  return (
    f"{here}.cp-edge{{opacity:.18}}{here}:is(.cp-from-{number},.cp-to-{number}){{opacity:1}}"
    f"{here}.cp-n-{number} .cp-card{{stroke:light-dark(#1c2127,#fff);stroke-width:3}}\n"
  )
