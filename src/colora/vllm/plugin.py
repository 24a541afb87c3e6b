"""The plugin in one process of vLLM."""

from vllm.logger import init_logger
from vllm.lora.resolver import LoRAResolverRegistry
from vllm.v1.worker import lora_model_runner_mixin

from colora.serving.store import CoreStore
from colora.vllm.resolver import BankResolver
from colora.vllm.settings import PluginSettings
from colora.vllm.worker import BankWorkerManager

__all__ = ["install"]

NAME = "CoLoRA bank"
logger = init_logger(__name__)


def install() -> None:
    """Make this process know the bank: the API server its tasks, the workers A, B and cores.

    Raises:
        ColoraError: no bank is there, it is damaged, or this version of vLLM cannot have it.
    """
    settings = PluginSettings.from_environment()
    store = CoreStore(settings.bank, settings.state)
    BankWorkerManager.settings = settings
    lora_model_runner_mixin.LRUCacheWorkerLoRAManager = BankWorkerManager  # type: ignore[misc]
    LoRAResolverRegistry.register_resolver(NAME, BankResolver(store))
    logger.info("bank %s: %d tasks", settings.bank, len(store))
