"""The names that a package's stub lists, with the modules that they come from: one list for checkers and for Python."""

import ast
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

__all__ = ["stub_names"]


def stub_names(package: str, spec: ModuleSpec | None) -> dict[str, str]:
    """For each name that PACKAGE/__init__.pyi imports from one of the package's modules, that module.

    Args:
        package: its name.
        spec: its `__spec__`; the stub is read by its loader, which may be that of a zip file.

    Raises:
        ImportError: if there is no stub.
    """
    loader: Any = None if spec is None else spec.loader
    file = Path("" if spec is None else spec.origin or "").with_name("__init__.pyi")
    try:
        text = loader.get_data(str(file)).decode()
    except (AttributeError, OSError) as error:
        raise ImportError(f"{file}: missing; it belongs to {package}: install or bundle .pyi files too") from error
    return {
        alias.name: f"{package}.{node.module}"
        for node in ast.parse(text).body
        if isinstance(node, ast.ImportFrom) and node.level == 1
        for alias in node.names
    }
