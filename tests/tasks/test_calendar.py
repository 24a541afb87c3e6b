"""The tasks of the demo: dates in words, drawn by seed."""

import builtins
from datetime import date

import pytest

from colora.errors import ConfigError
from colora.tasks.families.calendar import DEMO_LOCALES, date_task, date_tasks
from colora.tasks.schema import SPLITS


@pytest.fixture
def babel():
    return pytest.importorskip("babel")


def test_the_same_seed_gives_the_same_tasks(babel):
    assert date_tasks(seed=3) == date_tasks(seed=3)
    for one, other in zip(date_tasks(seed=3), date_tasks(seed=4), strict=True):
        assert one.name == other.name
        assert one.splits != other.splits


def test_date_tasks_have_the_sizes_asked_for_and_different_days(babel):
    tasks = date_tasks(train=5, val=2, test=3)
    assert [task.name for task in tasks] == [f"date-{locale}" for locale in DEMO_LOCALES]
    days = []
    for task in tasks:
        assert {split: len(task.splits[split]) for split in SPLITS} == {"train": 5, "val": 2, "test": 3}
        inputs = [example.input for split in SPLITS for example in task.splits[split]]
        assert len(set(inputs)) == 10
        days.append(tuple(inputs))
    assert len(set(days)) == len(tasks)
    assert {task.split_seed for task in tasks} == {0}


def test_more_training_examples_leave_the_test_as_it_was(babel):
    few, many = (date_task("es", train, 2, 5, seed=1) for train in (4, 40))
    assert few.splits["test"] == many.splits["test"]
    assert few.splits["val"] == many.splits["val"]


def test_the_output_is_the_date_in_words(babel):
    months = {
        "es": "enero febrero marzo abril mayo junio julio agosto septiembre octubre noviembre diciembre",
        "it": "gennaio febbraio marzo aprile maggio giugno luglio agosto settembre ottobre novembre dicembre",
    }
    for locale, text in months.items():
        names, joint = text.split(), " de " if locale == "es" else " "
        for example in date_task(locale, 30, 0, 30, seed=0).splits["train"]:
            day = date.fromisoformat(example.input)
            assert example.outputs == (f"{day.day}{joint}{names[day.month - 1]}{joint}{day.year}",)


def test_a_date_task_takes_a_name(babel):
    assert date_task("fr", 1, 0, 1, seed=0, name="clinic").name == "clinic"


@pytest.mark.parametrize("locale", ["xx", "not a locale", "", "es-ES-x-y-z"])
def test_an_unknown_locale_is_refused(babel, locale):
    with pytest.raises(ConfigError, match="Babel knows no locale"):
        date_task(locale, 1, 0, 1, seed=0)


def test_without_babel_the_message_says_what_to_install(monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name.split(".")[0] == "babel":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"pip install \"colora\[demo\]\""):
        date_task("es", 1, 0, 1, seed=0)
