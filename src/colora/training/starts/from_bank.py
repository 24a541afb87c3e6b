"""Starting a run from a bank (`start_from`): its A, B and the cores of tasks by name, instead of fresh ones.

A task of the run that the bank does not know starts at the mean of all its cores; a task that the run does not have is
left out. The bank's adapter settings hold; the run file may repeat them, not change them.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import nn
from transformers import PreTrainedModel

from colora.adapter.config import CoLoRAConfig
from colora.adapter.identity import check_base, name_base
from colora.adapter.mixtures.fused import matching_parameters
from colora.adapter.model import bank_layers, bank_tuner
from colora.adapter.targets.choose import choose_targets
from colora.adapter.targets.linear import name_all_linear
from colora.adapter.targets.rule import is_target
from colora.bank.load import attach_bank
from colora.bank.tensors import SavedBank
from colora.common.text import listed, shortened
from colora.errors import ConfigError
from colora.training.config import AdapterSpec, RunConfig
from colora.training.run_folder import run_config
from colora.training.starts.in_store import start_in_store, starts_in_store

__all__ = ["check_start", "resolve_adapter", "start_bank"]

MOST_TOLD = 10_000  # tasks of the first bank that are looked through for those that are left out
# Which layers: the same ones can be said in several ways, so these are compared on the base model (`check_start`).
LAYERS = {"target_modules", "target_parameters", "exclude_modules", "layers_to_transform"}


def resolve_adapter(config: RunConfig) -> tuple[RunConfig, SavedBank | None]:
    """The run with the adapter settings of the bank that it starts from, and that bank; else the run itself, and None.

    A run whose folder is its own already knows these settings; what has ended does not need its first bank any more.

    Raises:
        BankFileError: no bank there, or a damaged one.
        ConfigError: listing fields of the run file's `adapter` that differ from the bank's.
    """
    if config.start_from is None:
        return config, None
    spec, start = _claimed(config), None
    if spec is None or not (Path(config.output) / "bank" / "adapter_config.json").is_file():
        start = SavedBank(config.start_from)
        spec = spec or _spec(start.config)
    own, given = config.adapter, config.adapter.model_fields_set - {"init_weights", "init_rotation"}
    faults = [
        f"adapter.{name}: the bank has {getattr(spec, name)!r}, the run file {getattr(own, name)!r}"
        for name in sorted(given - LAYERS)
        if getattr(own, name) != getattr(spec, name)
    ]
    if faults:
        raise ConfigError(
            (
                f"a run that starts from {config.start_from} keeps the adapter settings of that bank; remove "
                "from the run file:"
            ),
            faults,
        )
    layers = {name: getattr(own, name) for name in given & LAYERS}
    return config.model_copy(update={"adapter": spec.model_copy(update=layers)}), start


def check_start(adapter: CoLoRAConfig, start: SavedBank, model: Any) -> None:
    """See that a bank fits this base model and the layers that a run adapts.

    Args:
        adapter: the config of the run's bank.
        start: the bank to start from.

    Raises:
        BaseMismatchError: the bank belongs to another base model.
        ConfigError: the run file names other layers than the bank has, or layers that there are not.
    """
    if start.config.base_identity is not None:
        check_base(start.config.base_identity, model, model.name_or_path)
    asked = replace(adapter, layers_pattern=start.config.layers_pattern)
    name_all_linear(asked, model)
    has, wants = _targets(start.config, model), _targets(asked, model)
    if has != wants:
        differing = sorted(has ^ wants)
        raise ConfigError(
            f"the run file's adapter names other layers than {start.folder} has: remove target_modules, "
            "target_parameters, exclude_modules and layers_to_transform from it. Different:",
            shortened([f"{name}: only in the {'bank' if name in has else 'run file'}" for name in differing], 5),
        )
    if any(getattr(adapter, field) != getattr(start.config, field) for field in LAYERS):
        choose_targets(asked, model)  # the same layers, but perhaps a name beside them that is none


def start_bank(
    adapter: CoLoRAConfig,
    start: SavedBank,
    model: Any,
    log: Callable[[str], None],
    names: Sequence[str],
    config: RunConfig | None = None,
) -> PeftModel:
    """The bank that a run starts from, on the base model, trainable and with the run's tasks in its order.

    Args:
        names: of the run's tasks.
        config: of the run, which says where very many cores are kept.

    Raises:
        as `check_start`.
    """
    check_start(adapter, start, model)
    if new := [name for name in names if name not in start.index]:
        log(f"not in {start.folder}, start at the mean core: {listed(new, 100)}")
    if left := len(start.tasks) - (len(names) - len(new)):
        kept = set(names)
        told = [name for name in islice(start.tasks, MOST_TOLD) if name not in kept][:100]
        log(f"only in {start.folder}, left out: {listed(told, 100) if len(told) == left else f'{left} tasks'}")
    if config is not None and starts_in_store(config, start, len(names)):
        bank = start_in_store(model, start, names, config)
    else:
        bank = _start_on_model(start, model, names)
    tuner = bank_tuner(bank)
    settings = tuner.peft_config[tuner.active_adapters[0]]
    settings.base_model_name_or_path = model.name_or_path
    if settings.base_identity is not None:
        name_base(settings, model)
    return bank


def _start_on_model(start: SavedBank, model: PreTrainedModel, names: Sequence[str]) -> PeftModel:
    """With all cores on the model; of a bank in rows only those of the run's tasks are read, if none is new."""
    known = [name for name in names if name in start.index]
    row = {name: index for index, name in enumerate(known)}
    bank = attach_bank(model, start, True, known or start.tasks[:1])
    mean = start.mean_core() if len(known) < len(names) else {}
    tuner = bank_tuner(bank)
    (adapter_name,) = tuner.active_adapters
    with torch.no_grad():
        for key, layer in bank_layers(bank, adapter_name).items():
            cores = layer.colora_core[adapter_name]
            cores.data = torch.stack([cores[row[name]] if name in row else mean[key].to(cores) for name in names])
    tuner.peft_config[adapter_name].tasks = list(names)
    tuner.router.register(adapter_name, names)
    return bank


def _claimed(config: RunConfig) -> AdapterSpec | None:
    """The settings in the run's own folder, if it has been started from this bank before."""
    output = Path(config.output)
    if not (output / "run.yaml").is_file():
        return None
    before = run_config(output)
    return before.adapter if before.start_from == config.start_from else None


def _spec(bank: CoLoRAConfig) -> AdapterSpec:
    chosen, names = bank.layers_to_transform, bank.target_modules
    return AdapterSpec(
        r=bank.r,
        lora_alpha=bank.lora_alpha,
        use_rslora=bank.use_rslora,
        lora_dropout=bank.lora_dropout,
        target_modules=sorted(names) if isinstance(names, list) else names or [],
        target_parameters=bank.target_parameters,
        exclude_modules=bank.exclude_modules,
        layers_to_transform=[chosen] if isinstance(chosen, int) else chosen,
        modules_to_save=bank.modules_to_save,
    )


def _targets(config: CoLoRAConfig, model: nn.Module) -> set[str]:
    """Names of the modules that such a bank adapts."""
    fused = matching_parameters(model, config.target_parameters or [])
    return {name for name, _ in model.named_modules() if name and is_target(config, name)} | set(map(".".join, fused))
