"""What the model card of a bank says, as Markdown: made of facts alone, the same text for the same facts."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import NamedTuple

from colora.bank.hub import is_hub_id
from colora.bank.layout import INFO_FILE, BankInfo

__all__ = ["CITATION", "LISTED", "MEAN", "CardFacts", "Figure", "auto_class_name", "base_id", "card_section"]

LISTED = 20
"""So many tasks are listed; of the others their number is told."""
MEAN = "*mean*"
"""Stands for a task in the figures of all tasks that were measured; no task can have this name."""

CITATION = """\
## Citation

```bibtex
@article{magakyan2026colora,
  title   = {Collaborative and Efficient Fine-tuning: Leveraging Task Similarity},
  author  = {Magakyan, Gagik and Reisizadeh, Amirhossein and Park, Chanwoo and Parrilo, Pablo A. and Ozdaglar, Asuman},
  journal = {arXiv preprint arXiv:2602.07218},
  year    = {2026},
}
```"""

SECTION = Template("""\
$count shared by one adapter on $base, by [CoLoRA](https://arxiv.org/abs/2602.07218), collaborative low-rank
adaptation. Each adapted weight of task k is W0 + s · B Λ_k A: A and B, of rank $rank, are common to all tasks, and
each task has a core Λ_k of its own, $rank × $rank numbers.

## Tasks

$table

## Prompts

$prompts

## How to load it

With `colora` installed, stock PEFT loads the bank, from a folder or by its id on the hub. Each row has a task:

```python
import colora  # teaches PEFT what a bank is
from peft import PeftModel
from transformers import $auto_class, AutoTokenizer

base = $auto_class.from_pretrained("$location")
tokenizer = AutoTokenizer.from_pretrained("$location")
model = PeftModel.from_pretrained(base, "ORG/BANK")
inputs = tokenizer(["A prompt, made as above"], return_tensors="pt")
print(tokenizer.batch_decode(model.generate(**inputs, task_ids=["$task"])))
```

`colora.load_bank("hf://ORG/BANK")` finds the base and the prompts as well, `colora serve hf://ORG/BANK` answers for all
tasks over HTTP, and `colora export hf://ORG/BANK loras` makes a plain LoRA of each task, which needs no `colora`.

$citation""")

UNMEASURED = "No figures of quality: since it was last trained or saved, the bank has not been measured."
MEASURED = Template("""\
Measured on the $split split, of outputs that are greedy; in brackets, of how many examples or tokens a figure is the
mean. `rougeL` and `exact_match` are in per cent, `token_nll` is in nats a token. A dash: not measured since the task
was last trained, or not kept.""")
UNKNOWN = f"How prompts were made in training is not told here: `{INFO_FILE}`, which says it, is not beside this file."
CHAT = (
    "the tokenizer's chat template around one user turn: the instruction, if there is one, a blank line, and the input"
)
PLAIN = "a plain text: the instruction, if there is one, a blank line, the input, and a line break"
PLACES = (
    "`{input}` and `{instruction}` are an example's, and the answer begins at `{output}`, with the spaces before it."
)


class Figure(NamedTuple):
    """One measured number of a task: the mean of `n` examples or tokens of a split."""

    task: str
    metric: str
    split: str
    value: float
    n: int


@dataclass(frozen=True)
class CardFacts:
    """What a card is made of.

    Attributes:
        base: what stock PEFT finds the base model by, an id on the hub or a folder; "" if that is not known.
        rank: of A and B.
        count: of the tasks.
        tasks: the first of them.
        task_type: PEFT's.
        info: how the bank came to be, if that is known.
    """

    base: str
    rank: int
    count: int
    tasks: Sequence[str]
    task_type: str | None = None
    info: BankInfo | None = None


def base_id(base: str) -> str | None:
    """The base's id on the hub; None for a folder, whose path means nothing elsewhere and may tell of its owner."""
    return base if is_hub_id(base) and not Path(base).exists() else None


def auto_class_name(task_type: str | None) -> str:
    """The class of transformers that loads the base of a bank of this type."""
    known = {"SEQ_2_SEQ_LM": "Seq2SeqLM", "SEQ_CLS": "SequenceClassification", "TOKEN_CLS": "TokenClassification"}
    known |= {"QUESTION_ANS": "QuestionAnswering"}
    return f"AutoModelFor{known.get(str(task_type), 'CausalLM')}"


def card_section(facts: CardFacts, figures: Sequence[Figure]) -> str:
    """The part of a card between its marks."""
    return SECTION.substitute(
        count="One task" if facts.count == 1 else f"{facts.count:,} tasks",
        base=f"`{base_id(facts.base)}`" if base_id(facts.base) else _folder(facts.base),
        rank=facts.rank,
        table=_table(facts, figures),
        prompts=_prompts(facts),
        auto_class=auto_class_name(facts.task_type),
        location=base_id(facts.base) or "PATH/OF/THE/BASE",
        task=facts.tasks[0],
        citation=CITATION,
    )


def _folder(base: str) -> str:
    name = Path(base).name
    return f"the base model `{name}`, which was a folder" if name else "a base model that was not named"


def _table(facts: CardFacts, figures: Sequence[Figure]) -> str:
    by_task = {(one.task, one.metric): one for one in figures}
    metrics = list(dict.fromkeys(one.metric for one in figures))
    examples = {} if facts.info is None else facts.info.examples
    columns = ["task", *(["examples"] if examples else []), *metrics]
    rows = [columns, ["---", *["---:"] * (len(columns) - 1)]]
    for task in facts.tasks:
        own = [str(examples.get(task, "–"))] if examples else []
        rows.append([task, *own, *(_shown(by_task.get((task, metric))) for metric in metrics)])
    if means := [_shown(by_task.get((MEAN, metric))) for metric in metrics if (MEAN, metric) in by_task]:
        rows.append(["*all that were measured, mean*", *([""] if examples else []), *means])
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    if (more := facts.count - len(facts.tasks)) > 0:
        lines += ["", f"and {more:,} more, which `colora tasks` lists."]
    told = MEASURED.substitute(split=figures[0].split) if figures else UNMEASURED
    return "\n".join([*lines, "", told])


def _shown(figure: Figure | None) -> str:
    return "–" if figure is None else f"{figure.value:.4g} ({figure.n:,})"


def _prompts(facts: CardFacts) -> str:
    info = facts.info
    if info is None:
        return UNKNOWN
    others = [f"- {task}: {_prompt(info, text)}" for task in facts.tasks if (text := info.prompts.get(task, "")) != ""]
    lines = [f"A prompt is {_prompt(info, info.prompt)}."]
    if "{input}" in "".join(str(text) for text in (info.prompt, *(info.prompts.get(task) for task in facts.tasks))):
        lines += ["", PLACES]
    if others:
        lines += ["", "Of these tasks it is another:", "", *others]
    return "\n".join(lines)


def _prompt(info: BankInfo, template: str | None) -> str:
    if template is not None:
        return f"made with the template `{template!r}`"
    return f"{CHAT}; where there is no chat template, {PLAIN}" if info.chat_template else PLAIN
