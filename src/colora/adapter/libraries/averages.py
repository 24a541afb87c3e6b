"""torch's running averages of a model (EMA, SWA): refused once the bank's tasks are no longer those it began with.

`AveragedModel` keeps a copy of the model and averages by position. After `remove_task` and `add_tasks` it would mix the
cores of different tasks, or spread one core over several; after `add_tasks` alone it fails without saying why.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from colora.adapter.lookup import bank_routers
from colora.errors import ConfigError

__all__ = ["teach_averages"]


def teach_averages() -> None:
    """Let torch's `AveragedModel` compare the tasks first where its model has a bank; idempotent."""
    from torch.optim.swa_utils import AveragedModel

    if not hasattr(AveragedModel.update_parameters, "_colora_checked"):
        AveragedModel.update_parameters = _checked(AveragedModel.update_parameters)  # type: ignore[method-assign]


def _checked(update: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(update)
    def checked(self: nn.Module, model: nn.Module) -> Any:
        for own, other in zip(bank_routers(self), bank_routers(model), strict=False):
            if own.tasks != other.tasks:
                raise ConfigError(
                    f"this average is of a bank with {_listed(own.tasks)}; the model now has {_listed(other.tasks)}: "
                    "make a new AveragedModel after the tasks of a bank have changed"
                )
        return update(self, model)

    checked._colora_checked = True  # type: ignore[attr-defined]
    return checked


def _listed(tasks: Mapping[str, Iterable[str]]) -> str:
    return "; ".join(f"{adapter_name}: {', '.join(names)}" for adapter_name, names in tasks.items())
