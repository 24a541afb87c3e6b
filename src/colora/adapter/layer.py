"""`CoLoRALinear`: a linear layer with shared factors A, B and one r × r core per task.

Examples:
    >>> import torch
    >>> router = Router(); router.register("default", ["billing", "legal"])
    >>> config = CoLoRAConfig(r=2, tasks=["billing", "legal"])
    >>> layer = CoLoRALinear(torch.nn.Linear(4, 3), "default", config, router)
    >>> router.current = Routing({"default": torch.tensor([1, 0])})
    >>> layer(torch.zeros(2, 5, 4)).shape
    torch.Size([2, 5, 3])
"""

import math
import warnings

import torch
import torch.nn.functional as F
from jaxtyping import Float
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features, check_adapters_to_merge
from peft.utils.quantization_utils import resolve_quantization_backend
from torch import Tensor, nn

from colora.adapter.config import CoLoRAConfig
from colora.adapter.core_start import rotated_cores
from colora.adapter.libraries.offload import AdapterTensors, check_not_offloaded
from colora.adapter.router import Router, listed_tasks
from colora.adapter.routing import Routing
from colora.adapter.row_layout import RowLayout
from colora.algebra import compose
from colora.errors import ConfigError, TaskIdError

__all__ = ["CoLoRALinear", "Routing"]


