"""A report as one HTML page that needs nothing else: no network, no scripts, its style and figures inside."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import groupby
from typing import get_args

from colora.experiments.report.drawing.draw import draw
from colora.experiments.report.plots import Figure, Forest, Strips
from colora.experiments.report.sections import Block, Command, Facts, Folded, Lead, Section, Warn
from colora.experiments.report.style import STYLE
from colora.experiments.report.tables import LEVEL, Entry, Table

__all__ = ["page"]

WORDS = ' class="words"'
LONG = 44  # letters: no number is as long, so the entry is words, which may be broken over lines
LONG_NAME = 18
FIGURES = get_args(Figure)


def page(sections: Sequence[Section], title: str) -> str:
    """The page with all sections under a title. Names in them may hold anything: all text is escaped."""
    body = "".join(_section(section, f"section-{number}") for number, section in enumerate(sections))
    links = "".join(
        f'<li><a href="#section-{number}">{escape(section.title)}</a></li>\n'
        for number, section in enumerate(sections)
        if section.level == 2 and section is not sections[0]
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>\n{STYLE}</style>\n</head>\n<body>\n"
        f'<header><h1>{escape(title)}</h1></header>\n<nav aria-label="Contents"><ul>\n{links}</ul></nav>\n'
        f"<main>\n{body}</main>\n</body>\n</html>\n"
    )


def _section(section: Section, name: str = "") -> str:
    anchor = f' id="{name}"' if name else ""
    heading = f"<h{section.level}>{escape(section.title)}</h{section.level}>"
    return f"<section{anchor}>\n{heading}\n{_blocks(section.blocks, section)}</section>\n"


def _blocks(blocks: Sequence[Block], section: Section) -> str:
    parts = []
    for is_figure, of in groupby(blocks, key=lambda one: isinstance(one, FIGURES)):
        if is_figure:
            figures = [one for one in of if isinstance(one, FIGURES)]
            rows = " rows" if isinstance(figures[0], (Forest, Strips)) else ""
            parts.append(f'<div class="figures{rows}">\n{"".join(map(_figure, figures))}</div>\n')
        else:
            parts += [_block(one, section) for one in of]
    return "".join(parts)


def _figure(figure: Figure) -> str:
    return f"<figure><figcaption>{escape(figure.title)}</figcaption>{draw(figure)}</figure>\n"


def _block(block: Block, section: Section) -> str:
    if isinstance(block, Table):
        return _table(block, section)
    if isinstance(block, Facts):
        pairs = "".join(f"<dt>{escape(name)}</dt><dd>{escape(text)}</dd>\n" for name, text in block.pairs)
        return f"<dl>\n{pairs}</dl>\n"
    if isinstance(block, Command):
        return f"<pre><code>{escape(block.text)}</code></pre>\n"
    if isinstance(block, Warn):
        return f'<p class="warning" role="alert">{escape(block.text)}</p>\n'
    if isinstance(block, Lead):
        return f'<p class="lead">{escape(block.text)}</p>\n'
    if isinstance(block, Folded):
        inside = _blocks(block.blocks, Section(block.title, (), section.level + 1))
        inside += "".join(_section(one) for one in block.sections)
        return f"<details><summary>{_summary(block.title)}</summary>\n{inside}</details>\n"
    return f"<p>{escape(str(block))}</p>\n"


def _summary(title: str) -> str:
    """A heading; what follows a colon is not part of it."""
    name, colon, about = title.partition(": ")
    return f"<h3>{escape(name)}</h3>" + (f" <small>{escape(about)}</small>" if colon else "")


def _table(table: Table, section: Section) -> str:
    """The table in a container of its own that scrolls, so that a wide one does not widen the page."""
    title = escape(table.title)
    words = [index > 0 and _is_words(row[index].text for row in table.rows) for index in range(len(table.headers))]
    cards = 2 * sum(words) > len(words) - 1  # mostly words: on a phone each row is a card, with its headers inside
    role = _roles if cards else _no_role
    rows = []
    for row in table.rows:
        name = f"<strong>{escape(row[0].text)}</strong>" if row[0].bold or row[0].strong else escape(row[0].text)
        css = WORDS if len(row[0].text) > LONG_NAME else ""
        cells = "".join(_cell(*one, cards) for one in zip(row[1:], words[1:], table.headers[1:], strict=True))
        rows.append(f'<tr{role("row")}><th scope="row"{role("rowheader")}{css}>{name}</th>{cells}</tr>\n')
    level = min(section.level + 1, 6)
    above = "" if table.title == section.title else f"<h{level}>{title}</h{level}>\n"
    notes = "".join(f'<p class="note">{escape(note)}</p>\n' for note in table.notes)
    kind = ' class="cards" role="table"' if cards else ""
    inside = f"<thead>{_head(table, words)}</thead>\n<tbody>\n{''.join(rows)}</tbody>"
    return (
        f'{above}<div class="wide" role="region" aria-label="{title}" tabindex="0">\n'
        f"<table{kind}>\n{inside}\n</table>\n</div>\n{notes}"
    )


def _roles(name: str) -> str:
    """The role of a part of a table, which a browser forgets where the part is shown as a block."""
    return f' role="{name}"'


def _no_role(name: str) -> str:
    return ""


def _is_words(texts: Iterable[str]) -> bool:
    """Whether a column is read, not compared: nothing in it begins as a number does."""
    return not any(re.match(r"[\d+−≥≤-]", text) for text in texts)


def _head(table: Table, words: Sequence[bool]) -> str:
    """The row of headers; above it those that stand over several columns. What follows a line break is smaller."""
    above = ""
    if table.spans:
        cells = [
            f'<th class="span" scope="colgroup" colspan="{span.columns}">{escape(span.text)}</th>'
            if span.text
            else f'<td colspan="{span.columns}"></td>'
            for span in table.spans
        ]
        above = f"<tr>{''.join(cells)}</tr>\n"
    headers = []
    for header, left in zip(table.headers, words, strict=True):
        first, _, second = header.partition("\n")
        small = f" <small>{escape(second)}</small>" if second else ""
        css = ' class="g"' if second else ' class="t"' if left else ""
        headers.append(f'<th scope="col"{css}>{escape(first)}{small}</th>')
    return f"{above}<tr>{''.join(headers)}</tr>"


def _cell(entry: Entry, left: bool, header: str, card: bool) -> str:
    text = f"<strong>{escape(entry.text)}</strong>" if entry.bold else escape(entry.text)
    text += f"<i>{LEVEL}</i>" if entry.level else ""
    css = ' class="best"' if entry.bold else WORDS if len(entry.text) > LONG else ' class="t"' if left else ""
    of = f' role="cell" data-of="{escape(header)}"' if card else ""
    return f"<td{css}{of}>{text}</td>"
