"""A report as one HTML page that needs nothing else: no network, no scripts, its style and figures inside."""

from collections.abc import Sequence
from html import escape
from itertools import groupby

from colora.experiments.report.figures import draw
from colora.experiments.report.plots import HeatMap, Panel
from colora.experiments.report.sections import Facts, Section, Warn
from colora.experiments.report.style import STYLE
from colora.experiments.report.tables import Table

__all__ = ["page"]

WORDS = ' class="words"'
LONG = 44  # letters: no number is as long, so the entry is words, which may be broken over lines
LONG_NAME = 26


def page(sections: Sequence[Section], title: str) -> str:
    """The page with all sections under a title. Names in them may hold anything: all text is escaped."""
    figures = _Figures()
    body = "".join(_section(section, number, figures) for number, section in enumerate(sections))
    links = "".join(
        f'<li><a href="#section-{number}">{escape(section.title)}</a></li>\n'
        for number, section in enumerate(sections)
        if section.level == 2
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1></header>\n<nav aria-label="Contents"><ul>\n{links}</ul></nav>\n'
        f"<main>\n{body}</main>\n</body>\n</html>\n"
    )


class _Figures:
    """Draws figures, numbering them in the order of the page."""

    def __init__(self) -> None:
        self.number = 0

    def html(self, figure: Panel | HeatMap) -> str:
        self.number += 1
        caption = f"<figcaption>{escape(figure.title)}</figcaption>"
        return f"<figure>{draw(figure, self.number)}{caption}</figure>\n"


def _section(section: Section, number: int, figures: _Figures) -> str:
    parts = []
    for is_figure, blocks in groupby(section.blocks, key=lambda one: isinstance(one, (Panel, HeatMap))):
        if is_figure:
            drawn = "".join(figures.html(one) for one in blocks if isinstance(one, (Panel, HeatMap)))
            parts.append(f'<div class="figures">\n{drawn}</div>\n')
        else:
            parts += [_block(one, section.title) for one in blocks]
    heading = f"<h{section.level}>{escape(section.title)}</h{section.level}>"
    return f'<section id="section-{number}">\n{heading}\n{"".join(parts)}</section>\n'


def _block(block: object, heading: str) -> str:
    if isinstance(block, Table):
        return _table(block, heading)
    if isinstance(block, Facts):
        pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n" for name, text in block.pairs)
        return f"<dl>\n{pairs}</dl>\n"
    if isinstance(block, Warn):
        return f'<p class="warning" role="alert">{escape(block.text)}</p>\n'
    return f"<p>{escape(str(block))}</p>\n"


def _table(table: Table, heading: str) -> str:
    """The table in a container of its own that scrolls, so that a wide one does not widen the page."""
    title = escape(table.title)
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in table.headers)
    rows = []
    for row in table.rows:
        texts = [f"<strong>{escape(one.text)}</strong>" if one.bold else escape(one.text) for one in row]
        cells = "".join(f"<td{WORDS if len(text) > LONG else ''}>{text}</td>" for text in texts[1:])
        name = f'<th scope="row"{WORDS if len(texts[0]) > LONG_NAME else ""}>{texts[0]}</th>'
        rows.append(f"<tr>{name}{cells}</tr>\n")
    above = "" if table.title == heading else f"<h4>{title}</h4>\n"
    notes = "".join(f'<p class="note">{escape(note)}</p>\n' for note in table.notes)
    return (
        f'{above}<div class="wide" role="region" aria-label="{title}" tabindex="0">\n'
        f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{''.join(rows)}</tbody>\n</table>\n</div>\n{notes}"
    )
