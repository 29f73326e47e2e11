"""Style sheet, script and frame of the timeline page. It is self-contained: no network, no fonts, no files."""

from __future__ import annotations

STYLE = """
:root{color-scheme:light dark;--page:#fbfaf7;--card:#fff;--ink:#1d1f27;--soft:#666b7a;--line:#e4e1d9;--path:#e8542f;
--good:#15803d;--bad:#c2261b;--fill:92%;--fillsat:72%;--edge:62%;--deep:84%;--deepsat:64%;--text:24%;--L:104px;--cap:26px;--track:62px;
--hatch:#d3cec2;--band:#8886780f;--shadow:0 1px 2px #0000000d,0 8px 24px #00000010}
@media(prefers-color-scheme:dark){:root{--page:#121319;--card:#1b1d26;--ink:#eceef4;--soft:#979db0;--line:#2c2f3c;
--path:#ff7a52;--good:#4ade80;--bad:#ff7b72;--fill:19%;--fillsat:36%;--edge:48%;--deep:29%;--deepsat:40%;--text:87%;--hatch:#3d4257;--band:#aab0d00d;
--shadow:0 1px 2px #0006,0 8px 24px #0005}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);font:15px/1.5 ui-sans-serif,system-ui,-apple-system,"Segoe UI",
Roboto,"Helvetica Neue",Arial,sans-serif;-webkit-text-size-adjust:100%}
main{max-width:1240px;margin:0 auto;padding:36px 28px 120px}
code,pre,.seg,.axis{font-family:ui-monospace,"SF Mono","Cascadia Code",Menlo,Consolas,"DejaVu Sans Mono",monospace}
.brand{margin:0 0 6px;color:var(--soft);font-size:13px;letter-spacing:.02em}
h1{margin:0;font-size:clamp(24px,4.4vw,38px);line-height:1.2;letter-spacing:-.02em;font-weight:680;
overflow-wrap:anywhere;white-space:pre-wrap}
h1.long{font-size:18px;line-height:1.45;letter-spacing:0;font-weight:560;max-height:12em;overflow:auto}
.answer{display:flex;gap:10px;align-items:baseline;flex-wrap:wrap;margin:14px 0 0}
.answer code{font-size:15px;overflow-wrap:anywhere;white-space:pre-wrap}
.chip{flex:none;padding:2px 11px;border-radius:99px;font-size:13px;font-weight:600;border:1px solid currentColor}
.good{color:var(--good)}.bad{color:var(--bad)}.open{color:var(--soft)}
.figures{display:flex;flex-wrap:wrap;gap:1px;margin:26px 0 30px;padding:0;
background:var(--line);border:1px solid var(--line);border-radius:14px;overflow:hidden}
.figures div{flex:1 1 150px;background:var(--card);padding:13px 16px 12px}
.figures dt{color:var(--soft);font-size:12.5px}
.figures dd{margin:1px 0 0;font-size:24px;font-weight:660;letter-spacing:-.02em;font-variant-numeric:tabular-nums;
white-space:nowrap}
.figures small{font-size:13px;font-weight:500;letter-spacing:0;color:var(--soft)}
.figures p{margin:0;color:var(--soft);font-size:12.5px;line-height:1.35}
.figures .path dd{color:var(--path)}
.chart{position:relative;isolation:isolate}
.lane{position:relative;height:var(--L)}
.cap{position:absolute;inset:0 0 auto;height:var(--cap);display:flex;gap:9px;align-items:baseline;white-space:nowrap;
font-size:13px;line-height:var(--cap);z-index:3;pointer-events:none}
.cap>*{background:var(--page);padding:0 4px;line-height:18px;min-width:0}
.cap b{flex:none;padding-left:0;font-weight:640;color:hsl(var(--h) 55% var(--name))}
.cap .sub{overflow:hidden;text-overflow:ellipsis;color:var(--soft)}
.cap .num{flex:none;margin-left:auto;color:var(--soft);font-variant-numeric:tabular-nums;padding-right:0}
:root{--name:40%}@media(prefers-color-scheme:dark){:root{--name:74%}}
.track{position:absolute;inset:var(--cap) 0 auto;height:var(--track);border-radius:8px;z-index:1}
.track::before{content:"";position:absolute;inset:0;border-radius:6px;background:var(--band)}
.seg{position:absolute;top:0;bottom:0;margin:0;padding:0;border:0;border-radius:5px;overflow:hidden;container-type:size;
background:hsl(var(--h) var(--fillsat) var(--fill));color:hsl(var(--h) 50% var(--text));text-align:left;
font-size:10.5px;line-height:14px;cursor:pointer;box-shadow:inset 0 0 0 1px hsl(var(--h) 40% var(--edge)/.55);
-webkit-appearance:none;appearance:none}
.seg span{display:block;padding:3px 5px;height:100%;overflow:hidden;overflow-wrap:anywhere;
-webkit-mask:linear-gradient(#000 72%,#0000);mask:linear-gradient(#000 72%,#0000)}
@container(max-width:34px){.seg span{visibility:hidden}}
.seg:hover,.seg:focus-visible,.seg.on{outline:2px solid var(--ink);outline-offset:1px;z-index:4}
.fork,.join{background:hsl(var(--h) var(--deepsat) var(--deep))}
.answer-seg,.return{background:hsl(var(--h) var(--deepsat) var(--deep));
box-shadow:inset 0 0 0 2px hsl(var(--h) 55% var(--edge))}
.wait{background:repeating-linear-gradient(135deg,var(--hatch) 0 3px,#0000 3px 8px);box-shadow:none;color:var(--soft)}
.wait span{display:flex;align-items:center;justify-content:center;-webkit-mask:none;mask:none}
.wait span b{background:var(--page);padding:0 6px;border-radius:5px;font-weight:500}
.dot{position:absolute;z-index:3;width:18px;height:18px;margin-left:-9px;border-radius:50%;border:2px solid var(--page);
padding:0;background:hsl(var(--h) 58% var(--edge));color:#fff;font:700 10px/14px ui-sans-serif,system-ui,sans-serif;
text-align:center;cursor:pointer}
.dot.told{width:11px;height:11px;margin:-6px 0 0 -6px;top:50%;font-size:0}.dot.joined{bottom:-9px}
.dot:hover,.dot:focus-visible,.dot.on{outline:2px solid var(--ink);z-index:5}
.run{position:absolute;bottom:-7px;height:4px;border-radius:2px;background:var(--path);z-index:2;pointer-events:none}
.link{position:absolute;width:0;border-left:2px solid hsl(var(--h) 50% var(--edge));z-index:0;
top:calc(var(--p)*var(--L) + var(--cap) + var(--track));height:calc((var(--w) - var(--p))*var(--L) - var(--track))}
.link.join{background:none;height:calc((var(--w) - var(--p))*var(--L) - var(--track)/2)}
.link::after{content:"";position:absolute;left:-6px;border:5px solid #0000}
.link.fork{background:none}
.link.fork::after{bottom:0;border-top-color:hsl(var(--h) 50% var(--edge));border-bottom:0;border-top-width:8px}
.link.crit{border-left:4px solid var(--path);margin-left:-1px}
.link.crit.fork::after{border-top-color:var(--path)}
.held{position:absolute;border-top:2px dashed hsl(var(--h) 50% var(--edge));z-index:0;
top:calc(var(--w)*var(--L) + var(--cap) + var(--track)/2)}
.axis{position:relative;height:44px;border-top:1px solid var(--line);color:var(--soft);font-size:11px;margin-top:2px}
.axis i{position:absolute;top:0;font-style:normal;line-height:15px;padding-top:7px;transform:translateX(-50%);
text-align:center;white-space:nowrap}
.axis i:first-child{transform:none;text-align:left}.axis i.end{transform:translateX(-100%);text-align:right}
.axis i::before{content:"";position:absolute;left:50%;top:0;height:5px;border-left:1px solid var(--soft)}
.axis i:first-child::before{left:0}.axis i.end::before{left:100%}
.versus{margin-top:4px;border-top:1px dashed var(--line);padding-top:8px}
.legend{display:flex;flex-wrap:wrap;gap:6px 18px;margin:8px 0 26px;color:var(--soft);font-size:12.5px}
.legend span::before{content:"";display:inline-block;width:20px;height:11px;margin-right:7px;border-radius:3px;
vertical-align:-1px;background:var(--k)}
.legend .l-path::before{height:4px;vertical-align:3px}
.peek{position:fixed;left:50%;bottom:16px;transform:translateX(-50%);width:min(1184px,calc(100% - 32px));z-index:9;
background:var(--card);border:1px solid var(--line);border-radius:14px;box-shadow:var(--shadow);padding:11px 16px;
max-height:38vh;overflow:auto}
.peek h2{margin:0;font-size:13px;font-weight:600}.peek h2 em{font-style:normal;font-weight:400;color:var(--soft)}
.peek pre{margin:3px 0 0;font-size:13px;line-height:1.45;white-space:pre-wrap;overflow-wrap:anywhere}
details{border-top:1px solid var(--line);padding:10px 0}details:last-of-type{border-bottom:1px solid var(--line)}
summary{cursor:pointer;font-weight:600;color:hsl(var(--h) 55% var(--name))}
summary small{font-weight:400;color:var(--soft);margin-left:8px}
details pre{margin:10px 0 6px;white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px;line-height:1.6}
details pre span{border-radius:4px;padding:1px 0}
details .p-prompt{color:var(--soft)}
details .p-fork,details .p-join,details .p-joined{background:hsl(var(--h) var(--fillsat) var(--fill));
color:hsl(var(--h) 50% var(--text))}
details .p-joined,details .p-tool{text-decoration:underline dotted}details .p-answer,details .p-return{font-weight:700}
@media(max-width:640px){main{padding:22px 16px 150px}.figures{margin:20px 0 24px}
.figures div{flex-basis:40%;padding:11px 13px}.figures dd{font-size:21px}:root{--L:92px;--track:50px}
.axis i:nth-child(even){display:none}
.seg{font-size:9.5px;line-height:12px}.peek{bottom:8px;width:calc(100% - 16px);max-height:32vh}}
@media print{.peek{display:none}.seg,.dot,.run,.link,.chip{-webkit-print-color-adjust:exact;print-color-adjust:exact}}
"""

