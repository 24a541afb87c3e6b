"""The model card of an exported task: of which bank and task it is, its rank, how stock PEFT loads it, its prompt."""

from dataclasses import dataclass
from pathlib import Path
from string import Template

from huggingface_hub import ModelCard
from peft import PeftModel
from yaml import YAMLError

from colora.adapter.config import CoLoRAConfig
from colora.adapter.model import bank_layers, bank_tuner
from colora.bank.card import card_data
from colora.bank.card_text import CITATION, auto_class_name, base_id
from colora.bank.how_to_prompt import HowToPrompt
from colora.bank.hub import cached_id
from colora.bank.tensors import shared_sha256, tensor_key
from colora.models.base import hub_name

__all__ = ["Origin", "export_card", "exported_task", "origin_of"]

TASK_FIELD = "colora_task"

LORA = Template("""\
Task `$task` of $bank, as a plain LoRA of rank $rank that needs no CoLoRA: `lora_A` is the bank's A, and `lora_B` its
B Λ of this task. A and B of the bank have the digest `$digest`.""")
MERGED = Template("""\
Task `$task` of $bank, of rank $rank, added to the weights of the base, so that it needs neither CoLoRA nor PEFT. A and
B of the bank have the digest `$digest`.""")
LOADING = Template("""\
## How to load it

```python
from peft import PeftModel
from transformers import $auto_class

base = $auto_class.from_pretrained("$location")
model = PeftModel.from_pretrained(base, "PATH/OF/THIS/FOLDER")  # or its id on the hub
```
""")


@dataclass(frozen=True)
class Origin:
    """The bank that tasks are exported from.

    Attributes:
        bank: what it is called, with the number of its tasks and its base.
        base: what stock PEFT finds the base by.
        rank: of A and B, and of each LoRA.
        digest: of A and B, as `SavedBank.shared_sha256` has it.
        task_type: PEFT's.
    """

    bank: str
    base: str
    rank: int
    digest: str
    task_type: str | None


def origin_of(model: PeftModel) -> Origin:
    """The bank of a model; its A and B are read once for the digest."""
    tuner = bank_tuner(model)
    name = tuner.active_adapters[0]
    config = tuner.peft_config[name]
    assert isinstance(config, CoLoRAConfig)
    shared = {
        tensor_key(layer_name, part): tensors[name]
        for layer_name, layer in bank_layers(model, name).items()
        for part, tensors in (("A", layer.colora_A), ("B", layer.colora_B))
    }
    base = hub_name(config.base_model_name_or_path) or ""
    called = f"the CoLoRA bank `{found}`" if (found := _called(config.loaded_from)) else "a CoLoRA bank"
    count = len(tuner.tasks)
    return Origin(
        bank=f"{called} with {count:,} task{'s' * (count != 1)} on `{base_id(base) or Path(base).name}`",
        base=base,
        rank=config.r,
        digest=shared_sha256(shared),
        task_type=getattr(config.task_type, "value", config.task_type),  # PEFT's enum, or its text
    )


def export_card(task: str, origin: Origin, use: HowToPrompt | None, merged: bool = False) -> str:
    """The README of an exported task, with the metadata that the hub reads.

    Args:
        use: how the bank's prompts are made; without it the card says nothing of them.
        merged: whether the files are a whole model, and no LoRA.
    """
    told = (MERGED if merged else LORA).substitute(
        task=task, bank=origin.bank, rank=origin.rank, digest=origin.digest[:16]
    )
    body = f"# {task}\n\n{told}\n" if use is None else use.readme(task, told)
    if not merged:
        location = base_id(origin.base) or "PATH/OF/THE/BASE"
        body += "\n" + LOADING.substitute(auto_class=auto_class_name(origin.task_type), location=location)
    card = ModelCard(f"---\n{{}}\n---\n\n{body}\n{CITATION}\n")
    data = card_data(origin.base, ["colora"] if merged else ["colora", "lora"], origin.task_type)
    own = {TASK_FIELD: task} | ({"library_name": "transformers"} if merged else {})
    for name, value in (data | own).items():
        setattr(card.data, name, value)
    return str(card)


def exported_task(card: Path) -> str | None:
    """The task that the folder of this card was exported from; None if the card is missing or does not say."""
    try:
        found: str | None = ModelCard(card.read_text(encoding="utf-8")).data.to_dict().get(TASK_FIELD)
    except (OSError, ValueError, YAMLError):
        return None
    return found


def _called(folder: str | None) -> str | None:
    """What people call a bank: its id on the hub, its folder's name, or that of its run."""
    if folder is None:
        return None
    path = Path(folder)
    return cached_id(path) or (path.parent.name if path.name == "bank" else path.name)
