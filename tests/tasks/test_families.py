"""Tasks by name: what their draws promise, what the regimes differ in, and every error."""

import builtins

import pytest

from colora.common.files import fits_name_rule
from colora.errors import ConfigError
from colora.tasks.families.calendar import date_example, find_locale
from colora.tasks.families.flan import FLAN
from colora.tasks.families.function_vectors import FACTS, LETTERS, LISTS, WORDS
from colora.tasks.families.make import family_descriptions, make_tasks
from colora.tasks.families.named import GROUPS, group_tasks
from colora.tasks.schema import SPLITS
from tests.helpers.family_data import write_data

pytest.importorskip("babel")
pytest.importorskip("num2words")

NAMES = (
    "date-es", "date-pt", "number-de", "scan-126", "scan-127", "odd-man-out-141", "odd-man-out-142", "codah-156",
    "tweet-irony", "letters-capitalize_first_letter", "letters-lowercase_first_letter", "words-antonym",
    "lists-choose_first_of_3", "facts-park-country", "annotator-01", "annotator-02", "flan-paraphrase",
    "flan-text_formatting",
)  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture
def make(data):
    def make(names=NAMES, examples=4, val=3, test=5, seed=0, regime="implicit"):
        return make_tasks(names, examples=examples, val=val, test=test, seed=seed, regime=regime, data=data)

    return make


def inputs(task, split):
    return [example.input for example in task.splits[split]]


def test_each_task_has_the_sizes_asked_for_and_no_input_twice(make):
    tasks = make()
    assert [task.name for task in tasks] == list(NAMES)
    for task in tasks:
        assert {split: len(task.splits[split]) for split in SPLITS} == {"train": 4, "val": 3, "test": 5}
        drawn = [text for split in SPLITS for text in inputs(task, split)]
        assert len(set(drawn)) == len(drawn)
        assert all(example.outputs[0].strip() for split in SPLITS for example in task.splits[split])
        assert task.split_seed == 0
        assert "/tmp" not in task.source


def test_no_split_depends_on_the_size_of_another_and_each_is_nested(make):
    small = make(examples=4, val=3, test=5)
    for other in (make(examples=16, val=3, test=5), make(examples=4, val=8, test=5), make(examples=4, val=3, test=12)):
        for one, more in zip(small, other, strict=True):
            for split in SPLITS:
                both = zip(one.splits[split], more.splits[split], strict=False)
                assert all(first == second for first, second in both), (one.name, split)


def test_what_is_validated_on_is_never_tested_whatever_the_sizes(make):
    for tuning, final in zip(make(val=8, test=0), make(val=0, test=12), strict=True):
        assert not set(inputs(tuning, "val")) & set(inputs(final, "test"))


def test_a_task_is_the_same_whatever_is_made_with_it(make):
    together = {task.name: task for task in make()}
    for name in NAMES:
        assert make([name]) == [together[name]]


def test_another_seed_draws_other_examples(make):
    assert make(seed=1) == make(seed=1)
    for one, other in zip(make(seed=0), make(seed=1), strict=True):
        assert inputs(one, "test") != inputs(other, "test")
        assert inputs(one, "train") != inputs(other, "train")


def test_the_regimes_differ_in_the_instruction_only(make):
    for implicit, explicit in zip(make(), make(regime="explicit"), strict=True):
        for split in SPLITS:
            for bare, told in zip(implicit.splits[split], explicit.splits[split], strict=True):
                assert (bare.input, bare.outputs) == (told.input, told.outputs)
                assert bare.instruction is None
        told = {example.instruction for split in SPLITS for example in explicit.splits[split]}
        assert len(told) == 1
        assert 5 < len(told.pop()) < 60


def test_explicit_instructions_name_the_task(make):
    instructions = {task.name: task.splits["test"][0].instruction for task in make(regime="explicit")}
    assert len(set(instructions.values())) == len(NAMES)
    assert instructions["date-es"] == "Date in Spanish:"
    assert instructions["number-de"] == "Number in German:"
    assert instructions["tweet-irony"] == "irony or non_irony?"
    assert instructions["letters-lowercase_first_letter"] == "First letter, in lower case:"
    assert instructions["annotator-02"] == "Annotator 2:"
    (rater,) = make(["rater-012"], val=0, regime="explicit")
    assert rater.splits["train"][0].instruction == "Rater 12:"


def test_the_instructions_of_a_family_differ():
    for family in (LETTERS, LISTS, FACTS, WORDS, FLAN):
        assert len(family) == len(set(family.values())) == 8


@pytest.mark.parametrize("names", [("date-es", "date-pt", "date-zh"), ("number-es", "number-it")])
def test_no_input_tested_in_one_task_is_trained_on_in_another(make, names):
    tasks = make(names, examples=300, val=100, test=200)
    for split, other in (("train", "test"), ("train", "val"), ("val", "test")):
        one, two = ({text for task in tasks for text in inputs(task, each)} for each in (split, other))
        assert not one & two


