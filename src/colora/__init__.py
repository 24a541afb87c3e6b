"""CoLoRA: collaborative low-rank adaptation. Importing it makes stock PEFT know `CoLoRAConfig`.

What users may rely on is listed in `__init__.pyi` beside this file, and told in docs/api.md. Each name is imported
when it is first asked for, so that `import colora` costs next to nothing. PEFT learns of the bank once it is imported
itself, before colora or after it.
"""

from importlib import import_module
from threading import RLock
from typing import Any

from colora.common.after_import import after_import
from colora.common.stub import stub_names

__version__ = "0.2.0"  # the one place: the build reads it here
_HOMES = stub_names(__name__, __spec__)
__all__ = sorted(_HOMES)
_WITHOUT_PEFT = ("algebra", "common", "errors", "tasks", "theory")
_PACKAGES = (
    *_WITHOUT_PEFT,
    "adapter",
    "bank",
    "cli",
    "evaluation",
    "experiments",
    "federated",
    "models",
    "serving",
    "training",
    "transfer",
    "vllm",
)
_IMPORTING = RLock()


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name, f"{__name__}.{name}" if name in _PACKAGES else None)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    with _IMPORTING:  # two threads that begin at two ends of our modules would wait for each other
        if home.split(".")[1] not in _WITHOUT_PEFT:
            import_module("peft")  # before ours, for whoever imports PEFT waits for `colora.adapter`
        module = import_module(home)
    value = getattr(module, name) if name in _HOMES else module
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__, *_PACKAGES})


def _register() -> None:
    from colora.adapter.registration import register

    def saving() -> Any:  # when it is needed: it imports what loads base models
        return import_module(f"{__name__}.bank.saving")

    register(
        write_card=lambda model, folder: saving().write_card_of(model, folder),
        after_saving=lambda model, folder: saving().bring_along(model, folder),
    )


# Whichever of our modules needs PEFT, the package is imported before it: so none is half-way there when PEFT learns.
after_import(f"{__name__}.adapter", _register)
after_import("peft", lambda: import_module(f"{__name__}.adapter"))
