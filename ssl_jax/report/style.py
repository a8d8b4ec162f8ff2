"""The look of the page: one style sheet and one small script, both inside the page.

Class colours: ten per theme, found by a search so that any two differ by at least 20 in CIELAB with
normal vision and with each of the three kinds of colour blindness (tests/report/style_test.py), with
a contrast of 2 (light) and 3 (dark) to the background.
"""

from ssl_jax.report.html import Html

LIGHT = ('#3377ee', '#aa6611', '#117755', '#ff99aa', '#661188', '#bbbb22', '#880011', '#99aadd',
         '#66cc66', '#334455')
DARK = ('#4466dd', '#ee9966', '#777700', '#bb99aa', '#aa4499', '#ffdd55', '#cc3355', '#44aaee',
        '#bbeebb', '#00eeff')


def _colours(palette) -> str:
  return ''.join(f'--c{i}:{colour};' for i, colour in enumerate(palette))


_LIGHT = ('--page:#f6f6f4;--card:#fff;--ink:#1d1f24;--soft:#5c616b;--faint:#9298a3;--rule:#e3e3df;'
          '--accent:#2a5db0;--accent-soft:#2a5db01a;--good:#1b7f4b;--bad:#c2410c;'
          + _colours(LIGHT))
_DARK = ('--page:#131418;--card:#1b1d22;--ink:#e9eaee;--soft:#a4a9b4;--faint:#777d89;--rule:#30333b;'
         '--accent:#7ba8f5;--accent-soft:#7ba8f526;--good:#4cc38a;--bad:#ff9458;'
         + _colours(DARK))

