"""Something to be done once a module has been imported, by whomever and whenever that is.

`wrapt.when_imported` does the same, but importing wrapt takes as long as the help of the command line may take, for it
imports asyncio. For the same reason the classes here do not inherit from those of `importlib.abc`.
"""

import sys
from collections.abc import Callable, Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

__all__ = ["after_import"]


def after_import(name: str, action: Callable[[], object]) -> None:
    """Call `action` once: now, if the module `name` has been imported, else as soon as it is."""
    if name in sys.modules:
        action()
        return
    _FINDER.actions.setdefault(name, []).append(action)
    if _FINDER not in sys.meta_path:
        sys.meta_path.insert(0, _FINDER)


class _Finder:
    """Finds the modules waited for as they would be found without it, and has their loaders tell when they are there.

    It stays on `sys.meta_path` for good: other threads may be going through that list.
    """

    waits_for_imports = True  # another one may be there, from before this module was imported anew

    def __init__(self) -> None:
        self.actions: dict[str, list[Callable[[], object]]] = {}

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.actions:
            return None
        for finder in list(sys.meta_path):
            if getattr(finder, "waits_for_imports", False):
                continue
            if (spec := finder.find_spec(fullname, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _Loader(spec.loader, self.done)  # type: ignore[assignment]
                return spec
        return None

    def done(self, name: str) -> None:
        """Do what is to be done after this module; once, for it may be imported again."""
        for action in self.actions.pop(name, []):
            action()


class _Loader:
    """A loader that does what another one does, and then tells that the module is there."""

    def __init__(self, loader: Any, done: Callable[[str], None]) -> None:
        self.loader, self.done = loader, done

    def __getattr__(self, name: str) -> Any:  # resources, source lines: whatever else a loader is asked for
        if name.startswith("__") or name == "loader":  # asked for by copies, before there is anything to ask
            raise AttributeError(name)
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self.loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        self.done(module.__name__)


_FINDER: Any = _Finder()
