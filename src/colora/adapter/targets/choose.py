"""The targets of a new bank on a model: named one by one, and seen to mean something."""

import warnings

from torch import nn

from colora.adapter.config import CoLoRAConfig
from colora.adapter.targets.linear import LeftOut, LeftOutWarning, is_all_linear, linear_names, name_all_linear
from colora.adapter.targets.names import name_faults
from colora.errors import ColoraError, ConfigError

__all__ = ["choose_targets", "retell"]


def choose_targets(config: CoLoRAConfig, model: nn.Module) -> list[LeftOut]:
    """Replace "all-linear" by names, and check what else is named; what "all-linear" leaves out is warned of, too.

    The names of a saved bank were checked when it was made, and it has the layers it has.

    Raises:
        ConfigError: naming every name or pattern that matches nothing. The config is then as it was.
    """
    if config.base_identity is not None:
        return []
    before, named = (config.target_modules, config.exclude_modules), not is_all_linear(config)
    try:
        left_out = name_all_linear(config, model)
        if faults := name_faults(config, model, named):
            raise ConfigError("this bank does not fit the model; nothing was changed:", faults)
    except ConfigError:
        config.target_modules, config.exclude_modules = before
        raise
    for one in left_out:
        warnings.warn(str(one), LeftOutWarning, stacklevel=2)
    return left_out


def retell(error: Exception, model: nn.Module) -> None:
    """Raise PEFT's error about targets as ours, with the layers that there are; of any other error, do nothing."""
    if isinstance(error, ValueError) and not isinstance(error, ColoraError) and "target" in str(error).lower():
        raise ConfigError(f"{error} Linear layers of this model: {linear_names(model)}.") from error
