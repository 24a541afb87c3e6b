"""Short tasks of Natural Instructions (Mishra et al. 2022; Wang et al. 2022), with short instructions of our own.

The published definitions have up to three hundred tokens, many times the input. Ours name the task in a few.
"""

from collections.abc import Callable, Mapping

from colora.errors import ConfigError
from colora.tasks.families.draw import DrawnTask, TaskRequest, assign_splits, checked_splits, shuffled
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
COMPLETIONS = tuple(f"Completion {letter}" for letter in "ABCD")


def draw_scan(request: TaskRequest) -> DrawnTask:
    """Commands and the actions they mean, one way or the other. What is held out is a sequence of actions."""
    to_actions = request.variant in ("126", "128")
    return _draw(request, "scan", SCAN, lambda example: example.outputs[0] if to_actions else example.input)


def draw_odd_man_out(request: TaskRequest) -> DrawnTask:
    """Words, one of which does not belong. What is held out is the set of words that belong together."""

    def belonging(example: Example) -> str:
        words = {word.strip() for word in example.input.rpartition("Words:")[2].split(",")}
        return ",".join(sorted(words - set(example.outputs)))

    return _draw(request, "odd-man-out", ODD_MAN_OUT, belonging)


def draw_codah(request: TaskRequest) -> DrawnTask:
    """A sentence to complete, with four completions to choose from."""
    return _draw(request, "codah", CODAH, lambda example: example.input)


def _draw(
    request: TaskRequest, family: str, instructions: Mapping[str, str], key: Callable[[Example], str]
) -> DrawnTask:
    if request.variant not in instructions:
        known = ", ".join(f"{family}-{variant}" for variant in instructions)
        raise ConfigError(f'expected a task of the family {family}, found "{request.name}"; known: {known}')
    folder = data_folder(request, FOLDER)
    files = sorted(folder.glob(f"task{request.variant}_*.json"))
    if len(files) != 1:
        found = ", ".join(path.name for path in files or sorted(folder.glob("task*.json"))) or "none"
        raise ConfigError(
            f'task "{request.name}": expected one file {folder}/task{request.variant}_*.json, found {found}'
        )
    examples = short_examples(read_splits(files[0], ("train",))["train"], family)
    splits = assign_splits(shuffled(examples, request), key, family, request)
    pool = f"half, a quarter and a quarter of {len(examples)} with at most {LONGEST[family]} bytes"
    return DrawnTask(
        checked_splits(splits, request, pool),
        instructions[request.variant],
        f"{FOLDER}/{files[0].name}",
        COMPLETIONS if family == "codah" else (),
    )
