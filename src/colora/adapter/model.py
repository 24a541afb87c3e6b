"""`CoLoRAModel`: the PEFT tuner that turns linear layers of a base model into layers of a task bank.

One PEFT adapter holds one bank of tasks. Through PEFT's attribute forwarding everything here is also a method of the
`PeftModel`:

    model = get_peft_model(base, CoLoRAConfig(r=8, tasks=["billing", "legal"]))
    model(**batch, task_ids=["legal", "billing"])
    model.set_task("legal"); model.generate(**prompt)
    model.add_tasks(["sales"]); model.core("sales")
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

from accelerate import init_empty_weights
from peft import PeftConfig
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer
from peft.utils.quantization_utils import get_quantization_kwargs, resolve_quantization_backend
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from colora.adapter import tasklist
from colora.adapter.digest import check_tensors, tensors_sha256
from colora.adapter.hook import batch_of
from colora.adapter.identity import check_base, identify_base
from colora.adapter.layer import CoLoRALinear
from colora.adapter.libraries.plain import teach_class
from colora.adapter.libraries.reference import stand_in
from colora.adapter.lookup import (
    add_hook,
    bank_layers,
    bank_router,
    base_weights,
    check_on_model,
    check_unwrapped,
    model_type,
    remove_hook,
    with_tasks,
    wrapped_router,
)
from colora.adapter.mixtures.experts import CoLoRAExperts, ExpertLinear
from colora.adapter.mixtures.fused import matching_parameters, warn_unadapted
from colora.adapter.router import Router
from colora.adapter.routing import TaskIds
from colora.adapter.row_layout import row_layout
from colora.adapter.targets.choose import choose_targets, retell
from colora.adapter.targets.rule import is_target
from colora.adapter.targets.tied import check_untying, own_weights, tied_parts, untie
from colora.adapter.targets.towers import is_inside, parts_of_other_rows
from colora.errors import ConfigError, TaskIdError

__all__ = ["CoLoRAModel", "bank_layers", "bank_router", "bank_tuner"]


class CoLoRAModel(BaseTuner):
    """The tuner behind a `PeftModel` with a `CoLoRAConfig`. Shapes and parameters: see `CoLoRALinear`."""

    prefix = "colora_"
    tuner_layer_cls = CoLoRALinear
    target_module_mapping: dict[str, list[str]] = {}  # noqa: RUF012  (PEFT's name; the default target is all-linear)

    # ---- creation -------------------------------------------------------------------------------------------------

    def __init__(self, model: nn.Module, peft_config: object, adapter_name: str, *args: object, **kwargs: object):
        check_unwrapped(model, adapter_name)  # before PEFT writes our config into that of a model that is wrapped
        super().__init__(model, peft_config, adapter_name, *args, **kwargs)  # type: ignore[arg-type]

    def inject_adapter(
        self,
        model: nn.Module,
        adapter_name: str,
        autocast_adapter_dtype: bool = True,
        low_cpu_mem_usage: bool = False,
        state_dict: dict[str, Tensor] | None = None,
    ) -> None:
        config = self.peft_config[adapter_name]
        self.left_out = choose_targets(config, model)
        router = add_hook(model)
        teach_class(model)
        router.forget(adapter_name)
        router.register(adapter_name, config.tasks)
        try:
            super().inject_adapter(model, adapter_name, autocast_adapter_dtype, low_cpu_mem_usage, state_dict)
        except Exception as error:
            self._withdraw(model, adapter_name)
            retell(error, model)
            raise
        if config.base_identity is None:
            warn_unadapted(model, config.target_parameters)
            identify_base(config, model, base_weights(model, adapter_name))
        stand_in(self.peft_config, adapter_name, router, bank_layers(model, adapter_name))

    def _withdraw(self, model: nn.Module, adapter_name: str) -> None:
        """Undo an injection that failed half-way: left wrapped, the base would be trained whole by the next try."""
        self.router.tasks.pop(adapter_name, None)
        for name, layer in list(model.named_modules()):
            if isinstance(layer, CoLoRALinear) and adapter_name in layer.colora_core:
                if len(layer.colora_core) > 1:
                    layer.delete_adapter(adapter_name)
                elif not isinstance(layer, ExpertLinear):
                    model.set_submodule(name, layer.base_layer)
            elif isinstance(layer, CoLoRAExperts) and not layer.has_another(adapter_name):
                model.set_submodule(name, layer.base_layer)
        if not self.router.tasks:
            remove_hook(model)

    @staticmethod
    def _check_target_module_exists(peft_config: PeftConfig, key: str) -> Any:
        return is_target(peft_config, key)

    def _prepare_model(self, peft_config: PeftConfig, model: nn.Module) -> None:
        self._towers = parts_of_other_rows(model)  # of a layer there that was named, mixed batches are refused
        # Before anything is changed: is this the base model that the bank was trained on?
        if peft_config.base_identity is not None:
            check_base(peft_config.base_identity, model, model.__dict__.get("name_or_path"))

    def _create_and_replace(
        self,
        peft_config: PeftConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        if isinstance(target, CoLoRALinear):
            target.add_adapter(adapter_name, peft_config)
            return
        base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
        quantization = get_quantization_kwargs(self.model)
        backend = resolve_quantization_backend(base, **quantization)
        if not isinstance(base, nn.Linear | Conv1D) and getattr(backend, "layer_type", None) != "linear":
            raise ConfigError(
                f"target module {current_key!r} is a {type(base).__name__}: expected a linear layer "
                "(torch.nn.Linear, transformers' Conv1D, or a quantised linear that PEFT knows)"
            )
        router = bank_router(self.model)
        assert router is not None  # made by inject_adapter
        layer = CoLoRALinear(
            target,
            adapter_name,
            peft_config,
            router,
            transposed=isinstance(base, Conv1D),
            layer_name=current_key,
            layout=row_layout(model_type(self.model), current_key, is_inside(current_key, self._towers)),
            **quantization,
        )
        if adapter_name not in self.active_adapters:
            layer.requires_grad_(False)
        self._replace_module(parent, target_name, layer, target)

    def _inject_parameters(
        self, peft_config: PeftConfig, model: nn.Module, adapter_name: str, low_cpu_mem_usage: bool
    ) -> list[str]:
        # PEFT's own nests one wrapper in another for each parameter, which knows no tasks.
        router = bank_router(self.model)
        assert router is not None  # made by inject_adapter
        targets = matching_parameters(model, peft_config.target_parameters)
        with init_empty_weights() if low_cpu_mem_usage else nullcontext():
            for module_name, parameter in targets:
                experts = model.get_submodule(module_name)
                if not isinstance(experts, CoLoRAExperts):
                    experts = CoLoRAExperts(experts, module_name, router)
                    model.set_submodule(module_name, experts)
                for layer in experts.adapt(parameter, adapter_name, peft_config):
                    if adapter_name not in self.active_adapters:
                        layer.requires_grad_(False)
        return [f"{module_name}.{parameter}" for module_name, parameter in targets]

    def _replace_module(self, parent: nn.Module, child_name: str, new_module: nn.Module, child: nn.Module) -> None:
        if isinstance(child, CoLoRALinear) or hasattr(child, "unload_and_optionally_merge_module"):
            setattr(parent, child_name, new_module)  # unwrapped; PEFT asks for a weight, which HQQ and heads have not
        else:
            super()._replace_module(parent, child_name, new_module, child)

    # ---- routing --------------------------------------------------------------------------------------------------

    def forward(self, *args: object, task_ids: TaskIds | None = None, **kwargs: object) -> Any:
        """The base model's forward; `task_ids` are integers (batch,) or (batch, seq), or names, one per row."""
        if task_ids is not None:
            kwargs["task_ids"] = task_ids
        return self.model(*args, **kwargs)  # the base model's RoutingHook takes the ids

    def generate(self, *args: object, task_ids: TaskIds | None = None, **kwargs: object) -> Any:
        """The base model's generate with one task per prompt; beams and several return sequences follow their row."""
        with self.tasks_of(task_ids, batch_of(args, kwargs)):
            return self.model.generate(*args, **kwargs)

    @contextmanager
    def tasks_of(self, task_ids: TaskIds | None, batch: Tensor | None = None) -> Iterator[None]:
        """Use these tasks for every forward pass inside the `with` block; for code that calls the base model itself.

        Inside, a row may stand for several (beams). With `batch`, there must be one id for each of its rows.
        """
        with with_tasks(self.model, task_ids, batch):
            yield

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: object, **kwargs: object) -> Iterator[None]:
        # PEFT calls this around forward and generate; without it `adapter_names` would be ignored in silence.
        if kwargs.get("adapter_names") is not None:
            raise TaskIdError("a bank takes task_ids=[...] (names or integers) instead of adapter_names")
        yield

    @property
    def router(self) -> Router:
        router = bank_router(self.model)
        if router is None:
            raise ConfigError("this model has no bank any more: it was merged or unloaded; load the model again")
        return router

    # ---- tasks ----------------------------------------------------------------------------------------------------

    @property
    def tasks(self) -> Sequence[str]:
        """Names of the tasks of the active bank, in the order of their ids; a list, unless they are very many."""
        return self.router.listing(self._adapter_name())

    def set_task(self, name: str | None) -> None:
        """Use one task wherever no `task_ids` are given; None takes the choice back. Raises TaskIdError if unknown."""
        self.router.choose(self._adapter_name(), name)

    def add_tasks(self, names: Sequence[str], init: str = "identity", rank: int | None = None) -> None:
        """Add tasks to the active bank, in place: `TaskAdamW` keeps its state for all others.

        Args:
            names: new names.
            init: their cores: "identity", "rotated" as in a new bank (`init_rotation`), "mean" of the others, or the
                name of a task to copy.
            rank: of their cores; by default the bank's, `core_rank` or r. Any other needs `store_cores`.

        Raises:
            ConfigError: if a name is taken, stands twice, or cannot be a name; or a rank that cannot be.
            TaskIdError: if `init` is no task of the bank.
        """
        adapter_name = self._adapter_name()
        tasklist.add(self._layers(), self.peft_config[adapter_name], self.router, adapter_name, names, init, rank)

    def remove_task(self, name: str) -> None:
        """Remove a task; later tasks move up by one id. Raises TaskIdError if unknown, ConfigError if the last."""
        adapter_name = self._adapter_name()
        tasklist.remove(self._layers(), self.peft_config[adapter_name], self.router, adapter_name, name)

    def core(self, name: str) -> dict[str, Tensor]:
        """A copy of a task's cores: for each adapted layer, by its name in the base model, (r, r) with its own r."""
        return tasklist.read(self._layers(), self.router, self._adapter_name(), name)

    def set_core(self, name: str, core: Mapping[str, Tensor]) -> None:
        """Write a task's cores, as `core` gives them. Raises ConfigError naming what is missing or misshapen."""
        tasklist.write(self._layers(), self.router, self._adapter_name(), name, core)

    def merge_and_unload(
        self,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
        task: str | None = None,
    ) -> nn.Module:
        """The base model with one task's update added to its weights; see `BaseTuner.merge_and_unload`.

        Raises:
            TaskIdError: if there are several tasks and none was chosen, before any weight is changed.
            ConfigError: if a weight is merged into that another module holds, and they cannot be untied.
        """
        router = self.router
        for adapter_name in self.active_adapters if adapter_names is None else adapter_names:
            if task is not None:
                router.index(task, adapter_name)
                router.selected[adapter_name] = task
            next(iter(bank_layers(self.model, adapter_name).values()))._task_to_merge(adapter_name)
        check_untying(self.model)
        return super().merge_and_unload(progressbar, safe_merge, adapter_names)

    def _unload_and_optionally_merge(
        self,
        merge: bool = True,
        progressbar: bool = False,
        safe_merge: bool = False,
        adapter_names: list[str] | None = None,
    ) -> Any:  # PEFT says None, but returns the model
        tied = merge and tied_parts(self.model)
        model: Any = super()._unload_and_optionally_merge(merge, progressbar, safe_merge, adapter_names)
        remove_hook(model)
        if tied:
            untie(model)
        return model

    def _check_merge_allowed(self) -> None:
        own_weights(self.model)

    def _check_tied_modules(self, model: nn.Module, peft_config: PeftConfig) -> None:
        """PEFT would warn of what `colora.adapter.targets.tied` takes care of."""

    def _adapter_name(self) -> str:
        active = self.active_adapters
        if len(active) != 1:
            raise ConfigError(f"expected one active bank, found {len(active)} ({', '.join(active) or 'none'})")
        return active[0]

    def _layers(self) -> dict[str, CoLoRALinear]:
        return bank_layers(self.model, self._adapter_name())

    # ---- saved form -----------------------------------------------------------------------------------------------

    @classmethod
    def _get_adapter_state_dict(
        cls,
        model: nn.Module,
        config: PeftConfig,
        adapter_name: str,
        state_dict: dict[str, Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, Tensor]:
        # PEFT writes the config after the tensors, so what is recorded here is saved with them. The tasks again, for
        # one config object may serve two models.
        if (router := wrapped_router(model)) is not None:
            config.tasks = list(router.tasks[adapter_name])
        selected = super()._get_adapter_state_dict(model, config, adapter_name, state_dict, unwanted_adapter_names)
        if router is not None and adapter_name in router.stored:
            selected |= router.stored[adapter_name].whole_state(selected, f"{cls.prefix}core.{adapter_name}")
        config.weights_sha256 = tensors_sha256(
            {cls._remove_adapter_name_from_key(key, adapter_name): value for key, value in selected.items()}
        )
        return selected

    @classmethod
    def _remap_adapter_state_dict_for_load(
        cls, model: nn.Module, config: PeftConfig, adapter_name: str, state_dict: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        check_on_model(model, adapter_name)
        # PEFT only warns of missing tensors; half a bank is worse than none.
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        ends = f".{adapter_name}"
        expected = {key: one for key, one in model.named_parameters() if cls.prefix in key and key.endswith(ends)}
        own = {key: value for key, value in state_dict.items() if f".{cls.prefix}" in key}
        # Only what the config was read with: a live bank may later be given the tensors of another of its checkpoints.
        expected_sha256, config.unchecked_sha256 = config.unchecked_sha256, None
        check_tensors(expected, remapped, own, expected_sha256)
        return remapped


def bank_tuner(model: object) -> CoLoRAModel:
    """The tuner inside a `PeftModel` with a bank. Raises ConfigError if it has none (any more)."""
    tuner = getattr(model, "base_model", None)
    if not isinstance(tuner, CoLoRAModel) or bank_router(tuner.model) is None:
        raise ConfigError(f"expected a model with a bank, found a {type(model).__name__} without one")
    return tuner
