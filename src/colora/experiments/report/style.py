"""The style of the page: narrow and wide screens, light and dark, and print; the looks of all figures, by class."""

from colora.common.palette import COLOURS

__all__ = ["STYLE"]

# The same hues, lighter, on dark ground; the last is the ink.
_ON_DARK = ("#4aa8e0", "#ff8a3d", "#2fc79a", "#e39cc4", "#f0b429", "#8fd0f5")


def _colours(values: tuple[str, ...]) -> str:
    return " ".join(f"--c{number}: {value};" for number, value in enumerate(values))


def _classes() -> str:
    lines = [f".c{number} {{ color: var(--c{number}); }}" for number in range(len(COLOURS))]
    lines.append(f".c{len(COLOURS)} {{ color: var(--ink); }}")
    lines += [f".q{shade} {{ fill-opacity: {0.06 + 0.1 * shade:.2f}; }}" for shade in range(10)]
    return "\n".join(lines)


STYLE = f"""\
:root {{ color-scheme: light dark; --ground: #fff; --ink: #1b1b1b; --faint: #595959; --line: #d5d5d5; --best: #eaf1f7;
  --alarm: #b00020; --ours: #d55e00; --weak: #9a9a9a; --on-heat: #fff; {_colours(COLOURS)} }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ground: #16181b; --ink: #e8e8e8; --faint: #a8a8a8; --line: #3c4046; --best: #26323d; --alarm: #ff8a80;
    --ours: #ff8a3d; --weak: #7d8288; --on-heat: #000; {_colours(_ON_DARK)} }}
}}
* {{ box-sizing: border-box; }}
body {{ margin: 0 auto; padding: 1rem 1.2rem 3rem; max-width: 72rem; background: var(--ground); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }}
h1 {{ font-size: 1rem; font-weight: 600; color: var(--faint); margin: 0; }}
h2 {{ font-size: 1.3rem; border-top: 1px solid var(--line); padding-top: 1rem; margin: 2.2rem 0 0.5rem; }}
main > section:first-child h2 {{ border: 0; margin: 0; padding: 0; font-size: 1rem; color: var(--faint); }}
h3 {{ font-size: 1.05rem; margin: 1.5rem 0 0.4rem; }}
h4, h5 {{ font-size: 0.95rem; margin: 1.2rem 0 0.3rem; }}
pre {{ max-width: 56rem; margin: 0.2rem 0 0.9rem; padding: 0.5rem 0.8rem; border: 1px solid var(--line);
  font-size: 0.85rem; white-space: pre-wrap; }}
p, dl {{ max-width: 44rem; margin: 0.5rem 0; }}
.lead {{ font-size: 1.35rem; line-height: 1.35; font-weight: 600; max-width: 56rem; text-wrap: pretty; }}
a {{ color: inherit; text-underline-offset: 0.2em; }}
nav ul {{ display: flex; flex-wrap: wrap; gap: 0 1.1rem; padding: 0; margin: 0.2rem 0 0.8rem; list-style: none;
  font-size: 0.85rem; color: var(--faint); }}
nav a {{ display: inline-block; padding: 0.2rem 0; }}
dl {{ display: grid; grid-template-columns: minmax(6rem, auto) 1fr; gap: 0.2rem 1rem; font-size: 0.9rem; }}
dt {{ color: var(--faint); }}
dd {{ margin: 0; }}
details {{ border-top: 1px solid var(--line); margin: 0.5rem 0; }}
summary {{ cursor: pointer; padding: 0.5rem 0; }}
summary small {{ color: var(--faint); font-size: 0.85rem; }}
summary h3 {{ display: inline; margin: 0; font-size: 1rem; }}
details[open] {{ padding-bottom: 1.5rem; }}
.wide {{ overflow-x: auto; max-width: 100%; }}
table {{ border-collapse: separate; border-spacing: 0; font-size: 0.9rem; line-height: 1.35; overflow-wrap: normal;
  font-variant-numeric: tabular-nums; }}
th, td {{ padding: 0.22rem 0.85rem 0.22rem 0.5rem; text-align: right; border-bottom: 1px solid var(--line);
  vertical-align: top; }}
tr > :first-child {{ text-align: left; position: sticky; left: 0; z-index: 1; background: var(--ground);
  padding-left: 0; }}
th.g {{ white-space: nowrap; }}
td.t, th.t {{ text-align: left; white-space: normal; }}
thead th {{ vertical-align: bottom; font-weight: 600; }}
thead small {{ display: block; font-size: 0.8em; font-weight: 400; color: var(--faint); }}
thead .span {{ text-align: center; font-weight: 400; color: var(--faint); border-left: 1px solid var(--line); }}
tbody th {{ font-weight: 400; white-space: nowrap; }}
tbody th.words {{ white-space: normal; min-width: 8rem; max-width: 16rem; overflow-wrap: anywhere; }}
td {{ white-space: nowrap; position: relative; }}
td.words {{ white-space: normal; text-align: left; min-width: 16rem; max-width: 34rem; overflow-wrap: anywhere; }}
td i {{ position: absolute; font-style: normal; color: var(--faint); padding-left: 0.1em; }}
td.best {{ background: var(--best); }}
strong {{ font-weight: 700; }}
.note {{ font-size: 0.85rem; line-height: 1.4; color: var(--faint); }}
.warning {{ border: 2px solid var(--alarm); color: var(--alarm); padding: 0.5rem 0.8rem; font-weight: 700; }}
.figures {{ display: flex; flex-wrap: wrap; gap: 1.5rem 2.5rem; align-items: flex-start; margin: 1rem 0 1.5rem; }}
figure {{ margin: 0; width: 26rem; max-width: 100%; break-inside: avoid; }}
.rows figure {{ width: 33rem; }}
figcaption {{ font-size: 0.9rem; font-weight: 600; margin-bottom: 0.3rem; line-height: 1.3; }}
svg {{ width: 100%; height: auto; display: block; overflow: visible; }}
svg text {{ font-size: 10.5px; fill: currentColor; font-variant-numeric: tabular-nums; }}
svg text.small {{ font-size: 7px; }}
svg path {{ fill: currentColor; stroke-linejoin: round; }}
svg .wide-spaces {{ white-space: pre; }}
svg .m {{ text-anchor: middle; }}
svg .e {{ text-anchor: end; }}
svg .b {{ font-weight: 600; }}
svg .faint {{ fill: var(--faint); }}
svg .axis {{ stroke: var(--faint); }}
svg .grid {{ stroke: var(--line); stroke-width: 0.7; }}
svg .zero {{ stroke: var(--ink); stroke-width: 1; }}
svg .bar {{ stroke: currentColor; stroke-width: 1.6; }}
svg .lead {{ fill: none; stroke: var(--line); stroke-width: 0.7; }}
svg .ours {{ color: var(--ours); fill: var(--ours); stroke: var(--ground); stroke-width: 0.8; }}
svg tspan.ours {{ stroke: none; }}
svg .rival {{ stroke: var(--ground); stroke-width: 0.8; }}
svg .hollow {{ fill: var(--ground); stroke: currentColor; stroke-width: 1.6; }}
svg .others {{ stroke: var(--weak); stroke-width: 1.2; fill: none; }}
svg .curve {{ fill: none; stroke: currentColor; stroke-width: 1.6; }}
svg .band {{ fill-opacity: 0.13; stroke: none; }}
svg .weak {{ color: var(--weak); }}
svg .weak .curve {{ stroke-width: 1; }}
svg .heat {{ fill: var(--c0); }}
svg .on-heat {{ fill: var(--on-heat); }}
svg .d1 {{ stroke-dasharray: 5 2.5; }}
svg .d2 {{ stroke-dasharray: 6 2 1.5 2; }}
svg .d3 {{ stroke-dasharray: 1.5 2; }}
{_classes()}
@media (max-width: 40rem) {{
  .lead {{ font-size: 1.15rem; }}
  td, th {{ padding-right: 0.75rem; }}
  table {{ font-size: 0.85rem; }}
  .cards thead {{ position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }}
  .cards tr {{ display: block; padding: 0.5rem 0; border-bottom: 1px solid var(--line); }}
  .cards tbody :is(th, td) {{ display: block; position: static; text-align: left; white-space: normal; border: 0;
    padding: 0; min-width: 0; max-width: none; }}
  .cards tbody th {{ font-weight: 700; }}
  .cards td::before {{ content: attr(data-of) ": "; color: var(--faint); }}
}}
@media print {{
  :root {{ color-scheme: light; --ground: #fff; --ink: #000; --faint: #333; --line: #999; --best: #eee; --alarm: #000;
    --ours: #d55e00; --weak: #888; --on-heat: #fff; {_colours(COLOURS)} }}
  html {{ font-size: 12.5px; }}
  body {{ max-width: none; padding: 0; }}
  nav {{ display: none; }}
  .wide {{ overflow: visible; }}
  table {{ font-size: 7.5pt; }}
  summary {{ padding: 0; }}
  th, td {{ padding: 1pt 6pt 1pt 2pt; }}
  td, tbody th {{ white-space: normal; }}
  td.words, tbody th.words {{ min-width: 0; }}
  tr, h2, h3, h4, h5 {{ break-inside: avoid; }}
  h2, h3, h4, h5, summary {{ break-after: avoid; }}
  .figures {{ gap: 4mm; }}
  .figures figure {{ width: 48%; }}
}}
"""
