"""Makes stock PEFT know the bank: three table entries, `task_ids` let through, and a clear error for broken files.

Some things in PEFT 0.21 are closed to outside methods, and all are dealt with here and nowhere else:

- `PeftType` is an enum that cannot grow, so `register_peft_method` refuses us. The tables behind it take our name.
- The forward methods of PEFT's task models (`PeftModelForCausalLM` and its siblings) have a parameter `task_ids` that
  they pass on only to the method "Poly" and otherwise swallow, and `PeftModel.generate` would hand it to
  transformers, which refuses it. For models with a bank, and for these alone, the ids are taken around.
- `PeftModel.load_adapter` lets safetensors' error through, which names no file.
- `PeftModel` writes a card that knows nothing of tasks, and saves an adapter without what else its folder told of it;
  its `push_to_hub`, which is transformers', puts a card of its own in the place of what was saved.

`tests/adapter/test_registration.py` fails loudly when PEFT changes any of this.
"""

import functools
import inspect
import os
from collections.abc import Callable
from typing import Any

import peft
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING
from safetensors import SafetensorError

from colora.adapter.config import COLORA, CoLoRAConfig
from colora.adapter.hook import ROUTED_KEY, batch_of
from colora.adapter.libraries.averages import teach_averages
from colora.adapter.libraries.plain import teach_pipelines
from colora.adapter.model import CoLoRAModel
from colora.common.after_import import after_import
from colora.errors import BankFileError

__all__ = ["register"]


ToldFolder = Callable[[peft.PeftModel, str], None]
"""Writes into the folder of a bank what a model with a bank tells of itself."""


def register(write_card: ToldFolder, after_saving: ToldFolder) -> None:
    """Idempotent; done by `import colora`.

    Args:
        write_card: in place of PEFT's, for models with a bank.
        after_saving: called when PEFT has saved such a model, and before the files are uploaded.
    """
    name: Any = COLORA  # the tables are typed for the closed enum
    PEFT_TYPE_TO_CONFIG_MAPPING[name] = CoLoRAConfig
    PEFT_TYPE_TO_TUNER_MAPPING[name] = CoLoRAModel
    PEFT_TYPE_TO_PREFIX_MAPPING[name] = CoLoRAModel.prefix
    model_classes: set[Any] = {peft.PeftModel, *peft.MODEL_TYPE_TO_PEFT_MODEL_MAPPING.values()}
    for cls in model_classes:
        if "forward" in vars(cls):
            cls.forward = _routed_forward(cls.forward)
        if "generate" in vars(cls):
            cls.generate = _routed_generate(cls.generate)
    peft.PeftModel.load_adapter = _checked_load(peft.PeftModel.load_adapter)  # type: ignore[method-assign]
    methods: Any = peft.PeftModel
    methods.create_or_update_model_card = _bank_card(methods.create_or_update_model_card, write_card)
    methods.save_pretrained = _telling(methods.save_pretrained, after_saving, before=False)
    methods._upload_modified_files = _telling(methods._upload_modified_files, after_saving, before=True)
    after_import("transformers.pipelines.base", teach_pipelines)
    after_import("torch.optim.swa_utils", teach_averages)


def _routed_forward(forward: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(forward, "_colora_routed"):
        return forward
    takes_keywords = any(p.kind is p.VAR_KEYWORD for p in inspect.signature(forward).parameters.values())

    @functools.wraps(forward)
    def routed(self: peft.PeftModel, *args: object, **kwargs: object) -> Any:
        if takes_keywords and isinstance(self.base_model, CoLoRAModel) and kwargs.get("task_ids") is not None:
            kwargs[ROUTED_KEY] = kwargs.pop("task_ids")
        return forward(self, *args, **kwargs)

    routed._colora_routed = True  # type: ignore[attr-defined]
    return routed


def _routed_generate(generate: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(generate, "_colora_routed"):
        return generate

    @functools.wraps(generate)
    def routed(self: peft.PeftModel, *args: object, **kwargs: Any) -> Any:
        if isinstance(self.base_model, CoLoRAModel):
            with self.base_model.tasks_of(kwargs.pop("task_ids", None), batch_of(args, kwargs)):
                return generate(self, *args, **kwargs)
        return generate(self, *args, **kwargs)

    routed._colora_routed = True  # type: ignore[attr-defined]
    return routed


def _checked_load(load: Callable[..., Any]) -> Callable[..., Any]:
    if hasattr(load, "_colora_checked"):
        return load

    @functools.wraps(load)
    def checked(
        self: peft.PeftModel, model_id: str | os.PathLike[str], adapter_name: str, *args: object, **kwargs: object
    ) -> Any:
        try:
            loaded = load(self, model_id, adapter_name, *args, **kwargs)
            if isinstance(config := self.peft_config[adapter_name], CoLoRAConfig) and os.path.isdir(model_id):
                config.loaded_from = os.path.abspath(model_id)
            return loaded
        except SafetensorError as error:
            if not isinstance(self.peft_config.get(adapter_name), CoLoRAConfig):
                raise
            raise BankFileError(
                f"the tensors of the bank in {model_id} cannot be read: {error}. The file is cut short or is no "
                "safetensors file; copy or save the bank again"
            ) from error

    checked._colora_checked = True  # type: ignore[attr-defined]
    return checked


def _bank_card(create: Callable[..., None], write_card: ToldFolder) -> Callable[..., None]:
    if hasattr(create, "_colora_card"):
        return create

    @functools.wraps(create)
    def card(self: peft.PeftModel, output_dir: str) -> None:
        if isinstance(self.base_model, CoLoRAModel):
            write_card(self, output_dir)
        else:
            create(self, output_dir)

    card._colora_card = True  # type: ignore[attr-defined]
    return card


def _telling(method: Callable[..., Any], tell: ToldFolder, before: bool) -> Callable[..., Any]:
    """A method whose first argument is the folder of an adapter, with `tell` called before or after it for a bank."""
    if hasattr(method, "_colora_telling"):
        return method

    @functools.wraps(method)
    def telling(self: peft.PeftModel, folder: str, *args: object, **kwargs: object) -> Any:
        tells = isinstance(self.base_model, CoLoRAModel) and kwargs.get("is_main_process", True)
        if tells and before:
            tell(self, folder)
        result = method(self, folder, *args, **kwargs)
        if tells and not before:
            tell(self, folder)
        return result

    telling._colora_telling = True  # type: ignore[attr-defined]
    return telling
