"""The model card of a saved bank, README.md in its folder: base, tasks, prompts, measured quality, how to load it.

The card is made anew whenever the bank is written. What a user wrote around the part between two marks stays, and so do
fields of the metadata that are none of ours. The digest of a bank does not cover its card.

Quality stands in the metadata as the hub has it, `model-index`, and the table is made of that. It comes from what a run
measured. Figures of a task that has gone or was trained further are dropped, and none is guessed.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from colora.adapter.config import COLORA
from colora.bank.card_text import LISTED, MEAN, CardFacts, Figure, base_id, card_section
from colora.bank.layout import CONFIG_FILE, INFO_FILE, BankInfo, read_bank_info
from colora.bank.rows.index import CORES_FOLDER, read_index
from colora.common.files import unstaged, write_text
from colora.common.json_text import parse_json
from colora.errors import BankFileError
from colora.models.base import hub_name

__all__ = [
    "CARD_FILE",
    "card_data",
    "changed_tasks",
    "read_figures",
    "update_card",
    "with_means",
    "words_around",
    "write_card",
]

CARD_FILE = "README.md"
TITLE = "# CoLoRA bank"
BEGIN = "<!-- colora: the bank, written anew whenever it changes; words of your own stay above and below -->"
END = "<!-- colora: end -->"
OURS = "one task of a CoLoRA bank"
"""What our entries of `model-index` say of themselves; those of others stay."""


def write_card(folder: Path, figures: Iterable[Figure] = (), outdated: Collection[str] | None = ()) -> None:
    """Make the card of a saved bank of what is in its folder; nothing is done for an adapter that is no bank.

    Args:
        folder: of the bank.
        figures: of all tasks that were just measured, `with_means`; they take the place of earlier ones.
        outdated: tasks whose earlier figures do not hold any more; None: no earlier figure holds.

    Raises:
        BankFileError: the metadata of the card that is there cannot be read.
        CheckpointError: the card cannot be written; the old one is still there.
    """
    try:
        fields = parse_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BankFileError(f"{folder / CONFIG_FILE}: damaged: {error}") from error
    if fields.get("peft_type") != COLORA:
        return
    info = read_bank_info(folder) if (folder / INFO_FILE).is_file() else None
    names = _names(folder, fields)
    base = hub_name(fields.get("base_model_name_or_path")) or ""
    facts = CardFacts(base, fields["r"], len(names), list(islice(names, LISTED)), fields.get("task_type"), info)
    update_card(folder / CARD_FILE, facts, figures, outdated)


def update_card(
    file: Path, facts: CardFacts, figures: Iterable[Figure] = (), outdated: Collection[str] | None = ()
) -> None:
    """Write a card with these facts.

    Args:
        file: the card. What is there of others stays.
        facts: of the bank.
        figures, outdated: as for `write_card`.

    Raises:
        as `write_card`.
    """
    card = _read(file)
    kept = [] if outdated is None else _still_true(_figures(card), facts.tasks, outdated)
    listed = {*facts.tasks, MEAN}
    shown = [one for one in figures if one.task in listed]
    if not shown or (kept and kept[0].split == "test" != shown[0].split):  # the test split tells more than another
        shown = kept
    ours = card_data(facts.base, ["colora", "multi-task"], facts.task_type)
    for name, value in ours.items():
        _set(_data(card), name, value)
    data = _data(card)
    others = [one for one in data.eval_results or [] if one.task_name != OURS]
    data.eval_results = [*others, *map(_entry, shown)] or None
    data.model_name = (data.model_name or TITLE.removeprefix("# ")) if data.eval_results else None
    card.text = _with_section(card.text, f"{BEGIN}\n{card_section(facts, shown)}\n{END}")
    write_text(file, str(card))


def card_data(base: str, tags: Sequence[str], task_type: str | None) -> dict[str, Any]:
    """The metadata of a card that the hub makes links and filters of."""
    data: dict[str, Any] = {"base_model": base_id(base), "library_name": "peft", "tags": list(tags)}
    kinds = {"CAUSAL_LM": "text-generation", "SEQ_CLS": "text-classification"}
    return data | {"pipeline_tag": kinds.get(str(task_type))}


def read_figures(folder: Path) -> list[Figure]:
    """What the card of a bank tells of its quality.

    Raises:
        BankFileError: its metadata cannot be read.
    """
    return _figures(_read(folder / CARD_FILE))


def words_around(folder: Path) -> str:
    """What stands in the card of a bank around the part that is ours.

    Raises:
        BankFileError: its metadata cannot be read.
    """
    text = _read(folder / CARD_FILE).text
    return text.partition(BEGIN)[0] + text.partition(END)[2]


def changed_tasks(before: Path, tasks: Collection[str], info: BankInfo | None) -> set[str]:
    """The tasks of the bank in the folder `before` that are gone or were trained further in the bank that is written.

    Args:
        tasks, info: of the bank that is written.
    """
    if not (before / CONFIG_FILE).is_file():
        return set(tasks)
    fields = parse_json((before / CONFIG_FILE).read_text(encoding="utf-8"))
    names = set(_names(before, fields))
    seen = read_bank_info(before).seen if info is not None and (before / INFO_FILE).is_file() else {}
    return names - set(tasks) | {name for name in names if info is not None and seen.get(name) != info.seen.get(name)}


def _names(folder: Path, fields: Mapping[str, Any]) -> Collection[str]:
    """The tasks of a bank, in their order: in its config, or in the index of a bank in rows."""
    names: Collection[str] = fields["tasks"] if "tasks" in fields else read_index(folder / CORES_FOLDER).names
    return names


def _read(file: Path) -> ModelCard:
    if not file.is_file():
        return ModelCard(f"---\n{{}}\n---\n\n{TITLE}\n")
    try:
        text = file.read_text(encoding="utf-8")
        return ModelCard(text if text.lstrip().startswith("---") else f"---\n{{}}\n---\n{text}")
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BankFileError(
            f"{unstaged(file)}: the metadata of this model card, between two lines ---, cannot be read "
            f"({' '.join(str(error).split())}); mend it, or remove the file, and run the same command again"
        ) from error


def _data(card: ModelCard) -> ModelCardData:
    assert isinstance(card.data, ModelCardData)
    return card.data


def _set(data: ModelCardData, name: str, value: object) -> None:
    """Our value, but what a user says of the base or the kind of task counts; tags are added to theirs."""
    there = getattr(data, name, None)
    if isinstance(value, list):
        setattr(data, name, sorted({*(there or []), *value}))
    # The Trainer of transformers names a base by its folder, for which the hub refuses a card.
    elif there is None or (name == "base_model" and isinstance(there, str) and base_id(there) is None):
        setattr(data, name, value)


def _with_section(text: str, section: str) -> str:
    if _is_blank(text):
        text = f"\n{TITLE}\n"
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if begin and end:
        return f"{before}{section}{after}"
    return f"{text.rstrip()}\n\n{section}\n"


def _is_blank(text: str) -> bool:
    """Whether a card is the form that PEFT puts there, with nothing filled in."""
    form, _, versions = text.partition("### Framework versions")
    return form.strip() == ModelCard.from_template(ModelCardData()).text.strip() and versions.strip().startswith(
        "- PEFT"
    )


# ---- quality ---------------------------------------------------------------------------------------------------------


def _entry(figure: Figure) -> EvalResult:
    return EvalResult(
        task_type="text-generation",
        task_name=OURS,
        dataset_type="private",
        dataset_name=figure.task,
        dataset_config=figure.task,  # the hub tells data sets apart by this
        dataset_split=figure.split,
        metric_type=figure.metric,
        metric_name=figure.metric,
        metric_value=figure.value,
        metric_args={"n": figure.n},
    )


def _figures(card: ModelCard) -> list[Figure]:
    return [
        Figure(
            one.dataset_config or "", one.metric_type, str(one.dataset_split), one.metric_value, one.metric_args["n"]
        )
        for one in _data(card).eval_results or []
        if one.task_name == OURS and isinstance(one.metric_args, Mapping) and "n" in one.metric_args
    ]


def with_means(figures: Sequence[Figure]) -> list[Figure]:
    """The figures of tasks that were measured, and of each metric the mean over these tasks."""
    by_metric: dict[str, list[Figure]] = {}
    for one in figures:
        by_metric.setdefault(one.metric, []).append(one)
    means = [
        Figure(MEAN, metric, every[0].split, sum(one.value for one in every) / len(every), sum(one.n for one in every))
        for metric, every in by_metric.items()
        if len(every) > 1
    ]
    return [*figures, *means]


def _still_true(figures: list[Figure], listed: Sequence[str], outdated: Collection[str]) -> list[Figure]:
    """Without tasks that are not there, and without means that such a task, or an outdated one, is in."""
    good = set(listed) - set(outdated)
    whole = not outdated and all(one.task in good or one.task == MEAN for one in figures)
    return [one for one in figures if one.task in good or (one.task == MEAN and whole)]
