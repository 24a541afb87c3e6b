"""The plugin in one process of vLLM."""

import tempfile
from pathlib import Path

from vllm.logger import init_logger
from vllm.lora.resolver import LoRAResolverRegistry
from vllm.v1.worker import lora_model_runner_mixin

from colora.errors import ConfigError
from colora.vllm.compatible import differences
from colora.vllm.compiling import compile_with_bank
from colora.vllm.folders import LoRAFolders
from colora.vllm.front.service import BankTasks
from colora.vllm.resolver import BankResolver
from colora.vllm.settings import WAY, PluginSettings
from colora.vllm.worker import BankWorkerManager

__all__ = ["install"]

NAME = "CoLoRA bank"
logger = init_logger(__name__)
_bank: BankTasks | None = None


def install() -> None:
    """Make this process know the bank: the API server its tasks, the workers A, B and cores. Once is enough.

    Raises:
        ColoraError: no bank is there, it is damaged, or this version of vLLM cannot have it.
    """
    global _bank
    if _bank is not None:
        return
    settings = PluginSettings.from_environment()
    bank = BankTasks(settings.bank, settings.state or Path(tempfile.mkdtemp(prefix="colora-state-")))
    faults = [] if settings.way == "folders" else differences()
    if faults and settings.way == "shared":
        raise ConfigError(f"{WAY}=shared: this version of vLLM is not one that the plugin knows:", faults)
    if faults:
        logger.warning("a plain LoRA is written for each task, for this vLLM is not known: %s", "; ".join(faults))
    if settings.way == "folders" or faults:
        folders = LoRAFolders(lambda: bank.store, Path(tempfile.mkdtemp(prefix="colora-loras-")))
        bank.path = lambda task: str(folders.path(task))  # type: ignore[method-assign]
    else:
        compile_with_bank(bank.store.saved)
        BankWorkerManager.settings = settings
        lora_model_runner_mixin.LRUCacheWorkerLoRAManager = BankWorkerManager
    LoRAResolverRegistry.register_resolver(NAME, BankResolver(lambda task: bank.path(task)))
    logger.info("bank %s: %d tasks", settings.bank, len(bank.store))
    _bank = bank


def installed() -> BankTasks:
    """The bank that this process knows."""
    install()
    assert _bank is not None
    return _bank
