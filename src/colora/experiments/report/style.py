"""The style of the page: narrow and wide screens, light and dark, and print."""

__all__ = ["STYLE"]

STYLE = """\
:root { color-scheme: light dark; --ground: #fff; --ink: #1b1b1b; --faint: #5a5a5a; --line: #d5d5d5; --alarm: #b00020; }
@media (prefers-color-scheme: dark) {
  :root { --ground: #16181b; --ink: #e8e8e8; --faint: #a8a8a8; --line: #3c4046; --alarm: #ff8a80; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { font-size: 1.3rem; border-top: 1px solid var(--line); padding-top: 1rem; margin-top: 2rem; }
h3 { font-size: 1.1rem; }
h4 { font-size: 1rem; margin-bottom: 0.3rem; }
p, dl { max-width: 46rem; }
a { color: inherit; }
nav ul { display: flex; flex-wrap: wrap; gap: 0.2rem 1.2rem; padding: 0; list-style: none; }
dl { display: grid; grid-template-columns: minmax(6rem, auto) 1fr; gap: 0.2rem 1rem; }
dt { color: var(--faint); }
dd { margin: 0; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; overflow-wrap: normal; }
th, td { padding: 0.25rem 0.6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child { text-align: left; }
tbody th { font-weight: normal; white-space: nowrap; }
tbody th.words { white-space: normal; min-width: 10rem; max-width: 16rem; overflow-wrap: anywhere; }
td { white-space: nowrap; }
td.words { white-space: normal; text-align: left; min-width: 16rem; max-width: 30rem; overflow-wrap: anywhere; }
thead th { vertical-align: bottom; }
strong { font-weight: 700; }
.note { font-size: 0.85rem; color: var(--faint); margin: 0.3rem 0; }
.warning { border: 2px solid var(--alarm); color: var(--alarm); padding: 0.5rem 0.8rem; font-weight: 700; }
.figures { display: flex; flex-wrap: wrap; gap: 1rem; align-items: flex-start; }
figure { margin: 0; width: 25rem; max-width: 100%; break-inside: avoid; }
figure svg { width: 100%; height: auto; display: block; }
figure svg * { stroke-linejoin: round; stroke-linecap: butt; }
figcaption { font-size: 0.85rem; color: var(--faint); }
@media print {
  :root { color-scheme: light; --ground: #fff; --ink: #000; --faint: #333; --line: #999; --alarm: #000; }
  body { max-width: none; padding: 0; font-size: 9pt; }
  nav { display: none; }
  .wide { overflow: visible; }
  table { font-size: 6.5pt; }
  th, td { padding: 1pt 3pt; }
  td, tbody th { white-space: normal; }
  td.words, tbody th.words { min-width: 0; }
  tr, h2, h3, h4 { break-inside: avoid; }
  h2, h3, h4 { break-after: avoid; }
  figure { width: 48%; }
}
"""
