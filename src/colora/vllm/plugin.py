"""The plugin in one process of vLLM."""

import itertools
import tempfile
from collections.abc import Callable
from pathlib import Path

from vllm.logger import init_logger
from vllm.lora.resolver import LoRAResolverRegistry
from vllm.v1.worker import lora_model_runner_mixin

from colora.errors import ConfigError
from colora.serving.store import CoreStore
from colora.vllm.adapter_path import CorePath
from colora.vllm.compatible import differences
from colora.vllm.folders import LoRAFolders
from colora.vllm.resolver import BankResolver
from colora.vllm.settings import WAY, PluginSettings
from colora.vllm.worker import BankWorkerManager

__all__ = ["install"]

NAME = "CoLoRA bank"
logger = init_logger(__name__)
_generations = itertools.count(1)


def install() -> None:
    """Make this process know the bank: the API server its tasks, the workers A, B and cores.

    Raises:
        ColoraError: no bank is there, it is damaged, or this version of vLLM cannot have it.
    """
    settings = PluginSettings.from_environment()
    store = CoreStore(settings.bank, settings.state)
    faults = [] if settings.way == "folders" else differences()
    if faults and settings.way == "shared":
        raise ConfigError(f"{WAY}=shared: this version of vLLM is not one that the plugin knows:", faults)
    if faults:
        logger.warning("a plain LoRA is written for each task, for this vLLM is not known: %s", "; ".join(faults))
    if settings.way == "folders" or faults:
        path_of = _folders(store)
    else:
        BankWorkerManager.settings = settings
        lora_model_runner_mixin.LRUCacheWorkerLoRAManager = BankWorkerManager
        path_of = core_paths(store)
    LoRAResolverRegistry.register_resolver(NAME, BankResolver(path_of))
    logger.info("bank %s: %d tasks", settings.bank, len(store))


def core_paths(store: CoreStore) -> Callable[[str], str]:
    """How workers find the cores of a store; those of another store have other paths."""
    generation = next(_generations)

    def path_of(task: str) -> str:
        version, file = store.place(task)
        return str(CorePath(task, f"{generation}.{version}", None if file is None else str(file)))

    return path_of


def _folders(store: CoreStore) -> Callable[[str], str]:
    folders = LoRAFolders(store, Path(tempfile.mkdtemp(prefix="colora-vllm-")))
    return lambda task: str(folders.path(task))
