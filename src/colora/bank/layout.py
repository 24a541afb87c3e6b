"""A saved bank as a folder: the names of its files, where to find it, and `bank.json` with how it came to be.

BANK/adapter_config.json, adapter_model.safetensors    what stock PEFT (with colora imported) loads
BANK/bank.json                                         base, prompt style, examples seen by each task
BANK/cores/                                            of a bank in rows: an index of the tasks, and files of rows
"""

from collections.abc import Iterable, MutableMapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from colora.bank.hub import fetched, is_hub_id, is_hub_name
from colora.common.json_text import parse_json
from colora.errors import BankFileError
from colora.tasks.prompting.templates import PromptTemplate, parse_template, template_of
from colora.tasks.schema import Task, prompted, task_template

__all__ = ["CONFIG_FILE", "INFO_FILE", "TENSORS_FILE", "BankInfo", "find_bank", "read_bank_info"]

CONFIG_FILE = "adapter_config.json"
TENSORS_FILE = "adapter_model.safetensors"
INFO_FILE = "bank.json"
NEEDED = (CONFIG_FILE, TENSORS_FILE)


@dataclass
class BankInfo:
    """How a bank came to be.

    Attributes:
        base: name of the base model, as `load_base` takes it; `adapter_config.json` names it as stock PEFT finds it.
        chat_template: whether prompts use the tokenizer's chat template.
        max_length: longest prompt and output in training, in tokens.
        examples, seen: for each task, how many training examples it had, and how many rows of it were trained on.
        sources: for each task, the seed of drawn splits.
        source: that of tasks which are not among `sources`; None: nothing is known of those.
        prompt: the template of the bank's tasks, and of tasks that are added to it. None, which "chat" becomes: the
            chat template, or the plain text where there is none, as in banks of earlier versions.
        prompts: the same of the tasks that have another.

    Raises:
        ConfigError: a prompt that is no template.
    """

    base: str
    chat_template: bool = True
    max_length: int = 512
    examples: MutableMapping[str, int] = field(default_factory=dict)
    seen: MutableMapping[str, int] = field(default_factory=dict)
    sources: dict[str, Any] = field(default_factory=dict)
    prompt: str | None = None
    prompts: dict[str, str | None] = field(default_factory=dict)
    source: Any = None

    def __post_init__(self) -> None:
        # Texts and not names: what a name stands for may be changed.
        self.prompt = _checked(self.prompt)
        self.prompts = {task: _checked(text) for task, text in self.prompts.items()}

    def template(self, task: str | None = None) -> PromptTemplate | None:
        """The template of a task's prompts; without a name, that of tasks to come."""
        text = self.prompt if task is None else self.prompt_of(task)
        return None if text is None else parse_template(text)

    def prompt_of(self, task: str) -> str | None:
        """The text of a task's template."""
        return self.prompts.get(task, self.prompt)

    def set_template(self, task: str, template: PromptTemplate | None) -> None:
        """Keep the template of a task's prompts."""
        text = None if template is None else template.text
        self.prompts.pop(task, None)
        if text != self.prompt:
            self.prompts[task] = text

    def prompted(self, tasks: Iterable[Task]) -> list[Task]:
        """The tasks with the prompts of the bank; a task whose examples have a template keeps it."""
        return [task if task_template(task) else prompted(task, self.template(task.name)) for task in tasks]

    def source_of(self, task: str) -> Any:
        """What is known of where a task's examples come from."""
        return self.sources.get(task, self.source)

    def of_tasks(self, tasks: Sequence[str]) -> "BankInfo":
        """The same of these tasks alone, of which there are few."""
        return replace(
            self,
            examples={task: self.examples[task] for task in tasks if task in self.examples},
            seen={task: self.seen[task] for task in tasks if task in self.seen},
            sources={task: found for task in tasks if (found := self.source_of(task)) is not None},
            prompts={task: self.prompts[task] for task in tasks if task in self.prompts},
            source=None,
        )

    def as_json(self) -> dict[str, Any]:
        """What `bank.json` holds. Without prompts it is that of earlier versions, which can read it."""
        later = ("prompt", "prompts", "source")
        found = {one.name: getattr(self, one.name) for one in fields(self)}
        return {name: value for name, value in found.items() if name not in later or value}


def _checked(prompt: str | None) -> str | None:
    template = None if prompt is None else template_of(prompt)
    return None if template is None else template.text


def find_bank(path: str | Path) -> Path:
    """The folder of a bank, given it, the run folder around it, or its name on the hub, `hf://ORG/BANK`.

    Raises:
        BankFileError: naming what is missing, or why it cannot be had from the hub.
    """
    path = fetched(path) if is_hub_name(path) else Path(path)
    for folder in (path, path / "bank"):
        if all((folder / name).is_file() for name in NEEDED):
            return folder
    if not path.is_dir():
        hub = f"; a bank on the Hugging Face hub is named hf://{path}" if is_hub_id(str(path)) else ""
        raise BankFileError(f"{path}: no such folder; expected a bank, or a run that has ended{hub}")
    if groups := sorted(group.name for group in path.glob("groups/*") if (group / "run.yaml").is_file()):
        raise BankFileError(
            f"{path}: expected one bank, found a run in groups, each with a bank of its own: name one of them, "
            f"{', '.join(str(path / 'groups' / name) for name in groups)}"
        )
    inner = (path / "bank").is_dir()
    folder = path / "bank" if inner else path
    missing = [name for name in NEEDED if not (folder / name).is_file()]
    unfinished = not inner and any((path / "checkpoints").glob("checkpoint-*"))
    raise BankFileError(
        f"{folder}: expected a bank, but {' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing"
        + ("; this run has checkpoints but has not ended: run `colora train` again to go on" if unfinished else "")
    )


def read_bank_info(folder: Path) -> BankInfo:
    """What `bank.json` says; for a bank saved by `save_pretrained` alone, what its config says.

    Raises:
        BankFileError: a file is damaged.
    """
    try:
        if (folder / INFO_FILE).is_file():
            return BankInfo(**parse_json((folder / INFO_FILE).read_text(encoding="utf-8")))
        config = parse_json((folder / CONFIG_FILE).read_text(encoding="utf-8"))
        loaded_as = (config.get("base_identity") or {}).get("loaded_as")
        return BankInfo(base=loaded_as or config.get("base_model_name_or_path") or "")
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise BankFileError(f"{folder}: {INFO_FILE} or {CONFIG_FILE} is damaged: {error}") from error
