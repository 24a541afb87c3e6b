"""Short tasks of Natural Instructions (Mishra et al. 2022; Wang et al. 2022), with short instructions of our own.

The published definitions have up to three hundred tokens, many times the input. Ours name the task in a few.
"""

from collections.abc import Callable, Mapping

from colora.errors import ConfigError
from colora.tasks.families.draw import Ask, Draw, complete, deal, shuffled
from colora.tasks.families.files import LONGEST, data_folder, read_splits, short_examples
from colora.tasks.schema import Example

__all__ = ["CODAH", "ODD_MAN_OUT", "SCAN", "draw_codah", "draw_odd_man_out", "draw_scan"]

FOLDER = "natural_instructions"

SCAN = {
    "126": "Command to actions:",
    "127": "Actions to command:",
    "128": "Command to few actions:",
    "129": "Few actions to command:",
}
"""128 and 129 are 126 and 127 without the longest sequences: the same mapping, on other inputs of the same kind."""
ODD_MAN_OUT = {"141": "Odd one out of the category:", "142": "Odd one out:", "143": "Category:"}
CODAH = {"156": "Best completion:"}


def draw_scan(ask: Ask) -> Draw:
    """Commands and the actions they mean, one way or the other. What is held out is a sequence of actions."""
    return _draw(ask, "scan", SCAN, lambda one: one.outputs[0] if ask.variant in ("126", "128") else one.input)


def draw_odd_man_out(ask: Ask) -> Draw:
    """Words, one of which does not belong. What is held out is the set of words that belong together."""

    def belonging(example: Example) -> str:
        words = {word.strip() for word in example.input.rpartition("Words:")[2].split(",")}
        return ",".join(sorted(words - set(example.outputs)))

    return _draw(ask, "odd-man-out", ODD_MAN_OUT, belonging)


def draw_codah(ask: Ask) -> Draw:
    """A sentence to complete, with four completions to choose from."""
    return _draw(ask, "codah", CODAH, lambda one: one.input)


def _draw(ask: Ask, family: str, instructions: Mapping[str, str], key: Callable[[Example], str]) -> Draw:
    if ask.variant not in instructions:
        known = ", ".join(f"{family}-{variant}" for variant in instructions)
        raise ConfigError(f'expected a task of the family {family}, found "{ask.name}"; known: {known}')
    folder = data_folder(ask, FOLDER)
    files = sorted(folder.glob(f"task{ask.variant}_*.json"))
    if len(files) != 1:
        found = ", ".join(path.name for path in files or sorted(folder.glob("task*.json"))) or "none"
        raise ConfigError(f'task "{ask.name}": expected one file {folder}/task{ask.variant}_*.json, found {found}')
    examples = short_examples(read_splits(files[0], as_one=True)["train"], family)
    splits = deal(shuffled(examples, ask), key, family, ask)
    pool = f"half, a quarter and a quarter of {len(examples)} with at most {LONGEST[family]} bytes"
    return Draw(complete(splits, ask, pool), instructions[ask.variant], f"{FOLDER}/{files[0].name}")
