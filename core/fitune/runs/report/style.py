"""The look of a report: light or dark as the reader's system is, and on a phone's width in one column."""

STYLE = """
:root{color-scheme:light dark;--page:#fff;--ink:#1b1f24;--soft:#57606a;--rule:#d8dee4;--box:#f6f8fa;--good:#1a7f37;
--bad:#b42318;--c0:#0969da;--c1:#bc4c00;--c2:#1a7f37;--c3:#8250df;--c4:#9a6700;--c5:#bf3989}
@media(prefers-color-scheme:dark){:root{--page:#0d1117;--ink:#e6edf3;--soft:#9aa5b1;--rule:#30363d;--box:#161b22;
--good:#4ac26b;--bad:#ff8a80;--c0:#58a6ff;--c1:#ffa657;--c2:#56d364;--c3:#bc8cff;--c4:#e3b341;--c5:#ff7eb6}}
*{box-sizing:border-box}
body{margin:0 auto;max-width:1120px;padding:16px;background:var(--page);color:var(--ink);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif;overflow-wrap:anywhere}
h1{font-size:1.6rem;margin:.4em 0}.charts+h1{margin-top:2em;padding-top:.6em;border-top:3px solid var(--rule)}
h2{font-size:1.25rem;margin:1.8em 0 .5em;border-bottom:1px solid var(--rule)}
h3{font-size:1rem;margin:1.2em 0 .3em}
p{margin:.4em 0}.soft{color:var(--soft)}.state{font-size:1rem;font-weight:400;color:var(--soft)}
.good{color:var(--good)}.bad{color:var(--bad)}
.charts{display:grid;margin:14px 0;grid-template-columns:repeat(auto-fill,minmax(min(100%,460px),1fr));gap:16px}
figure{margin:0;padding:10px;background:var(--box);border:1px solid var(--rule);border-radius:8px;min-width:0}
figcaption{font-weight:600}.legend{margin:0;font-size:.82rem;color:var(--soft)}
.legend span{display:inline-block;margin-right:1em}
.key{display:inline-block;width:14px;height:3px;margin-right:5px;vertical-align:middle;background:currentColor}
.key.dot{width:9px;height:9px;border-radius:50%}.key.level{background:var(--bad)}
svg{display:block;width:100%;height:auto}svg text{fill:var(--soft);font-size:12px}
.grid{stroke:var(--rule);stroke-width:1;fill:none}.line{fill:none;stroke:currentColor;stroke-width:1.8;
stroke-linejoin:round;stroke-linecap:round}.band{fill:currentColor;opacity:.22}.mark{fill:currentColor}
.level{stroke:var(--bad);stroke-width:1.5;stroke-dasharray:6 4;fill:none}
.c0{color:var(--c0)}.c1{color:var(--c1)}.c2{color:var(--c2)}.c3{color:var(--c3)}.c4{color:var(--c4)}.c5{color:var(--c5)}
.wide{overflow-x:auto}table{border-collapse:collapse;width:100%;font-size:.92rem}
th,td{text-align:left;padding:4px 10px 4px 0;border-bottom:1px solid var(--rule);vertical-align:top}
td:first-child{min-width:6.5em}.facts td:first-child{width:9.5em}
.runs td{overflow-wrap:normal}td:nth-child(2){min-width:5.2em}
th{color:var(--soft);font-weight:600}
td.n,th.n{text-align:right;font-variant-numeric:tabular-nums;overflow-wrap:normal;white-space:nowrap}
td.bar{width:40%;min-width:60px}
td.bar i{display:block;height:.8em;margin-top:.35em;background:var(--c0);border-radius:2px}
pre{margin:.2em 0;padding:8px;background:var(--box);border:1px solid var(--rule);border-radius:6px;white-space:pre-wrap;
font:.86rem/1.45 ui-monospace,"DejaVu Sans Mono",monospace}
details{margin:.6em 0}summary{cursor:pointer;font-weight:600}
.answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,260px),1fr));gap:8px}
@media(max-width:560px){body{padding:10px}svg text{font-size:19px}}
@media print{details{display:block}}
"""
