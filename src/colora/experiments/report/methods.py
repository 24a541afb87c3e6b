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
    """Whether the method does without collaboration: trains nothing, only parts of each task, or one for all tasks.

    Names that the registry lacks are told by their first word, `local` or `pooled`.
    """
    method = METHODS.get(name)
    if method is None:
        return name.split("-")[0] in ("local", "pooled")
    trained = {part.own for term in method.terms for part in term.parts().values() if part.trained}
    return not method.federated and len(trained) < 2
