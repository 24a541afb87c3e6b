"""What holds the adapters in a worker of vLLM: cores, in place of LoRAs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.lora.layers import LoRAMapping
from vllm.lora.request import LoRARequest

from colora.adapter.core_size import resized_core
from colora.bank.core_file import read_core
from colora.bank.tensors import SavedBank
from colora.errors import BankFileError, ColoraError, ConfigError, TaskIdError
from colora.vllm.adapter_path import CorePath
from colora.vllm.checkpoint import check_checkpoint
from colora.vllm.layers import Place, attach, layer_order, places, replace_factors
from colora.vllm.slots import Slots
from colora.vllm.update import Cores

if TYPE_CHECKING:
    from colora.vllm.settings import PluginSettings

__all__ = ["BankExtension", "BankWorkerManager"]

logger = logging.getLogger(__name__)
MOST_PATHS = 2**17


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
        check_checkpoint(self.bank, vllm_config.model_config.model, vllm_config.model_config.revision)
        self._slots = Slots(self.most)
        self._known: dict[int, tuple[str, Tensor | None]] = {}  # paths and cores, the least recently used first
        self._paths: dict[int, str] = {}  # of those too that have left memory, the oldest first
        self._order: list[str] = []
        self._lost: set[int] = set()  # adapters whose cores cannot be read
        self._ending: list[int] = []  # rows of the step's logits that are theirs
        ends = vllm_config.model_config.hf_text_config.eos_token_id
        self._ends = [ends or 0] if not isinstance(ends, list) else ends
        self._cores: Cores
        self._model: nn.Module
        self._places: dict[str, list[Place]]

    # ---- what the model runner calls --------------------------------------------------------------------------------

    def create_lora_manager(self, model: nn.Module, vllm_config: VllmConfig | None = None) -> nn.Module:
        """Put the bank on the model, whose weights are loaded; the same model is returned."""
        self._model, self._places = model, places(model, self.bank, self.partial)
        self._order = list(layer_order(self._places))
        rank = self.bank.config.r
        self._cores = Cores(self.most, len(self._order), rank, self.rows, self.dtype, self.device)
        attach(model, self.bank, self._places, self._cores)
        compute: Any = model.compute_logits
        model.compute_logits = lambda *args, **kwargs: self._ended(compute(*args, **kwargs))  # type: ignore[assignment]
        return model

    def _ended(self, logits: Tensor | None) -> Tensor | None:
        """The logits, (rows, vocabulary), with an end as the only choice where a core is lost."""
        rows, self._ending = self._ending, []  # once a step: vLLM then asks for those of prompts
        if logits is not None and rows:
            logits[rows] = -torch.inf
            for token in self._ends:
                logits[rows, token] = 0
        return logits

    def reload(self) -> None:
        """Read the bank's folder anew, while nothing runs.

        Raises:
            BankFileError: it cannot be read; ConfigError: it is on other layers, or of another rank.
        """
        bank = SavedBank(self.settings.bank)
        shapes = [{name: tuple(one.cores.shape[1:]) for name, one in each.layers.items()} for each in (self.bank, bank)]
        if shapes[0] != shapes[1]:
            raise ConfigError(
                f"{bank.folder}: expected a bank of the same rank on the same layers: restart the server to "
                "serve this bank"
            )
        replace_factors(self._model, bank, self._places)
        self.bank = bank
        self.remove_all_adapters()

    def set_active_adapters(self, requests: set[LoRARequest], mapping: LoRAMapping | None) -> None:
        """See that a step's adapters are in slots, and say which row has which.

        Of two versions of a task that are in one step, `requests` has one alone, for vLLM tells them apart by name. The
        other is known from when the server added it.

        A core that was there when its request came, and cannot be read any more, has zeros, and its rows end at once
        (`_ended`). To raise here would end the whole server; and numbers that are none would stay among the keys and
        values of the step, where later requests of others read them.
        """
        paths: dict[int, set[str]] = {}
        for request in requests:
            paths.setdefault(request.lora_int_id, set()).add(request.lora_path)
        rows = () if mapping is None else mapping.index_mapping
        wanted = {*paths, *rows} - {0}
        for adapter in wanted:
            found = paths.get(adapter) or {self._paths.get(adapter, "")}
            try:
                self._know(adapter, *found)
                self._lost.discard(adapter)
            except (ColoraError, OSError, TypeError) as error:  # TypeError: two adapters of one number
                logger.error("the core of adapter %d, %s, cannot be had: %s", adapter, sorted(found), error)
                self._known[adapter] = "", None
                self._slots.remove(adapter)
                self._lost.add(adapter)
        for adapter in self._slots.place(wanted):
            self._cores.fill(self._slots[adapter], self._known[adapter][1])
        if mapping is not None:
            slot_of = {0: 0} | {adapter: self._slots[adapter] for adapter in wanted}
            self._cores.set_rows(torch.tensor([slot_of[adapter] for adapter in rows], dtype=torch.int64))
            self._ending = [row for row, adapter in enumerate(mapping.prompt_mapping) if adapter in self._lost]

    def add_adapter(self, request: LoRARequest) -> bool:
        """Know an adapter; whether it was not known before. Its core is read, so that a fault is told now."""
        return self._know(request.lora_int_id, request.lora_path, anew=request.load_inplace)

    def _know(self, adapter: int, path: str, *, anew: bool = False) -> bool:
        known = self._known.pop(adapter, None)
        if known is not None and known[0] == path and not anew:
            self._known[adapter] = known
            return False
        self._slots.remove(adapter)  # of another state of the task
        self._known[adapter] = path, self._core(path)
        self._paths.pop(adapter, None)
        self._paths[adapter] = path
        while len(self._paths) > MOST_PATHS:
            del self._paths[next(iter(self._paths))]
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
        self._paths.clear()
        self._lost.clear()

    def list_adapters(self) -> set[int]:
        """Those that are known."""
        return set(self._known)

    def pin_adapter(self, adapter_id: int) -> bool:
        """Not done: a core is read in less time than it would take to keep it."""
        return False

    def supports_tower_connector_lora(self) -> bool:
        """Whether towers for images are adapted: no."""
        return False

    # ---- the warm-up, which asks for as many adapters as there are slots ---------------------------------------------

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
        self._paths[request.lora_int_id] = request.lora_path
        return True

    # ---- cores ------------------------------------------------------------------------------------------------------

    def _core(self, lora_path: str) -> Tensor:
        """The cores of an adapter, (layers, r, r).

        Raises:
            TaskIdError, BankFileError, OSError: there is no such task, or it cannot be read.
            ConfigError: the path is not one of the plugin's.
        """
        path = CorePath.parse(lora_path)
        if path is None:
            raise ConfigError(
                f"{lora_path[:200]}: a plain LoRA cannot be loaded beside a bank; `colora import` makes a bank of LoRAs"
            )
        content = path.content()
        if content is not None:
            shape = {name: tuple(one.cores.shape[1:]) for name, one in self.bank.layers.items()}
            cores, _ = read_core(content, shape, self.bank.shared_sha256, self.bank.config.rank_of_new)
        elif path.task in self.bank.index:
            cores = self.bank.core(self.bank.index[path.task])
        else:
            raise TaskIdError(f"unknown task {path.task!r}; {self.bank.folder} has {len(self.bank.index)} others")
        rank = self.bank.config.r  # of the slots; a smaller core is in the leading corner
        stacked = torch.stack([resized_core(cores[layer], rank) for layer in self._order]).to(self.dtype)
        if not bool(torch.isfinite(stacked).all()):
            raise BankFileError(f"the core of {path.task!r} has numbers that {self.dtype} does not hold")
        return stacked


class BankExtension:
    """What a worker of vLLM can be asked besides (`--worker-extension-cls`)."""

    def colora_reload(self) -> None:
        """Read the bank's folder anew; see `BankWorkerManager.reload`."""
        manager: BankWorkerManager = self.model_runner.lora_manager  # type: ignore[attr-defined]
        manager.reload()
