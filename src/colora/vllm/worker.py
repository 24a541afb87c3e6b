"""What holds the adapters in a worker of vLLM: cores, in place of LoRAs."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.lora.layers import LoRAMapping
from vllm.lora.request import LoRARequest

from colora.bank.core_file import read_core
from colora.bank.tensors import SavedBank
from colora.errors import ConfigError, TaskIdError
from colora.vllm.adapter_path import CorePath
from colora.vllm.layers import attach, layer_order, places
from colora.vllm.slots import Slots
from colora.vllm.update import Cores

if TYPE_CHECKING:
    from colora.vllm.settings import PluginSettings

__all__ = ["BankWorkerManager"]


class BankWorkerManager:
    """Takes the place of vLLM's `LRUCacheWorkerLoRAManager`; the methods are those that its model runner calls.

    An adapter that is known has its cores in memory, kilobytes; one that a step needs is in a slot of the device.
    """

    is_enabled = True
    settings: "PluginSettings"
    """Set where the plugin is installed, once for the process."""

    def __init__(
        self, vllm_config: VllmConfig, device: torch.device, embedding_modules: dict[str, str], **_: object
    ) -> None:
        config = vllm_config.lora_config
        if config is None:
            raise ConfigError("a bank inside vLLM needs --enable-lora")
        self.device, self.dtype = device, config.lora_dtype
        self.most, self.kept = int(config.max_loras), int(config.max_cpu_loras or config.max_loras)
        self.rows = -(-int(vllm_config.scheduler_config.max_num_batched_tokens) // 8) * 8
        self.partial = vllm_config.parallel_config.pipeline_parallel_size > 1
        self.bank = SavedBank(self.settings.bank)
        self._slots = Slots(self.most)
        self._known: dict[int, tuple[str, Tensor | None]] = {}  # paths and cores, the least recently used first
        self._order: list[str] = []
        self._cores: Cores

    # ---- what the model runner calls --------------------------------------------------------------------------------

    def create_lora_manager(self, model: nn.Module, vllm_config: VllmConfig | None = None) -> nn.Module:
        """Put the bank on the model, whose weights are loaded; the same model is returned."""
        found = places(model, self.bank, self.partial)
        self._order = list(layer_order(found))
        self._index = {name: number for number, name in enumerate(self.bank.config.tasks)}
        self._shape = {name: tuple(one.cores.shape[1:]) for name, one in self.bank.layers.items()}
        rank = self.bank.config.r
        self._cores = Cores(self.most, len(self._order), rank, self.rows, self.dtype, self.device)
        attach(model, self.bank, found, self._cores)
        return model

    def set_active_adapters(self, requests: set[LoRARequest], mapping: LoRAMapping | None) -> None:
        """See that a step's adapters are in slots, and say which row has which.

        Raises:
            BankFileError, OSError: a core cannot be read; TaskIdError: there is none.
        """
        wanted = {request.lora_int_id: request for request in requests}
        for request in wanted.values():
            self.add_adapter(request)
        for adapter in self._slots.place(wanted):
            self._cores.fill(self._slots[adapter], self._known[adapter][1])
        if mapping is not None:
            slot_of = {0: 0} | {adapter: self._slots[adapter] for adapter in wanted}
            self._cores.set_rows(torch.tensor([slot_of.get(adapter, 0) for adapter in mapping.index_mapping]))

    def add_adapter(self, request: LoRARequest) -> bool:
        """Know an adapter; whether it was not known before. Its core is read, so that a fault is told now."""
        adapter = request.lora_int_id
        known = self._known.pop(adapter, None)
        if known is not None and known[0] == request.lora_path and not request.load_inplace:
            self._known[adapter] = known
            return False
        self._slots.remove(adapter)  # of another state of the task
        self._known[adapter] = request.lora_path, self._core(request)
        for other in list(self._known)[: max(0, len(self._known) - self.kept)]:
            if other not in self._slots:  # those of the running step are
                del self._known[other]
        return True

    def remove_adapter(self, adapter_id: int) -> bool:
        """Forget an adapter; whether it was known."""
        self._slots.remove(adapter_id)
        return self._known.pop(adapter_id, None) is not None

    def remove_all_adapters(self) -> None:
        """Forget all of them."""
        self._slots.clear()
        self._known.clear()

    def list_adapters(self) -> set[int]:
        """Those that are known."""
        return set(self._known)

    def pin_adapter(self, adapter_id: int) -> bool:
        """Not done: a core is read in less time than it would take to keep it."""
        return False

    def supports_tower_connector_lora(self) -> bool:
        """Whether towers for images are adapted: no."""
        return False

    # ---- the warm-up, which asks for as many adapters as there are slots ------------------------------------------------

    @contextmanager
    def dummy_lora_cache(self) -> Iterator[None]:
        """Nothing is kept for the warm-up."""
        yield

    def get_dummy_lora_warmup_rank(self, default_rank: int) -> int:
        """The rank of what `add_dummy_lora` adds, which has none."""
        return default_rank

    def add_dummy_lora(self, request: LoRARequest, rank: int) -> bool:
        """Know an adapter whose cores are zero."""
        self._known[request.lora_int_id] = request.lora_path, None
        return True

    # ---- cores ------------------------------------------------------------------------------------------------------

    def _core(self, request: LoRARequest) -> Tensor | None:
        """The cores of an adapter, (layers, r, r); None for one of the warm-up."""
        path = CorePath.parse(request.lora_path)
        if path is None:
            return None
        content = path.content()
        if content is not None:
            cores, _ = read_core(content, self._shape, self.bank.shared_sha256)
        elif path.task in self._index:
            cores = self.bank.core(self._index[path.task])
        else:
            raise TaskIdError(f"unknown task {path.task!r}; {self.bank.folder} has {len(self._index)} others")
        return torch.stack([cores[layer] for layer in self._order]).to(self.dtype)
