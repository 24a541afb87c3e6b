"""The named groups, made of the real data and measured with the tokenizer of the default base."""

import pytest

from colora.models.base import DEFAULT_BASE, load_base
from colora.tasks.encode import encode_tasks
from colora.tasks.families.make import make_tasks
from colora.tasks.families.named import GROUPS
from colora.tasks.schema import SPLITS
from tests.helpers.real_data import real_data

pytest.importorskip("babel")
pytest.importorskip("num2words")

FILE_TASKS = sorted({name for names in GROUPS.values() for name in names if not name.startswith(("date-", "number-"))})
FEW = {"tweet-stance_abortion": 24, "tweet-stance_atheism": 16, "tweet-stance_climate": 10}


@pytest.fixture(scope="module")
def data():
    real_data("tweeteval")
    return real_data("natural_instructions").parent


@pytest.mark.parametrize("name", FILE_TASKS)
def test_the_data_suffice_for_every_seed(data, name):
    for seed in range(3):
        (task,) = make_tasks(
            [name], examples=64, val=FEW.get(name, 24), test=40, seed=seed, regime="implicit", data=data
        )
        drawn = [example.input for split in SPLITS for example in task.splits[split]]
        assert len(set(drawn)) == len(drawn)


@pytest.mark.parametrize(("one", "other"), [("scan-126", "scan-127"), ("scan-128", "scan-126")])
def test_no_sequence_of_actions_is_tested_here_and_trained_on_there(data, one, other):
    sizes = {"examples": 300, "val": 100, "test": 100, "seed": 0, "regime": "implicit"}
    tested, trained = (
        {e.input if e.input.startswith("I_") else e.outputs[0] for e in task.splits[split]}
        for task, split in zip(make_tasks([one, other], **sizes, data=data), ("test", "train"), strict=True)
    )
    assert not tested & trained


@pytest.mark.slow
@pytest.mark.filterwarnings("error:task")
def test_rows_are_short_enough_for_64_tokens_and_answers_for_32(data):
    tokenizer = load_base(DEFAULT_BASE, chat_template=False)[1]
    for group, names in GROUPS.items():
        # As many as there are of the rarest: nothing may be cut (a warning) or too long (an error).
        tasks = make_tasks(names, examples=64, val=10, test=40, seed=0, regime="explicit", data=data)
        for split in SPLITS:
            rows = encode_tasks(tasks, tokenizer, split, max_length=64)
            assert max(sum(label >= 0 for label in row["labels"]) for row in rows) <= 32, group
