"""The eight clients of FedDPA's first division of Flan (Yang et al. 2024, arXiv:2403.19211), in its own splits, 300
training and 200 test examples each, with short instructions of our own.

Inputs of more than 300 bytes and answers of more than 140 are left out, so that the rows have at most 160 tokens of
SmolLM2 and the answers at most 64. Six clients keep nine examples in ten or more; those that write sentences
(structure_to_text, text_formatting) two thirds.

There is no published validation split. Validation examples are the last of the shuffled training examples, and the
training examples the first: both are nested, and a trial may train on all of them if it validates on none.
"""

from colora.errors import ConfigError
from colora.tasks.families.draw import DrawnTask, TaskRequest, checked_splits, shuffled
from colora.tasks.families.files import LONGEST, LONGEST_ANSWER, data_folder, read_splits, short_examples

__all__ = ["FLAN", "draw_flan"]

FOLDER = "flan_clients"

FLAN = {
    "coreference": "Who or what is meant:",
    "entailment": "Does it follow:",
    "linguistic_acceptability": "Is it good English:",
    "paraphrase": "Do both mean the same:",
    "question_classification": "Kind of question:",
    "structure_to_text": "Data in a sentence:",
    "text_formatting": "Text set right:",
    "word_disambiguation": "One meaning of the word or two:",
}
CHOICES = {
    "entailment": ("yes", "it is not possible to tell", "no"),
    "linguistic_acceptability": ("unacceptable", "acceptable"),
    "paraphrase": ("no", "yes"),
    "question_classification": ("description", "entity", "abbreviation", "human", "numeric", "location"),
    "word_disambiguation": ("different meanings", "the same meaning"),
}
"""As the inputs list them. Those of coreference are other ones in each input."""


def draw_flan(request: TaskRequest) -> DrawnTask:
    """`request.variant` names a folder of train.jsonl and test.jsonl.

    Raises:
        ConfigError: if there is no such client, its folder is not there, or it has too few short examples.
        TaskFileError: with every fault of the files.
    """
    if request.variant not in FLAN:
        known = ", ".join(f"flan-{variant}" for variant in FLAN)
        raise ConfigError(f'expected a task of the family flan, found "{request.name}"; known: {known}')
    given = read_splits(data_folder(request, f"{FOLDER}/{request.variant}"), ("train", "test"))
    test = short_examples(given["test"], "flan")
    learnt = shuffled(short_examples(given["train"], "flan", {example.input for example in test}), request, "train")
    first, last = request.sizes["train"], request.sizes["val"]
    splits = {
        "train": learnt[:first],
        "val": learnt[first:][::-1][:last],
        "test": shuffled(test, request, "test")[: request.sizes["test"]],
    }
    pool = f"inputs of at most {LONGEST['flan']} bytes and answers of at most {LONGEST_ANSWER['flan']}"
    return DrawnTask(
        checked_splits(splits, request, pool),
        FLAN[request.variant],
        f"{FOLDER}/{request.variant}",
        CHOICES.get(request.variant, ()),
    )
