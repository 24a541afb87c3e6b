"""What PEFT's own `save_pretrained` and `push_to_hub` write of a bank beside its config and tensors: card and prompts.

PEFT knows nothing of `bank.json`, where the prompts are. So a bank that was loaded and is saved elsewhere as it was, to
the hub for example, brings it along, and its measured quality too. The digest of the tensors tells that it is the same
bank; of one that was trained on, neither is known to hold any more.
"""

import shutil
from itertools import islice
from pathlib import Path

from peft import PeftModel

from colora.adapter.config import ADAPTER_NAME, CoLoRAConfig
from colora.adapter.lookup import wrapped_router
from colora.bank.card import CARD_FILE, read_figures, update_card, write_card
from colora.bank.card_text import LISTED, CardFacts, Figure
from colora.bank.layout import CONFIG_FILE, INFO_FILE
from colora.common.json_text import parse_json
from colora.models.base import hub_name

__all__ = ["bring_along", "write_card_of"]

GENERATED = "This is the model card of a 🤗 transformers model that has been pushed on the Hub."
"""What transformers' `push_to_hub` makes up where a repository has no card."""


def write_card_of(model: PeftModel, folder: str) -> None:
    """Write the card of a bank in memory, of which nothing is known to have been measured.

    Raises:
        BankFileError: there is a card already, and its metadata cannot be read.
        CheckpointError: the card cannot be written.
    """
    config = _bank_config(model)
    if config is None:
        return
    router = wrapped_router(model)
    names = config.tasks if router is None else router.tasks.get(_adapter_name(model), config.tasks)
    base = config.base_model_name_or_path or vars(model.get_base_model()).get("name_or_path")
    kind = getattr(config.task_type, "value", config.task_type)  # PEFT's enum, or its text
    facts = CardFacts(hub_name(base) or "", config.r, len(names), list(islice(names, LISTED)), kind)
    update_card(Path(folder) / CARD_FILE, facts, outdated=None)


def bring_along(model: PeftModel, folder: str) -> None:
    """Copy `bank.json` and measured quality from the folder that a bank was loaded from, if it is still the same bank.

    PEFT has saved the bank in `folder`. In `push_to_hub` transformers has put a card there in place of ours: that of
    the repository, whose text around our part stays, or one that it made up.

    Raises:
        BankFileError: the metadata of a card cannot be read.
        CheckpointError: the card cannot be written.
    """
    config, target = _bank_config(model), Path(folder)
    if config is None or not (target / CONFIG_FILE).is_file():
        return
    if (card := target / CARD_FILE).is_file() and GENERATED in card.read_text(encoding="utf-8"):
        card.unlink()
    figures: list[Figure] = []
    source = Path(config.loaded_from) if config.loaded_from else None
    if source is not None and (source / INFO_FILE).is_file() and _is_same(source, target):
        if source.resolve() != target.resolve():
            shutil.copyfile(source / INFO_FILE, target / INFO_FILE)
        figures = read_figures(source)
    write_card(target, figures, outdated=None)


def _is_same(source: Path, target: Path) -> bool:
    try:
        one, other = (parse_json((folder / CONFIG_FILE).read_text(encoding="utf-8")) for folder in (source, target))
    except (OSError, ValueError):  # what it was loaded from is not there any more
        return False
    return all(one.get(name) == other.get(name) for name in ("tasks", "weights_sha256")) and "weights_sha256" in one


def _adapter_name(model: PeftModel) -> str:
    """The bank in the folder itself, where PEFT saves the adapter of this name; others go to folders below."""
    return ADAPTER_NAME if ADAPTER_NAME in model.peft_config else model.active_adapters[0]


def _bank_config(model: PeftModel) -> CoLoRAConfig | None:
    config = model.peft_config.get(_adapter_name(model))
    return config if isinstance(config, CoLoRAConfig) else None
