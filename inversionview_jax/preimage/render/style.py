"""CSS of the fragments, light and dark; every rule is limited to the class "inversionview"."""

# The class is doubled where a notebook's own table rules would otherwise take precedence. `light-dark` follows `color-scheme`, so that the
# fragments follow a page whose scheme is chosen by its author or its reader.
STYLE = """
.inversionview{--bg:light-dark(#fff,#15181d);--fg:light-dark(#1c2127,#e2e6ec);--dim:light-dark(#5d6775,#97a1af);
--line:light-dark(#e3e7ec,#2b3038);--eps:light-dark(#a84e05,#f0a94a);--in:light-dark(#3f72cf,#6d9bea);--out:light-dark(#a3acb8,#626c7a);
--up:light-dark(rgb(92 150 250),rgb(45 105 225));--down:light-dark(rgb(242 108 108),rgb(200 52 62));--att:light-dark(rgb(240 178 60),rgb(140 92 14));
color-scheme:light dark;box-sizing:border-box;max-width:60rem;padding:1.1rem 1.25rem;border:1px solid var(--line);border-radius:12px;
background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif;overflow-wrap:anywhere;text-align:left}
.inversionview :is(code,.iv-query,.iv-text){font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.inversionview.inversionview code{background:none;color:inherit;padding:0;font-size:inherit}
.inversionview h2{margin:0 0 .6rem;font-size:1.15rem;font-weight:400;line-height:1.3}
.inversionview h2>code:first-child{font-weight:700}
.inversionview dl{margin:0 0 1rem;font-size:.87rem}
.inversionview dl>div{display:flex;gap:.8rem}
.inversionview dt{flex:none;width:4rem;margin:0;color:var(--dim);font-weight:400}
.inversionview dd{margin:0}
.inversionview .iv-query{margin:0 0 .3rem;font-size:1.1rem;line-height:1.9;white-space:pre-wrap}
.inversionview .iv-query>*{padding:.15em 0;border-radius:3px;color:inherit}
.inversionview .iv-query>mark{outline:2px solid currentColor;outline-offset:1px;margin:0 2px;font-weight:700}
.inversionview mark{background:none}
.inversionview .iv-att{background:color-mix(in srgb,var(--att) calc(var(--e)*90%),transparent)}
.inversionview .iv-up{background:color-mix(in srgb,var(--up) calc(var(--e)*85%),transparent)}
.inversionview .iv-down{background:color-mix(in srgb,var(--down) calc(var(--e)*85%),transparent)}
.inversionview :is(.iv-up,.iv-down,.iv-note>.iv-att){border-radius:2px;padding:.1em 0}
.inversionview .iv-text>s{text-decoration:none;border-radius:2px;padding:.1em 0;background:color-mix(in srgb,var(--c,transparent) calc(var(--s,0)*9.5%),transparent)}
STEPS
.inversionview .iv-note>span{color:var(--fg)}
.inversionview.inversionview .iv-here{font-weight:700;text-decoration:underline;text-decoration-thickness:2px;text-underline-offset:3px}
.inversionview .iv-note{margin:0 0 1rem;color:var(--dim);font-size:.8rem}
.inversionview .iv-note:last-child{margin:.9rem 0 0}
.inversionview .iv-count{margin:0 0 .5rem;font-size:.87rem;font-variant-numeric:tabular-nums}
.inversionview.inversionview table{width:100%;border-collapse:collapse;border:0;margin:0;font-size:.9rem;color:inherit}
.inversionview.inversionview tr{background:none!important;border:0}
.inversionview.inversionview :is(td,th){padding:.2rem 0;border:0;text-align:left;vertical-align:top;line-height:1.5;white-space:normal;max-width:none}
.inversionview.inversionview th{color:var(--dim);font-size:.75rem;font-weight:400}
.inversionview.inversionview .iv-d{width:4.2rem;font-variant-numeric:tabular-nums}
.inversionview .iv-d::after{content:"";display:block;height:3px;border-radius:2px;
background:linear-gradient(var(--out),var(--out)) 0/min(100%,calc(100%*var(--d)/var(--full))) 100% no-repeat var(--line)}
.inversionview tr:has(~.iv-line)>.iv-d::after{--out:var(--in)}
.inversionview.inversionview .iv-n{width:2.8rem;padding-right:.7rem;text-align:right;color:var(--dim);font-variant-numeric:tabular-nums}
.inversionview.inversionview .iv-text{white-space:pre-wrap;font-size:.95em}
.inversionview .iv-text>i{color:var(--dim)}
.inversionview summary{margin:.5rem 0;color:var(--dim);font-size:.87rem;cursor:pointer}
.inversionview .iv-line div{display:flex;align-items:center;gap:.8rem;color:var(--eps);font-weight:600;padding:.25rem 0}
.inversionview .iv-line div::before{content:"";flex:1;border-top:1.5px solid}
.inversionview .iv-line div::after{content:"";flex:1;border-top:1.5px solid}
.inversionview .iv-hist{position:relative;height:4.6rem;margin:0 0 .8rem}
.inversionview .iv-hist>div{position:absolute;inset:0 0 1.2rem;border-bottom:1px solid var(--line);fill:var(--in);clip-path:inset(0 calc(100% - var(--x)) 0 0)}
.inversionview .iv-hist>div+div{fill:var(--out);clip-path:inset(0 0 0 var(--x))}
.inversionview .iv-hist svg{display:block;width:100%;height:100%}
.inversionview .iv-hist::after{content:"";position:absolute;left:var(--x);top:0;bottom:1.2rem;border-left:1.5px solid var(--eps)}
.inversionview .iv-hist>p{margin:0;color:var(--dim);font-size:.72rem}
.inversionview .iv-hist>p>span{position:absolute;bottom:0;transform:translateX(-50%)}
.inversionview .iv-hist>p>span:first-child{transform:none}
.inversionview .iv-hist:not(:has(p)){height:2.2rem}
.inversionview .iv-hist:not(:has(p))>div{bottom:0}
.inversionview .iv-hist:not(:has(p))::after{bottom:0}
.inversionview .iv-rates caption{text-align:left;color:var(--dim);font-size:.8rem;padding-bottom:.3rem}
.inversionview.inversionview .iv-rates th{width:6rem;font-size:.85rem;color:inherit}
.inversionview.inversionview .iv-bar{padding:.15rem .5rem;font-size:.82rem;font-variant-numeric:tabular-nums;
background:linear-gradient(var(--in),var(--in)) 0 100%/var(--r) 3px no-repeat,linear-gradient(var(--line),var(--line)) 0 100%/100% 3px no-repeat}
.inversionview :is(.iv-rates,.iv-features){font-variant-numeric:tabular-nums}
.inversionview .iv-features caption{text-align:left;color:var(--dim);font-size:.8rem;font-weight:600;padding-bottom:.2rem}
.inversionview.inversionview .iv-features tbody th{font-size:.87rem;color:var(--fg);padding-right:.6rem}
.inversionview.inversionview .iv-features td{font-size:.82rem;padding:.2rem .5rem;white-space:nowrap}
.inversionview.inversionview .iv-features thead th{white-space:nowrap;padding-right:.3rem}
.inversionview.inversionview .iv-features thead th+th{padding-left:.5rem}
.inversionview .iv-features tr.iv-encodes>th{font-weight:650}
.inversionview.inversionview .iv-features td:last-child,.inversionview.inversionview tr.iv-partly-encodes>*{color:var(--dim)}
.inversionview.inversionview .iv-features td.iv-bar{width:30%}
.inversionview .iv-features+.iv-note{margin:.6rem 0 1rem}
.inversionview .iv-pattern{display:block;width:100%;max-width:30rem;font:6.5px ui-monospace,Menlo,Consolas,"DejaVu Sans Mono",monospace;fill:var(--att)}
.inversionview .iv-pattern text{fill:var(--fg)}
.inversionview .iv-pattern .iv-edge{fill:none;stroke:var(--line)}
.inversionview .iv-pattern .iv-row{fill:none;stroke:var(--fg);stroke-width:1.2}
""".replace(
  "STEPS\n",
  "".join(
    f".inversionview .iv-text>.{sign}{k}{{--c:var(--{hue});--s:{k}}}\n"
    for sign, hue in (("u", "up"), ("d", "down"))
    for k in range(1, 10)
  ),
)

PAGE_STYLE = """
body{margin:0;padding:clamp(.7rem,3vw,2rem);background:light-dark(#f4f6f8,#0d0f12);color:light-dark(#1c2127,#e2e6ec);font-family:system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
h1{font-size:1.35rem;font-weight:650;margin:0 auto 1rem}
main{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,32rem),1fr));gap:1.2rem;align-items:start}
main>.inversionview{width:100%}
@media print{body{background:none;padding:0}main{display:block}main>.inversionview{margin:0 0 1rem}.inversionview{border:0;padding:0;max-width:none}
*{print-color-adjust:exact}:is(h1,h2,h3,summary,caption){break-after:avoid}:is(tr,svg,.iv-hist){break-inside:avoid}details::details-content{content-visibility:visible;display:block}}
"""