class CoLoRALinear(nn.Module, BaseTunerLayer):
    """y = W0 x + s · B Λ_k A x for each row's task k.

    Parameters, one entry per adapter name: `colora_A` (r, d_in), `colora_B` (d_out, r) and `colora_core`
    (K, r, r). The base layer may be `nn.Linear`, transformers' `Conv1D` (weight transposed) or a quantised linear.

    Raises:
        ConfigError: if the rank is larger than the layer.
    """

    # PEFT finds, freezes, saves and deletes exactly these.
    adapter_layer_names = ("colora_A", "colora_B", "colora_core")
    other_param_names = ("colora_dropout", "scaling")

    def __init__(
        self,
        base_layer: nn.Module,
        adapter_name: str,
        config: CoLoRAConfig,
        router: Router,
        *,
        transposed: bool = False,
        layer_name: str = "",
        layout: RowLayout = RowLayout.BATCH_FIRST,
        **quantization: object,
    ) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = self._features(base_layer)
        self.router = router
        self.layer_name = layer_name
        self.transposed = transposed
        self.layout = layout
        self.quantization_backend = resolve_quantization_backend(self.get_base_layer(), **quantization)
        self.merged_adapters: list[str] = []
        self._merged_task: dict[str, int] = {}
        self.shared_weight: list[nn.Parameter] = []  # what it shares with other modules, while it is merged
        self._disable_adapters = False
        self._active_adapter = adapter_name
        self.colora_A = AdapterTensors()
        self.colora_B = AdapterTensors()
        self.colora_core = AdapterTensors()
        self.colora_dropout = nn.ModuleDict()
        self.scaling: dict[str, float] = {}
        self.add_adapter(adapter_name, config)

    @staticmethod
    def _features(base_layer: nn.Module) -> tuple[int, int]:
        """d_in and d_out, of any layer that PEFT knows."""
        inputs, outputs = _get_in_out_features(base_layer)
        return int(inputs or 0), int(outputs or 0)

    def add_adapter(self, adapter_name: str, config: CoLoRAConfig) -> None:
        """Create A, B and the cores of one adapter, on the device of the base layer."""
        r, limit = config.r, min(self.in_features, self.out_features)
        if r > limit:
            raise ConfigError(
                f"r={r} is larger than layer {self.layer_name!r} ({self.out_features} × {self.in_features}): "
                f"expected at most {limit}; choose a smaller r or leave this layer out with exclude_modules"
            )
        if config.base_identity is None:  # new, so no loader will fill it
            check_not_offloaded(self.get_base_layer(), self.layer_name)
        self.scaling[adapter_name] = config.scaling
        self.colora_dropout[adapter_name] = nn.Dropout(config.lora_dropout) if config.lora_dropout else nn.Identity()
        self.colora_A[adapter_name] = nn.Parameter(torch.empty(r, self.in_features))
        self.colora_B[adapter_name] = nn.Parameter(torch.empty(self.out_features, r))
        self.colora_core[adapter_name] = nn.Parameter(torch.empty(len(config.tasks), r, r))
        self._initialise(adapter_name, config.init_weights, config.init_rotation)
        self._move_adapter_to_device_of_base_layer(adapter_name)
        self.set_adapter(self.active_adapters, inference_mode=config.inference_mode)

    @torch.no_grad()
    def _initialise(self, adapter_name: str, init: bool | str, rotation: float) -> None:
        A, B, core = self.colora_A[adapter_name], self.colora_B[adapter_name], self.colora_core[adapter_name]
        if A.is_meta:
            return  # filled by the loader
        if init == "gaussian":
            nn.init.normal_(A, std=1 / A.shape[0])
        elif init == "orthogonal":
            nn.init.orthogonal_(A)
        else:
            nn.init.kaiming_uniform_(A, a=math.sqrt(5))
        core.copy_(rotated_cores(core.shape[0], core.shape[1], rotation))
        if init is False:
            nn.init.normal_(B, std=0.1)
            core.add_(torch.randn_like(core), alpha=0.5)
        else:
            nn.init.zeros_(B)

    def forward(self, x: Float[Tensor, "*rows d_in"], *args: object, **kwargs: object) -> Float[Tensor, "*rows d_out"]:
        if self.disable_adapters:
            if self.merged:
                self.unmerge()
            return self.base_layer(x, *args, **kwargs)
        result = self.base_layer(x, *args, **kwargs)
        if self.merged:
            self.check_merged()
            return result
        dtype = result.dtype
        if self.quantization_backend is not None:
            result = self.quantization_backend.maybe_clone_base_result(result)
        for adapter_name in self.active_adapters:
            if adapter_name in self.colora_core:
                rows = self.router.rows(adapter_name, x, self.layer_name, self.layout)
                result = self._add_update(adapter_name, x, result, rows)
        return result.to(dtype)

    def check_merged(self) -> None:
        """The merged weights are those of one task: ids of another must not be ignored in silence."""
        current = self.router.current
        if current is None or torch.compiler.is_compiling():
            return
        for adapter_name, task in self._merged_task.items():
            ids = current.ids.get(adapter_name, task)
            if bool((ids != task).any() if isinstance(ids, Tensor) else ids != task):
                raise TaskIdError(
                    f"task {self.router.tasks[adapter_name].name(task)!r} is merged into the base weights: call "
                    "unmerge_adapter() before using other tasks"
                )

    def _add_update(
        self,
        adapter_name: str,
        x: Float[Tensor, "*rows d_in"],
        result: Float[Tensor, "*rows d_out"],
        rows: Tensor | int,
    ) -> Float[Tensor, "*rows d_out"]:
        """`result` + s · B Λ_k A x, both of shape (*x.shape[:-1], d_out); `rows` as `Routing.rows` gives them."""
        B = self.colora_B[adapter_name]
        mixed = self._mixed(adapter_name, x, rows)
        if not result.dtype == mixed.dtype == B.dtype:
            added = F.linear(mixed, B)
            # In place it is rounded as it is added, and no sum in the larger type is written first.
            return result + added if torch.is_grad_enabled() else result.add_(added)
        # One product that adds up in place of a product and a sum: the sum alone would cost as much as all the rest.
        flat, hidden = result.flatten(0, -2), mixed.flatten(0, -2)
        flat = torch.addmm(flat, hidden, B.t()) if torch.is_grad_enabled() else flat.addmm_(hidden, B.t())
        return flat.view(result.shape)

    def _mixed(self, adapter_name: str, x: Float[Tensor, "*rows d_in"], rows: Tensor | int) -> Float[Tensor, "*rows r"]:
        """s · Λ_k A x, of shape (*x.shape[:-1], r)."""
        A, cores = self.colora_A[adapter_name], self.colora_core[adapter_name]
        hidden = F.linear(self.colora_dropout[adapter_name](self._cast_input_dtype(x, A.dtype)), A)
        if isinstance(rows, int):
            return F.linear(hidden, cores[rows] * self.scaling[adapter_name])
        # An embedding look-up rather than indexing: it refuses negative ids, and compiles for any mix of tasks.
        r = A.shape[0]
        own = F.embedding(rows.to(cores.device), cores.flatten(1)).unflatten(-1, (r, r)) * self.scaling[adapter_name]
        if rows.ndim == 1:
            return torch.bmm(hidden.reshape(rows.shape[0], -1, r), own.to(hidden.dtype).mT).view_as(hidden)
        return torch.einsum("bti,btji->btj", hidden, own.to(hidden.dtype))

    def get_delta_weight(self, adapter: str, task: int | None = None) -> Float[Tensor, "rows columns"]:
        """s · B Λ_k A in the layout of the base weight, computed in float32 at least, for the chosen or only task.

        Raises:
            TaskIdError: if there are several tasks and none was chosen.
        """
        place = self.router.place(adapter, self._task_to_merge(adapter) if task is None else task)
        A, B, core = self.colora_A[adapter], self.colora_B[adapter], self.colora_core[adapter][place]
        work = torch.promote_types(core.dtype, torch.float32)
        delta = compose(A.to(work), B.to(work), core.to(work), self.scaling[adapter]).to(core.dtype)
        return delta.T if self.transposed else delta

    def _task_to_merge(self, adapter_name: str) -> int:
        task = self.router.default(adapter_name)
        if task is None:
            raise TaskIdError(
                f"merge which task? This bank has {listed_tasks(self.router.tasks[adapter_name])}: choose one with "
                "set_task(name) or merge_and_unload(task=name)"
            )
        return task

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add the chosen task's update to the base weight. Re-quantising a quantised weight costs accuracy: warns."""
        for adapter_name in check_adapters_to_merge(self, adapter_names):
            if adapter_name not in self.colora_core:
                continue
            task = self._task_to_merge(adapter_name)
            delta = self.get_delta_weight(adapter_name, task)
            if self.quantization_backend is not None:
                warnings.warn(
                    f"merging into the quantised layer {self.layer_name!r} re-quantises its weight, which costs "
                    "accuracy; export a LoRA and keep it beside the quantised base instead",
                    stacklevel=2,
                )
            weight = self.get_base_weight()
            merged = weight.clone() if safe_merge else weight
            merged += delta.to(merged)
            if safe_merge and not torch.isfinite(merged).all():
                raise ValueError(f"merging bank {adapter_name!r} into layer {self.layer_name!r} gives NaN or infinity")
            self.set_base_weight(merged)
            self.merged_adapters.append(adapter_name)
            self._merged_task[adapter_name] = task

    @torch.no_grad()
    def unmerge(self) -> None:
        """Take the merged update off again (the task that was merged, even if another was chosen since)."""
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
        while self.merged_adapters:
            adapter_name = self.merged_adapters.pop()
            weight = self.get_base_weight()
            weight -= self.get_delta_weight(adapter_name, self._merged_task.pop(adapter_name)).to(weight)
            self.set_base_weight(weight)
        if self.shared_weight:
            self.get_base_layer().weight = self.shared_weight.pop()

    def supports_lora_conversion(self, adapter_name: str = "default") -> bool:
        """PEFT's own numerical LoRA conversion applies; `colora.bank.export` does it exactly."""
        return True

    def __repr__(self) -> str:
        return "colora." + super().__repr__()
