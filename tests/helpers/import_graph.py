"""What the modules of the package import, read off their sources."""

import ast
from pathlib import Path

__all__ = ["ROOT", "SOURCE", "imported", "imports_of", "modules"]

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "colora"


def modules() -> list[tuple[Path, str, bool]]:
    """Every module as (file, dotted name, whether it is the `__init__` of a package)."""
    found = []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = ["colora", *path.relative_to(SOURCE).with_suffix("").parts]
        is_package = parts[-1] == "__init__"
        found.append((path, ".".join(parts[:-1] if is_package else parts), is_package))
    return found


def imported(tree: ast.AST, module: str, is_package: bool = False) -> list[tuple[int, str]]:
    """Each import anywhere in `tree`, also inside functions and under TYPE_CHECKING, as (line, dotted name).

    `from colora import adapter` may mean a package or a name of the root, and `from colora.adapter import layer` a
    module or a name of the package: what is a module or package of ours counts as one.
    """
    ours = _names()
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            parts = module.split(".")
            above = parts[: len(parts) - node.level + is_package] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            found += [
                (node.lineno, inner if (inner := f"{origin}.{alias.name}") in ours else origin) for alias in node.names
            ]
    return sorted(set(found))


def imports_of() -> dict[str, set[str]]:
    """For each module of ours, those of ours that it imports anywhere."""
    names = _names()
    graph = {}
    for path, module, is_package in modules():
        found = {name for _, name in imported(ast.parse(path.read_text("utf-8")), module, is_package)}
        graph[module] = (found & names) - {module}
    return graph


def _names() -> set[str]:
    return {module for _, module, _ in modules()}