def test_the_same_content_is_held_out_though_the_inputs_differ(make):
    there, back = make(["scan-126", "scan-127"], examples=40, val=15, test=15)
    tested = {example.outputs[0] for example in there.splits["test"]}
    assert not tested & set(inputs(back, "train"))
    assert not set(inputs(back, "test")) & {example.outputs[0] for example in there.splits["train"]}
    with_category, without = make(["odd-man-out-141", "odd-man-out-142"], examples=40, val=15, test=15)
    tested = {text.rpartition(" a")[2].partition(",")[0] for text in inputs(without, "test")}
    trained = {text.rpartition(" a")[2].partition(",")[0] for text in inputs(with_category, "train")}
    assert not tested & trained


def test_a_word_is_held_out_in_all_families_of_words_whatever_its_case(make):
    names = ["letters-capitalize_first_letter", "letters-lowercase_first_letter", "words-antonym"]
    tasks = make(names, examples=40, val=15, test=15)
    for split, other in (("train", "test"), ("train", "val"), ("val", "test")):
        one, two = ({text.lower() for task in tasks for text in inputs(task, each)} for each in (split, other))
        assert not one & two
    assert {example.outputs for example in tasks[0].splits["train"]} == {("W",)}


def test_people_are_never_tested_on_what_another_was_trained_on(make):
    tasks = make(["annotator-01", "annotator-02"], examples=50, val=20, test=30)
    tested, validated, trained = (
        {text for task in tasks for text in inputs(task, s)} for s in ("test", "val", "train")
    )
    assert not tested & trained
    assert not tested & validated
    assert not trained & validated
    assert all(int(text.split()[1]) >= 200 for text in tested), "the test file's"
    raters = make(["rater-000", "rater-012"], examples=80, val=0, test=30)
    assert all(len(text) <= 160 for task in raters for split in SPLITS for text in inputs(task, split))
    assert inputs(raters[0], "train") != inputs(raters[1], "train"), "each in an order of its own"
    with pytest.raises(ConfigError, match="val: expected 1, found 0"):
        make(["rater-000"], val=1)


def test_all_training_examples_of_a_client_can_be_used_and_long_answers_are_left_out(make):
    (all_of_them,) = make(["flan-text_formatting"], examples=96, val=0, test=96)
    assert all(len(example.outputs[0]) < 140 for split in SPLITS for example in all_of_them.splits[split])
    (some,) = make(["flan-text_formatting"], examples=60, val=36, test=0)
    assert inputs(all_of_them, "train")[:60] == inputs(some, "train")
    assert not set(inputs(some, "train")) & set(inputs(some, "val"))
    with pytest.raises(ConfigError, match="val: expected 37, found 36"):
        make(["flan-text_formatting"], examples=60, val=37)


def test_choices_are_stated_where_the_answers_are_a_closed_set(make):
    choices = {task.name: task.choices for task in make()}
    assert choices["annotator-01"] == ("hateful", "not hateful")
    assert choices["flan-paraphrase"] == ("no", "yes")
    assert choices["date-es"] == choices["words-antonym"] == choices["flan-text_formatting"] == ()
    (rater,) = make(["rater-000"], val=0)
    assert rater.choices == ("1", "2", "3", "4", "5")


def test_dates_are_those_of_cldr(make):
    from datetime import date

    (task,) = make(["date-fr"])
    for example in task.splits["train"]:
        assert example == date_example(date.fromisoformat(example.input), find_locale("fr"))


def test_numbers_are_of_mixed_lengths_and_right(make):
    (task,) = make(["number-en"], examples=200)
    words = {int(example.input): example.outputs[0] for example in task.splits["train"]}
    lengths = [len(str(number)) for number in words]
    assert all(lengths.count(digits) >= 30 for digits in (2, 3, 4))
    for number, text in enumerate(["zero", "one", "two", "three", "four", "five"]):
        assert words.get(number, text) == text
    (german,) = make(["number-de"], examples=200)
    assert all(" " not in example.outputs[0] for example in german.splits["train"])


def test_long_examples_and_those_of_another_split_are_left_out(make):
    (codah,) = make(["codah-156"], examples=40, val=10, test=10)
    assert all(len(text) <= 160 and " \n" not in text for split in SPLITS for text in inputs(codah, split))
    (irony,) = make(["tweet-irony"], examples=40, val=40, test=41)
    assert [sum(text == "in all three" for text in inputs(irony, split)) for split in SPLITS] == [0, 0, 1]


def test_tweets_stay_in_the_splits_of_their_files(make):
    (task,) = make(["tweet-irony"], examples=20, val=20, test=20)
    for split, start in (("train", 0), ("val", 1000), ("test", 2000)):
        numbers = [int(text.split()[1]) for text in inputs(task, split) if text != "in all three"]
        assert all(start <= number < start + 1000 for number in numbers)


