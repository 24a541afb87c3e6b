"""The methods in a report: their order, and which are compared with which. Names that the registry lacks just work."""

from colora.experiments.methods.registry import METHODS

__all__ = ["REFERENCES", "is_rival", "method_order"]

REFERENCES = ("colora", "fed-colora")  # what others are compared with: the first of these that is there


def method_order(name: str) -> tuple[int, str]:
    """Sort key: the index in the registry of the longest name that `name` is or begins with; other names come last.

    Examples:
        >>> sorted(["zzz", "colora-mean", "colora", "local"], key=method_order)
        ['local', 'colora', 'colora-mean', 'zzz']
    """
    stems = [known for known in METHODS if name == known or name.startswith(known + "-")]
    return (list(METHODS).index(max(stems, key=len)) if stems else len(METHODS), name)


def is_rival(name: str) -> bool:
    """Whether the method does without collaboration (`local*`) or without personal parts (`pooled*`).

    Examples:
        >>> is_rival("pooled-matched"), is_rival("pooled-and-own")
        (True, False)
    """
    return name.split("-")[0] in ("local", "pooled") and not name.startswith("pooled-and-own")
