"""CoLoRA: collaborative low-rank adaptation. Importing it makes stock PEFT know `CoLoRAConfig`.

What users may rely on is listed in `__init__.pyi` beside this file, and told in docs/api.md. Each name is imported
when it is first asked for, so that `import colora` costs next to nothing. PEFT learns of the bank once it is imported
itself, before colora or after it.
"""

import lazy_loader

from colora.common.after_import import after_import

__version__ = "0.1.0"
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def _register() -> None:
    from colora.adapter.registration import register

    register()


# Whichever of our modules needs PEFT, the package is imported before it: so none is half-way there when PEFT learns.
after_import("colora.adapter", _register)
after_import("peft", lambda: __import__("colora.adapter"))
