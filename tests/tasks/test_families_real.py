"""The named groups, made of the real data and measured with the tokenizer of the default base."""

import json
from itertools import product

import pytest

from colora.models.base import DEFAULT_BASE, load_base
from colora.tasks.encode import encode_tasks
from colora.tasks.families.make import make_tasks
from colora.tasks.families.named import GROUPS
from colora.tasks.prompting.templates import NAMED_TEMPLATES
from colora.tasks.schema import SPLITS, prompted
from tests.helpers.real_data import real_data

pytest.importorskip("babel")
pytest.importorskip("num2words")

FILE_TASKS = sorted({name for names in GROUPS.values() for name in names if not name.startswith(("date-", "number-"))})
FEW = {"tweet-stance_abortion": 24, "tweet-stance_atheism": 16, "tweet-stance_climate": 10}
# Training, validation and test examples, as the docstring of `colora.tasks.families.named` promises them.
PROMISED = {
    **dict.fromkeys(("letters", "lists"), (160, 70, 80)),
    **dict.fromkeys(("facts", "words"), (90, 45, 45)),
    **{"annotator": (80, 32, 65), "rater": (18, 0, 8), "flan": (177, 32, 136)},
}
LENGTHS = {"flan-8": (160, 64), "raters-32": (72, 32)}


def sizes(name):
    """What the data suffice for."""
    train, val, test = PROMISED.get(name.partition("-")[0], (64, FEW.get(name, 24), 40))
    return {"examples": train, "val": val, "test": test}


@pytest.fixture(scope="module")
def data():
    for folder in ("tweeteval", "function_vectors", "annotators", "raters", "flan_clients"):
        real_data(folder)
    return real_data("natural_instructions").parent


@pytest.mark.parametrize("name", FILE_TASKS)
def test_the_data_suffice_for_every_seed(data, name):
    for seed in range(5 if name.partition("-")[0] in PROMISED else 3):
        (task,) = make_tasks([name], **sizes(name), seed=seed, regime="implicit", data=data)
        drawn = [example.input for split in SPLITS for example in task.splits[split]]
        assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize("name", FILE_TASKS)
def test_every_answer_is_one_of_the_choices_where_there_are_any(data, name):
    (task,) = make_tasks([name], **sizes(name), seed=0, regime="implicit", data=data)
    answers = {example.outputs[0] for split in SPLITS for example in task.splits[split]}
    assert not task.choices or answers <= set(task.choices)
    assert len(task.choices) <= 10
    assert not any(one != two and two.startswith(one) for one in task.choices for two in task.choices)


@pytest.mark.parametrize(("one", "other"), [("scan-126", "scan-127"), ("scan-128", "scan-126")])
def test_no_sequence_of_actions_is_tested_here_and_trained_on_there(data, one, other):
    sizes = {"examples": 300, "val": 100, "test": 100, "seed": 0, "regime": "implicit"}
    tested, trained = (
        {e.input if e.input.startswith("I_") else e.outputs[0] for e in task.splits[split]}
        for task, split in zip(make_tasks([one, other], **sizes, data=data), ("test", "train"), strict=True)
    )
    assert not tested & trained


@pytest.mark.parametrize("group", ["letters-8", "lists-8", "facts-8", "words-8", "annotators-a", "raters-32", "flan-8"])
def test_no_text_is_tested_in_one_task_and_trained_on_in_another(data, group):
    tasks = [make_tasks([name], **sizes(name), seed=1, regime="implicit", data=data)[0] for name in GROUPS[group]]
    texts = {s: {example.input.casefold() for task in tasks for example in task.splits[s]} for s in SPLITS}
    assert not texts["train"] & texts["test"]
    assert not texts["val"] & texts["test"]
    assert not texts["train"] & texts["val"]


def test_the_raters_are_those_with_the_most_short_texts(data):
    def short(folder, split):
        rows = (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        return sum(len(json.loads(row)["input"].encode()) <= 160 for row in rows)

    counts = {path: (short(path, "train"), short(path, "test")) for path in sorted((data / "raters").iterdir())}
    enough = [path for path, (train, test) in counts.items() if train >= 16 and test >= 8]
    most = sorted(enough, key=lambda path: (-sum(counts[path]), path.name))[:32]
    assert len(enough) == 61
    assert GROUPS["raters-32"] == tuple(sorted(path.name.replace("_", "-") for path in most))


@pytest.mark.slow
@pytest.mark.filterwarnings("error:task")
def test_rows_and_answers_are_as_short_as_promised(data):
    tokenizer = load_base(DEFAULT_BASE, chat_template=False)[1]
    templates = [None, *(template for template in NAMED_TEMPLATES.values() if template is not None)]
    for group, names in GROUPS.items():
        length, answer = LENGTHS.get(group, (64, 32))
        # As many as there are of the rarest: nothing may be cut (a warning) or too long (an error).
        few = {key: min(sizes(name)[key] for name in names) for key in ("examples", "val", "test")}
        tasks = make_tasks(names, **few, seed=0, regime="explicit", data=data)
        for split, template in product(SPLITS, templates if names[0].partition("-")[0] in PROMISED else [None]):
            rows = encode_tasks([prompted(task, template) for task in tasks], tokenizer, split, max_length=length)
            assert max((sum(label >= 0 for label in row["labels"]) for row in rows), default=0) <= answer, group