CSS = Html(f''':root{{color-scheme:light dark;{_LIGHT}}}
@media screen and (prefers-color-scheme:dark){{:root{{{_DARK}}}}}
''' + '''*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;
font-variant-numeric:tabular-nums}
main,header,footer{max-width:1080px;margin:0 auto;padding:0 20px}
header{padding-top:36px}
h1{font-size:28px;line-height:1.2;margin:0 0 4px;letter-spacing:-.015em;overflow-wrap:anywhere}
h2{font-size:19px;margin:44px 0 4px;letter-spacing:-.01em}
h3{font-size:15px;margin:20px 0 6px}
p{margin:4px 0 12px;max-width:72ch}
a{color:var(--accent)}
.lead,.note{color:var(--soft)}
.note{font-size:13px}
nav{display:flex;flex-wrap:wrap;gap:4px 18px;margin:18px 0 0;padding:10px 0;
border-top:1px solid var(--rule);border-bottom:1px solid var(--rule);font-size:14px}
nav a{text-decoration:none}
nav a:hover{text-decoration:underline}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace}
pre{margin:0;padding:10px 14px;background:var(--accent-soft);border-radius:6px;
white-space:pre-wrap;overflow-wrap:anywhere}
.tiles{display:grid;grid-template-columns:repeat(auto-fit,minmax(140px,1fr));gap:12px;margin:12px 0}
nav+.tiles,main>.tiles:first-child{margin-top:20px}
.tile,.card{background:var(--card);border:1px solid var(--rule);border-radius:10px}
.tile{padding:12px 14px}
.tile dt{color:var(--soft);font-size:12.5px}
.tile dd{margin:2px 0 0;font-size:21px;font-weight:600;letter-spacing:-.01em;line-height:1.25;
overflow-wrap:anywhere}
.tile.word dd{font-size:17px;line-height:1.5}
.tile .note{display:block;font-size:12.5px;font-weight:400;letter-spacing:0}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,320px),1fr));gap:14px}
.wide{grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr))}
figure{margin:0;padding:12px 14px 10px;background:var(--card);border:1px solid var(--rule);
border-radius:10px;min-width:0;break-inside:avoid}
figcaption{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 12px;margin-bottom:6px;
font-size:14px}
figcaption .last{font-weight:600}
figcaption .unit{color:var(--soft);flex-basis:100%;font-size:12.5px;line-height:1.3}
svg{display:block;width:100%;height:auto;overflow:visible}
svg text{font-size:11px;fill:var(--soft)}
svg .label{fill:var(--faint)}
.grid{stroke:var(--rule);stroke-width:1}
.axis{stroke:var(--faint);stroke-width:1}
.line{fill:none;stroke:var(--accent);stroke-width:2;stroke-linejoin:round;stroke-linecap:round}
.line.raw{stroke-width:1;opacity:.38}
.line.other{stroke:var(--soft);stroke-dasharray:5 5;stroke-width:1.6}
.end{fill:var(--accent);stroke:var(--card);stroke-width:1.5}
.end.other{fill:var(--soft)}
.bad{stroke:var(--bad);stroke-width:1.5}
.cursor{stroke:var(--faint);stroke-width:1;pointer-events:none}
.frame{fill:none;stroke:none}
.scatter{max-width:520px;margin:0 auto}
.dots path{fill:none;stroke-linecap:round;stroke-width:4.4;stroke-opacity:.72}
.dots.big path{stroke-width:10;stroke-opacity:1}
.dots path.hole{stroke:var(--card);stroke-width:1.8;stroke-opacity:1}
.dots.big path.hole{stroke-width:5}
''' + ''.join(f'.c{i} path{{stroke:var(--c{i})}}' for i in range(10)) + '''
.cnone path{stroke:var(--faint);stroke-opacity:.5}
svg .name{font-size:12px;font-weight:600;fill:var(--ink);stroke:var(--card);stroke-width:3.5;
stroke-linejoin:round;paint-order:stroke;pointer-events:none}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;margin:8px 0 12px;padding:0;list-style:none;
font-size:13px}
.legend li{display:flex;align-items:center;gap:6px;cursor:default}
.swatch{width:12px;height:12px}
.key{width:26px;height:8px}
''' + ''.join(
  f'.embedding:has(.legend .k{i}:hover) .scatter .dots:not(.k{i}),'
  f'.embedding:has(.legend .k{i}:hover) .name:not(.k{i}){{opacity:.08}}' for i in range(20)) + '''
.scroll{overflow-x:auto}
table{border-collapse:collapse;font-size:14px}
.data{width:100%;background:var(--card)}
.data th,.data td{padding:7px 12px;border-bottom:1px solid var(--rule);text-align:right;
white-space:nowrap;vertical-align:top}
.data tr:last-child td{border-bottom:0}
.data th{color:var(--soft);font-weight:500;font-size:13px}
.data th:first-child,.data td:first-child,.data .text{text-align:left}
.data .text{white-space:normal;overflow-wrap:anywhere;min-width:9em}
.data .ours td{font-weight:600}
.data .best{color:var(--good)}
.data small{color:var(--soft);font-weight:400;font-size:12.5px}
.bar{display:block;height:4px;margin-top:4px;border-radius:2px;background:var(--accent-soft);
min-width:72px}
.bar i{display:block;height:100%;border-radius:2px;background:var(--faint)}
.ours .bar i{background:var(--accent)}
.changed td:nth-child(2){font-weight:600;color:var(--accent)}
details .data th,details .data td{padding:4px 12px}
.card{overflow-x:auto;margin:10px 0}
.missing{padding:14px 16px;border:1px dashed var(--faint);border-radius:10px;color:var(--soft);
margin:10px 0}
.missing pre{margin-top:8px;color:var(--ink)}
.pair{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,420px),1fr));gap:14px}
.grid-of-images td,.grid-of-images th{padding:2px;text-align:center;font-size:12px;font-weight:500;
color:var(--soft)}
.strips{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,300px),1fr));gap:14px 24px}
.strip{display:flex;flex-wrap:wrap;gap:6px}
.strip div{font-size:12px;color:var(--soft);text-align:center}
.strip img{display:block;width:84px;border-radius:4px}
.strip .original{padding-right:6px}
.grid-of-images img{display:block;width:100%;max-width:72px;min-width:24px;border-radius:3px}
.grid-of-images{width:100%;max-width:760px;table-layout:fixed}
img.pixels{image-rendering:pixelated}
td.query{padding-right:10px}
.texts{margin:0;font-size:13px}
.texts dt{font-weight:600;margin-top:12px}
.texts dd{margin:3px 0;padding-left:8px;border-left:3px solid transparent}
.texts dd.right{border-left-color:var(--good)}
.texts dd.wrong{border-left:3px dashed var(--bad)}
.texts small{color:var(--soft);font-weight:400}
.masked{line-height:2.3;max-width:none}
.masked mark{background:var(--accent-soft);color:inherit;border-radius:4px;padding:0 3px}
.masked rt{color:var(--soft)}
.found img{border:2px solid transparent}
.right img{border-color:var(--good)}
.wrong img{border:2px dashed var(--bad);opacity:.9}
.mark{display:inline-block;width:13px;height:13px;border-radius:3px;vertical-align:-2px}
.mark.right{border:2px solid var(--good)}
.mark.wrong{border:2px dashed var(--bad)}
details{margin:10px 0}
summary{cursor:pointer;font-weight:600;font-size:14px}
footer{margin-top:48px;padding-top:12px;padding-bottom:40px;color:var(--soft);font-size:13px}
@media(max-width:520px){header{padding-top:22px}h1{font-size:23px}
main,header,footer{padding-left:14px;padding-right:14px}
.tiles{grid-template-columns:1fr 1fr;gap:8px}
.tile:last-child:nth-child(odd){grid-column:1/-1}.tile dd{font-size:18px}.tile.word dd{font-size:15px}
.data th,.data td,details .data th,details .data td{padding:5px 8px}
.data .text{min-width:4em}.data code{white-space:normal;overflow-wrap:anywhere;font-size:12px}
td.query{padding-right:5px}.grid-of-images td{padding:1px}}
@media print{body{background:#fff;font-size:11pt}nav{display:none}h2{break-after:avoid}
details>*{display:block}tr{break-inside:avoid}.charts{grid-template-columns:1fr 1fr}
*{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
''')

# Without it the page lacks nothing but the numbers under the pointer.
SCRIPT = Html('''document.querySelectorAll('svg[data-points]').forEach(function(svg){
var points=JSON.parse(svg.dataset.points),box=svg.viewBox.baseVal;
var last=svg.parentNode.querySelector('.last'),before=last&&last.textContent;
var line=document.createElementNS(svg.namespaceURI,'path');
line.setAttribute('class','cursor');svg.appendChild(line);
function show(event){
var r=svg.getBoundingClientRect(),x=(event.clientX-r.left)/r.width*box.width,best=points[0];
points.forEach(function(p){if(Math.abs(p[0]-x)<Math.abs(best[0]-x))best=p});
if(!best)return;
line.setAttribute('d','M'+best[0]+' 10V'+svg.dataset.bottom);
if(last)last.textContent=best[2]+' at '+best[1]}
function hide(){line.removeAttribute('d');if(last)last.textContent=before}
svg.addEventListener('pointermove',show);svg.addEventListener('pointerdown',show);
svg.addEventListener('pointerleave',hide)});
addEventListener('beforeprint',function(){document.querySelectorAll('details').forEach(
function(d){d.open=true})});''')
