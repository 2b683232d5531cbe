"""The report's style sheet and its only script."""

from __future__ import annotations

# Videos play while they are on the screen; without scripts, or where motion is unwanted, their controls remain.
PLAY = """
if (!matchMedia('(prefers-reduced-motion: reduce)').matches && 'IntersectionObserver' in window) {
  const seen = new IntersectionObserver(entries => entries.forEach(
    entry => entry.isIntersecting ? entry.target.play().catch(() => {}) : entry.target.pause()));
  document.querySelectorAll('video').forEach(video => seen.observe(video));
}
"""

THEME = """
:root { color-scheme: light dark; --paper: #f5f5f1; --card: #fff; --ink: #1b1f24; --muted: #5f6872; --line: #e1e2dd;
  --real: #0b7a75; --dream: #7c4dd6; --good: #1d8348; --unsure: #a15c07; --bad: #c0302b; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #101316; --card: #181c20; --ink: #e8eaec; --muted: #99a3ae; --line: #2c3238;
    --real: #3fc1b8; --dream: #ad8cf5; --good: #5bc487; --unsure: #e0a04a; --bad: #f0766f; }
}
"""

LAYOUT = """
* { box-sizing: border-box; }
html { scroll-behavior: smooth; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--paper); color: var(--ink); font-variant-numeric: tabular-nums;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
header, nav, main, footer { max-width: 1080px; margin: auto; padding: 0 24px; }
header { padding-top: 44px; }
nav { display: flex; gap: 4px 20px; overflow-x: auto; white-space: nowrap; scrollbar-width: none; position: sticky;
  top: 0; z-index: 2; padding-top: 12px; padding-bottom: 12px;
  background: color-mix(in srgb, var(--paper) 94%, transparent); }
nav a { color: var(--muted); text-decoration: none; font-size: 14px; }
nav a:hover { color: var(--ink); }
section { background: var(--card); border: 1px solid var(--line); border-radius: 14px; padding: 28px 32px;
  margin: 0 0 20px; scroll-margin-top: 52px; }
.hero { display: grid; grid-template-columns: 1.3fr 1fr; gap: 24px 48px; align-items: center; margin: 22px 0 28px; }
.two { display: grid; grid-template-columns: 1fr 1fr; gap: 20px 36px; margin-top: 18px; }
.plot svg { display: block; width: 100%; height: auto; overflow: visible; }
.plot text { font-family: inherit !important; }
.narrow { display: none; }
footer { color: var(--muted); font-size: 13px; padding-top: 8px; padding-bottom: 56px; }
"""

TEXT = """
h1, h2, h3 { line-height: 1.2; margin: 0; }
h1 { font-size: 15px; font-weight: 600; }
h1 small { color: var(--muted); font-weight: 400; font-size: 15px; }
h2 { font-size: 23px; letter-spacing: -.012em; margin-bottom: 10px; }
h3 { font-size: 16px; margin: 28px 0 8px; }
p { margin: 0 0 12px; max-width: 74ch; }
.lead, .note { color: var(--muted); }
.note { font-size: 13.5px; margin: 8px 0 0; }
code { font: .88em/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace;
  overflow-wrap: anywhere; padding: 2px 6px; border-radius: 5px;
  background: color-mix(in srgb, var(--ink) 7%, transparent); }
.empty code, .say code { display: inline-block; max-width: 100%; overflow-x: auto; white-space: nowrap;
  vertical-align: bottom; }
.big { font-size: clamp(38px, 5.6vw, 64px); font-weight: 680; letter-spacing: -.035em;
  line-height: 1.08; white-space: nowrap; }
h1 + .big { margin-top: 18px; }
.big s { text-decoration: none; color: var(--muted); font-weight: 500; }
.big em { font-style: normal; color: var(--muted); font-weight: 300; }
.gain { font-size: 19px; margin: 10px 0 18px; }
.gain b { font-weight: 650; }
.gain span { color: var(--muted); white-space: nowrap; }
.say { border-left: 3px solid var(--tone); padding: 1px 0 1px 14px; }
.good { --tone: var(--good); }
.unsure { --tone: var(--unsure); }
.bad { --tone: var(--bad); }
.tone { color: var(--tone); }
.empty { border: 1px dashed var(--line); border-radius: 10px; padding: 14px 18px; max-width: none;
  color: var(--muted); }
.steps { display: flex; flex-wrap: wrap; gap: 8px; list-style: none; padding: 0; margin: 16px 0; }
.steps li { border: 1px solid var(--line); border-radius: 99px; padding: 3px 13px; font-size: 14px;
  color: var(--muted); }
.steps .done { color: var(--good); border-color: currentColor; }
"""