def test_an_unknown_name_lists_the_families(make):
    with pytest.raises(ConfigError, match=r'found "poem-7"; known: date-: .*date-es.*tweet-: .*tweet-irony'):
        make(["date-es", "poem-7"])
    for prefix, about in family_descriptions().items():
        assert f": {prefix}-" in about


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("date-xx", "Babel knows no locale 'xx'"),
        ("number-xx", 'expected a language that num2words knows, found "xx"; known: .*, de, '),
        ("number-am", 'num2words could not write .* in "am"'),
        ("scan-130", 'found "scan-130"; known: scan-126, scan-127, scan-128, scan-129'),
        ("odd-man-out-144", "known: odd-man-out-141, odd-man-out-142, odd-man-out-143"),
        ("codah-157", "known: codah-156"),
        ("tweet-spam", "known: tweet-emotion, tweet-irony, "),
        ("scan-128", r"expected one file .*task128_\*\.json, found task126_scan.json, task127_scan.json, "),
        ("letters-vowels", "known: letters-capitalize, letters-capitalize_first_letter, "),
        ("words-synonym", "expected the file .*synonym.jsonl, found none"),
        ("flan-poetry", "known: flan-coreference, flan-entailment, "),
        ("annotator-1", 'with a number of 2 digits, found "annotator-1"'),
        ("rater-../x", "with a number of 3 digits"),
        ("annotator-21", "expected the folder .*annotator_21, found none"),
        ("tweet-emotion", "expected the folder .*emotion, found none"),
    ],
)
def test_an_unknown_variant_lists_the_variants(make, name, message):
    with pytest.raises(ConfigError, match=message):
        make([name])


def test_too_few_examples_are_counted(make):
    with pytest.raises(ConfigError) as caught:
        make(["codah-156"], examples=200, val=3, test=5)
    assert 'too few examples for task "codah-156"' in str(caught.value)
    (fault,) = caught.value.faults
    assert fault.startswith("train: expected 200, found ")
    with pytest.raises(ConfigError, match="val: expected 41, found 40"):
        make(["tweet-irony"], val=41)


def test_wrong_sizes_regimes_and_repeated_names_are_refused(make):
    with pytest.raises(ConfigError, match="found twice: date-es"):
        make(["date-es", "date-pt", "date-es"])
    with pytest.raises(ConfigError, match='expected the regime "implicit" or "explicit", found "both"'):
        make(regime="both")
    with pytest.raises(ConfigError, match="no negative number of examples, found val: -1"):
        make(val=-1)


def test_the_data_folder_comes_from_the_environment(data, tmp_path, monkeypatch):
    sizes = {"examples": 2, "val": 1, "test": 1, "seed": 0, "regime": "implicit"}
    monkeypatch.setenv("COLORA_DATA", str(data))
    assert make_tasks(["codah-156"], **sizes) == make_tasks(["codah-156"], **sizes, data=data)
    monkeypatch.setenv("COLORA_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match=r"expected the folder .*nowhere.*COLORA_DATA, or by `data`"):
        make_tasks(["codah-156"], **sizes)
    assert make_tasks(["date-es", "number-de"], **sizes), "tasks that are not read from files need no folder"


@pytest.mark.parametrize(
    ("package", "name", "message"),
    [
        ("babel", "date-es", r"pip install \"colora\[demo\]\""),
        ("num2words", "number-de", r"pip install \"colora\[compare\]\""),
    ],
)
def test_a_missing_package_is_named(make, monkeypatch, package, name, message):
    real = builtins.__import__

    def missing(module, *args, **kwargs):
        if module.split(".")[0] == package:
            raise ImportError(module)
        return real(module, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=message):
        make([name])


def test_groups_hold_tasks_that_differ_and_could_be_made():
    for group, names in GROUPS.items():
        assert group_tasks(group) == names
        assert group.endswith((f"-{len(names)}", "-a", "-b"))
        assert len(set(names)) == len(names)
        assert all(name.startswith(tuple(f"{prefix}-" for prefix in family_descriptions())) for name in names)
        assert all(fits_name_rule(name) for name in names)
    assert GROUPS["similar-32"][:8] == GROUPS["similar-8"]
    assert GROUPS["dates-4"] == GROUPS["similar-8"][:4]
    assert len({*GROUPS["annotators-a"], *GROUPS["annotators-b"]}) == 20
    assert GROUPS["half-8"][:4] == GROUPS["similar-8"][:4]


def test_an_unknown_group_lists_the_groups():
    with pytest.raises(ConfigError, match='found "similar-9"; known: similar-8, half-8'):
        group_tasks("similar-9")


def test_similar_dates_are_not_the_same_dates(make):
    """Tasks with the same answers would be one task under two names."""
    from datetime import date

    days = [date(2008, month, day) for month in range(1, 13) for day in (1, 17)]
    written = {
        name: [date_example(day, find_locale(name.removeprefix("date-"))).outputs[0] for day in days]
        for name in {*GROUPS["similar-32"], *GROUPS["unrelated-dates-8"]}
    }

    def alike(one, other):
        return sum(x == y for x, y in zip(written[one], written[other], strict=True))

    def most(names):
        return max(alike(one, other) for one in names for other in names if one < other)

    assert most(GROUPS["similar-8"]) <= 8
    assert most(GROUPS["similar-32"]) <= 12
    assert most(GROUPS["unrelated-dates-8"]) == 0