SCRIPT = """
const peek=document.querySelector('.peek'),head=peek.querySelector('h2'),body=peek.querySelector('pre');
let pinned=null;
const show=b=>{peek.hidden=false;document.querySelectorAll('.on').forEach(o=>o.classList.remove('on'));
b.classList.add('on');
const [who,what]=b.getAttribute('aria-label').split(' | ');head.textContent=who+' ';
const em=document.createElement('em');em.textContent=what;head.append(em);
const text=b.querySelector('template').content.textContent;body.textContent=text.trim()?text:'(blank)';};
document.querySelectorAll('.seg,.dot').forEach(b=>{
b.addEventListener('pointerenter',()=>{if(!pinned)show(b)});b.addEventListener('focus',()=>show(b));
b.addEventListener('click',()=>{pinned=pinned===b?null:b;show(b)});});
document.addEventListener('keydown',e=>{if(e.key==='Escape'){pinned=null;peek.hidden=true}});
"""


def page(title: str, main: str) -> str:
    """The document around ``main``, which is HTML. ``title`` is escaped text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n{main}\n</main>\n"
        '<aside class="peek" aria-live="polite" hidden><h2></h2><pre></pre></aside>'
        f"\n<script>{SCRIPT}</script>\n</body>\n</html>\n"
    )
