"""What sections are made of, for HTML and Markdown alike."""

from dataclasses import dataclass

from colora.experiments.report.plots import Figure
from colora.experiments.report.tables import Table

__all__ = ["Block", "Command", "Facts", "Folded", "Lead", "Section", "Warn"]


@dataclass(frozen=True)
class Facts:
    """Names and their texts."""

    pairs: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Command:
    """A line to be copied into a shell."""

    text: str


@dataclass(frozen=True)
class Warn:
    """A text that must not be overlooked."""

    text: str


@dataclass(frozen=True)
class Lead:
    """The sentence that a reader in a hurry reads."""

    text: str


@dataclass(frozen=True)
class Folded:
    """What is shown on demand: blocks, then sections."""

    title: str
    blocks: tuple["Block", ...]
    sections: tuple["Section", ...] = ()


Block = str | Warn | Command | Facts | Lead | Folded | Table | Figure
"""A plain text is a paragraph."""


@dataclass(frozen=True)
class Section:
    """A heading of a level (2 for those of the page), and what stands below it."""

    title: str
    blocks: tuple[Block, ...]
    level: int = 2