FIGURES = """
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 1px;
  overflow: hidden; margin: 14px 0; background: var(--line); border: 1px solid var(--line); border-radius: 14px; }
.tile { padding: 16px 20px; background: var(--card); }
.tile i, .tile span { display: block; font-style: normal; font-size: 13px; color: var(--muted); line-height: 1.4; }
.tile b { display: block; font-size: 25px; font-weight: 640; letter-spacing: -.02em; margin: 2px 0;
  white-space: nowrap; }
/* a shade at an edge says that the table goes on there; covers in the table's own layer hide it at the end */
.scroll { overflow-x: auto; margin: 14px 0 0; background:
  linear-gradient(90deg, var(--card) 30%, transparent) left / 36px 100% no-repeat local,
  linear-gradient(270deg, var(--card) 30%, transparent) right / 36px 100% no-repeat local,
  linear-gradient(90deg, var(--line), transparent) left / 14px 100% no-repeat,
  linear-gradient(270deg, var(--line), transparent) right / 14px 100% no-repeat; }
table { border-collapse: collapse; width: 100%; font-size: 15px; }
th, td { text-align: right; padding: 9px 0 9px 22px; border-bottom: 1px solid var(--line); vertical-align: baseline;
  font-weight: 400; white-space: nowrap; }
th:first-child { text-align: left; padding-left: 0; }
thead th { color: var(--muted); font-size: 13px; }
tbody th, td b { font-weight: 600; }
tbody tr:last-child > * { border-bottom: 0; }
td small, th small { color: var(--muted); font-size: 13px; font-weight: 400; display: block; }
th small { white-space: normal; }
td p, th p { white-space: normal; text-align: left; margin: 0; min-width: 24ch; max-width: 44ch; }
details { margin-top: 20px; }
summary { cursor: pointer; color: var(--muted); font-size: 14.5px; }
.settings td, .settings th { text-align: left; white-space: normal; font-size: 14px; }
.settings tbody th { font-weight: 400; font-size: 14px; color: var(--muted); width: 34%; overflow-wrap: anywhere; }
.settings th, .settings td { padding-top: 5px; padding-bottom: 5px; }
.share { display: flex; gap: 2px; height: 16px; border-radius: 5px; overflow: hidden; margin: 12px 0 8px; }
.share span, .legend span { background: var(--dream); }
.legend { display: flex; flex-wrap: wrap; gap: 4px 18px; list-style: none; margin: 0; padding: 0; font-size: 13.5px; }
.legend span { display: inline-block; width: 10px; height: 10px; border-radius: 3px; margin-right: 7px; }
"""

PICTURES = """
figure { margin: 0; }
video { display: block; width: 100%; border-radius: 8px; }
figcaption { font-size: 13.5px; color: var(--muted); margin-top: 6px; line-height: 1.4; }
.strip { overflow-x: auto; margin: 8px 0 18px; }
.strip img { display: block; width: 100%; min-width: 680px; }
.clips, .pairs { display: grid; gap: 20px; margin: 14px 0 6px;
  grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); }
.pairs { grid-template-columns: repeat(auto-fill, minmax(290px, 1fr)); }
.halves { display: grid; grid-template-columns: 1fr 1fr; text-align: center; font-size: 13px; font-weight: 600; }
.halves { margin-bottom: 4px; }
.is-real { color: var(--real); }
.is-dream { color: var(--dream); }
"""

SMALL_SCREENS = """
@media (max-width: 760px) {
  header, nav, footer { padding-left: 16px; padding-right: 16px; }
  header { padding-top: 26px; }
  main { padding: 0 8px; }
  section { padding: 22px 16px; }
  h2 { font-size: 21px; }
  .hero, .two { grid-template-columns: minmax(0, 1fr); }
  .empty code, .say code { display: inline-block; max-width: 100%; overflow-x: auto; white-space: nowrap;
  vertical-align: bottom; }
.big { font-size: clamp(34px, 10.4vw, 60px); }
  .gain span { display: block; font-size: 16px; }
  .wide { display: none; }
  .narrow { display: block; }
  .tiles { grid-template-columns: 1fr 1fr; }
  .tile { padding: 12px 14px; }
  .tile b { font-size: 21px; }
  .clips { grid-template-columns: 1fr 1fr; gap: 14px; }
  .tile:last-child:nth-child(odd) { grid-column: 1 / -1; }
  table { font-size: 14.5px; }
  .empty { padding: 12px 14px; }
  .empty code, .say code { font-size: 12.5px; }
  th, td { padding-left: 12px; }
  thead th, td small { white-space: normal; }
}
@media print { nav { display: none; } section { break-inside: avoid; } }
"""

CSS = THEME + LAYOUT + TEXT + FIGURES + PICTURES + SMALL_SCREENS
