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
    else:
        sys.meta_path.insert(0, _Watcher(name, action))


class _Watcher:
    """Finds one module as it would be found without it, and has its loader tell when the module is there."""

    def __init__(self, name: str, action: Callable[[], object]) -> None:
        self.name, self.action = name, action

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != self.name:
            return None
        for finder in sys.meta_path:
            if finder is not self and (spec := finder.find_spec(fullname, path, target)) is not None:
                if spec.loader is not None:
                    spec.loader = _Telling(spec.loader, self)  # type: ignore[assignment]
                return spec
        return None


class _Telling:
    """A loader that does what another one does, and then what is to be done after that."""

    def __init__(self, loader: Any, watcher: _Watcher) -> None:
        self.loader, self.watcher = loader, watcher

    def __getattr__(self, name: str) -> Any:
        return getattr(self.loader, name)  # resources, source lines: whatever else a loader is asked for

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        made: ModuleType | None = self.loader.create_module(spec)
        return made

    def exec_module(self, module: ModuleType) -> None:
        self.loader.exec_module(module)
        module.__loader__ = self.loader
        if module.__spec__ is not None:
            module.__spec__.loader = self.loader
        if self.watcher in sys.meta_path:  # once: the module may be taken out of sys.modules and imported again
            sys.meta_path.remove(self.watcher)
            self.watcher.action()
