"""Every table of the report, by its values, and the same as Markdown."""

import re

import pytest

from colora.errors import ColoraError
from colora.experiments.methods.registry import METHODS
from colora.experiments.report.costs import federated_table, storage_tables
from colora.experiments.report.efficiency import multiplier_tables
from colora.experiments.report.gather import Experiment
from colora.experiments.report.markdown import main_table_markdown, sections_markdown, table_markdown
from colora.experiments.report.methods import is_rival
from colora.experiments.report.overview import experiments_table, facts, failed_table, methods_table
from colora.experiments.report.quality import main_table, settings_table
from colora.experiments.report.sections import Warn, report_sections
from colora.experiments.report.setbacks import setbacks
from colora.experiments.report.tables import Entry, bytes_text, count_text, mean_text, table
from tests.helpers.trial_records import record, rich_records, scores


def shown(*records):
    experiment = Experiment.of("x", list(records))
    (place,) = experiment.places
    return main_table(experiment, place)


def comparison(seeds=(0, 1, 2)):
    qualities = {"base": 10, "local": 50, "pooled": 59, "colora": 60}
    found = [record(method, quality + s, s) for method, quality in qualities.items() for s in seeds]
    return [one for one in found if (one.trial.method, one.trial.seed) != ("pooled", 2)] + [record("pooled", 65, 2)]


# ---- quality -----------------------------------------------------------------------------------------------------


def test_the_main_table():
    """pooled is behind colora by 1 at two seeds and ahead by 3 at the third: they cannot be told apart."""
    found = shown(*comparison())
    assert found.title == "dates · implicit · 16 examples a task · 3 tasks"
    assert found.column("method") == ["base", "local", "pooled", "colora"]
    assert found.column("seeds") == ["3"] * 4
    assert found.column("ROUGE-L") == ["11.0 ± 1.0", "51.0 ± 1.0", "61.3 ± 3.2", "61.0 ± 1.0 ≈"]
    assert found.column("ROUGE-L − colora")[1:] == [
        "−10.0 [−10.0, −10.0], p ≤ 0.001", found.column("ROUGE-L − colora")[2], "reference",
    ]  # fmt: skip
    assert found.column("ROUGE-L − colora")[2].startswith("+0.3 [−1.0, +3.0], p = ")
    assert found.column("token NLL")[1] == "1.490 ± 0.010"
    assert found.column("token NLL − colora")[1] == "+0.100 [+0.100, +0.100], p ≤ 0.001"
    assert found.column("trained parameters")[0] == "1\u00a0000"
    assert found.column("parameters per task")[0] == "100"
    assert found.column("training, s")[0] == "30"
    assert "bytes up" not in found.headers
    assert found.notes == ()


def test_the_best_of_each_column_is_bold_and_no_other():
    found = shown(*comparison())
    place = {header: number for number, header in enumerate(found.headers)}
    bold = {name: [row[0].text for row in found.rows if row[place[name]].bold] for name in place}
    assert bold["ROUGE-L"] == bold["token NLL"] == ["pooled"]  # the greatest ROUGE-L, the least token NLL
    assert bold["exact match, %"] == []  # all alike
    assert not any(bold[name] for name in place if name not in ("ROUGE-L", "token NLL"))


def test_exact_match_is_a_column_of_its_own():
    exact = scores([100.0, 0.0, 100.0, 100.0, 0.0, 0.0])
    found = shown(record(scores=dict.fromkeys(("red", "blue", "green"), exact)), record("local"))
    assert found.column("exact match, %") == ["0.0", "50.0"]


def test_what_was_not_measured_has_no_column_or_a_dash():
    silent = scores([], 1.5).model_copy(update={"nll": [3.0], "tokens": [2]})
    scored = dict.fromkeys(("red", "blue", "green"), silent)
    found = shown(record(scores=scored), record("local", scores=scored))
    assert "ROUGE-L" not in found.headers
    assert found.column("token NLL") == ["1.500", "1.500"]
    assert shown(record(), record("local", scores=scored)).column("ROUGE-L") == ["–", "50.0"]


def test_different_seeds_are_noted():
    found = shown(record(seed=0), record(seed=1), record("local", seed=1))
    assert found.column("seeds") == ["1", "2"]
    assert any("not run with the same seeds" in note for note in found.notes)


def test_several_settings_of_colora_and_the_choice_of_the_reference_are_noted():
    found = shown(record(core_lr=0.02, quality=50), record(core_lr=0.06, quality=60), record("local"))
    assert found.column("method") == ["local", "colora, core_lr=0.02", "colora, core_lr=0.06"]
    assert found.column("ROUGE-L − colora")[2] == "reference"
    assert any("colora, core_lr=0.06, is the setting" in note for note in found.notes)


def test_seconds_are_the_median():
    times = [record(seed=s, seconds={"train": t}) for s, t in enumerate((1.0, 2.0, 90.0))]
    assert shown(*times, record("local", seconds={})).column("training, s") == ["–", "2.0"]


def test_federated_methods_have_bytes():
    sent = {"rounds": 12, "bytes_up": 4_000_000, "bytes_down": 8_000_000}
    records = [record("fedit", **sent), record("fed-colora", 52, **sent), record("local")]
    found = shown(*records)
    assert found.column("bytes up") == ["–", "4\u00a0MB", "4\u00a0MB"]
    assert found.column("bytes down")[1] == "8\u00a0MB"
    assert "ROUGE-L − fed-colora" in found.headers
    experiment = Experiment.of("x", records)
    (place,) = experiment.places
    federated = federated_table(experiment, place)
    assert [row[0].text for row in federated.rows] == ["fedit", "fed-colora"]
    assert federated.column("rounds") == ["12", "12"]
    assert federated.column("up and down") == ["12\u00a0MB"] * 2
    assert federated.column("ROUGE-L") == ["50.0", "52.0"]


# ---- costs, settings, overview -----------------------------------------------------------------------------------


def test_storage_grows_with_tasks():
    colora = record(trainable=1600, shared_numbers=1000, task_numbers=64)
    local = record("local", trainable=3000, shared_numbers=0, task_numbers=1000)
    again = local.model_copy(update={"trial": local.trial.model_copy(update={"seed": 1})})
    (found,) = storage_tables(Experiment.of("x", [colora, local, again]))
    assert [[one.text.replace("\u00a0", " ") for one in row] for row in found.rows] == [
        ["local", "3 000", "0", "1 000", "4 kB", "40 kB", "400 kB", "4 MB"],
        ["colora", "1 600", "1 000", "64", "256 B", "6.56 kB", "29.6 kB", "260 kB"],
    ]


def test_groups_with_the_same_numbers_share_a_storage_table():
    records = [record(group="a"), record(group="b", regime="explicit"), record(group="c", task_numbers=7)]
    assert [one.title for one in storage_tables(Experiment.of("x", records))] == [
        "a · implicit · trained with 3 tasks; b · explicit · trained with 3 tasks",
        "c · implicit · trained with 3 tasks",
    ]


def test_settings_list_every_value():
    found = settings_table(Experiment.of("x", [record(core_lr=0.06), record(seed=1), record("local", rank=4)]))
    assert found.column("method") == ["local", "colora"]
    assert found.column("rank") == ["4", "8"]
    assert found.column("core_lr") == ["as lr", "as lr, 0.06"]
    assert "steps" not in found.headers
    assert "steps 60, " in found.notes[0]


def test_the_facts_count():
    other = {"date": "2026-05-01T00:00:00+00:00", "device": "H100", "git_revision": "fed456"}
    one = Experiment.of(
        "x", [record(), record("local", seed=3, environment=other), record("local", seed=4, error="died")]
    )
    found = dict(facts([one]))
    assert found["Methods"] == "local, colora"
    assert found["Trials"] == "3, of which 1 failed"
    assert found["Seeds"] == "0, 3, 4"
    assert found["Git revisions"] == "abc123 (2), fed456 (1)"
    assert found["Machines"] == "H100 (1), cpu · Linux-6 · x86_64 · 2 cores (2)"
    assert found["Dates"] == "2026-03-04 to 2026-05-01"
    assert found["Code digests"] == "c0de"


def test_failed_trials_are_listed_and_in_no_table():
    experiment = Experiment.of("x", [record(), record("pooled"), record("local", seed=2, error="the loss became NaN")])
    (row,) = failed_table([experiment]).rows
    assert [one.text for one in row] == ["x", "local", "dates", "implicit", "16", "3", "2", "the loss became NaN"]
    assert main_table(experiment, next(iter(experiment.places))).column("method") == ["pooled", "colora"]


def test_mixed_codes_are_labelled_in_every_table_of_the_experiment():
    mixed = Experiment.of("m", [record(), record("local", 70, code="beef")])
    pure = Experiment.of("p", [record(), record("local", 70)])
    note = "MIXED CODE: the trials of this experiment come from several digests of the sources: beef (1), c0de (1)."
    for one, expected in ((mixed, [note]), (pure, [])):
        place = next(iter(one.places))
        tables = [main_table(one, place), *storage_tables(one), settings_table(one), setbacks([one])[0]]
        assert [[text for text in found.notes if "MIXED" in text] for found in tables] == [expected] * 4
    assert experiments_table([mixed, pure]).column("code digests") == ["beef (1), c0de (1) MIXED", "c0de (2)"]
    warned = [
        block for section in report_sections([mixed, pure]) for block in section.blocks if isinstance(block, Warn)
    ]
    assert len(warned) == 1  # on top of the page; that of the experiment is folded
    assert "beef (1 trial), c0de (1 trial)" in warned[0].text


def test_methods_are_explained_as_far_as_known():
    found = methods_table([Experiment.of("x", [record("own-idea"), record()])])
    assert found.column("what it is") == ["Shared factors A and B, and a small core for each task.", "–"]
    assert (found.column("title"), found.column("source")) == (["CoLoRA", "–"], ["arXiv:2602.07218", "–"])


def test_every_method_of_the_registry_is_explained_in_its_order():
    records = [record(name) for name in reversed(METHODS)]
    found = methods_table([Experiment.of("x", records)])
    assert found.column("method") == list(METHODS)
    assert found.column("what it is") == [method.sentence for method in METHODS.values()]
    assert all(text.endswith(".") for text in found.column("what it is"))
    unsourced = [name for name, source in zip(METHODS, found.column("source"), strict=True) if "arXiv:" not in source]
    assert unsourced == ["base", "frequencies"]


# ---- multipliers and setbacks ------------------------------------------------------------------------------------


def test_multipliers():
    tables = multiplier_tables(Experiment.of("x", rich_records()))
    assert [one.title for one in tables] == [
        "dates · implicit · 3 tasks: multiplier", "dates · explicit · 3 tasks: multiplier",
    ]  # fmt: skip
    for one in tables:
        assert one.column("colora at n") == ["8", "16", "32"]
        for metric in ("ROUGE-L", "token NLL"):
            assert one.column(metric) == [
                "2.00× [2.00×, 2.00×]", "2.00× [2.00×, 2.00×]", "≥ 1.00× [≥ 1.00×, ≥ 1.00×]",
            ]  # fmt: skip


def test_a_tuning_experiment_has_no_multipliers():
    records = [record("local", lr=lr, examples=n) for lr in (1e-3, 2e-3) for n in (8, 16)]
    assert multiplier_tables(Experiment.of("x", [*records, record(examples=8), record(examples=16)])) == []


def test_every_place_where_colora_is_behind_is_listed():
    found, compared = setbacks([Experiment.of("x", rich_records())])
    assert compared == 6 + 4  # dates: 3 n × 2 regimes; few: 2 numbers of tasks × 2 regimes
    (row,) = found.rows
    assert [one.text for one in row] == [
        "dates · explicit · 32 examples a task · 3 tasks", "ROUGE-L", "colora 71.0", "pooled 96.0",
        "−25.0 [−25.0, −25.0], p ≤ 0.001", "x",
    ]  # fmt: skip


def test_what_several_experiments_share_is_one_setback():
    records = [record(), record("local", 70)]
    found, compared = setbacks([Experiment.of("x", records), Experiment.of("y", records)])
    assert (compared, found.column("experiment")) == (2, ["x, y"])


def test_setbacks_are_judged_by_likelihood_where_nothing_was_generated():
    def silent(nll):
        one = scores([], nll).model_copy(update={"nll": [nll], "tokens": [1]})
        return dict.fromkeys(("red", "blue", "green"), one)

    found, compared = setbacks([Experiment.of("x", [record(scores=silent(1.5)), record("local", scores=silent(1.0))])])
    assert (compared, found.column("measure"), found.column("difference")) == (
        1, ["token NLL"], ["+0.500 [+0.500, +0.500], p ≤ 0.001"],
    )  # fmt: skip
    ahead, compared = setbacks([Experiment.of("x", [record(), record("pooled-matched", 49)])])
    assert (compared, ahead.rows) == (1, ())


@pytest.mark.parametrize(
    ("name", "rival"),
    [("base", True), ("local-matched", True), ("pooled", True), ("lora-xs", True), ("colora", False),
     ("fedit", False), ("mtl-lora", False), ("local-of-ours", True), ("elsewhere", False)],
)  # fmt: skip
def test_who_does_without_collaboration(name, rival):
    assert is_rival(name) == rival


# ---- Markdown ----------------------------------------------------------------------------------------------------


def test_a_main_table_for_a_readme():
    columns = ["method", "ROUGE-L", "ROUGE-L − colora"]
    found = main_table_markdown(comparison(), "dates", "implicit", columns=columns, methods=["local", "colora"])
    assert found == (
        "| method | ROUGE-L | ROUGE-L − colora |\n| --- | --- | --- |\n"
        "| local | 51.0 ± 1.0 | −10.0 [−10.0, −10.0], p ≤ 0.001 |\n| colora | **61.0 ± 1.0** | reference |\n"
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"group": "none"}, "expected one place with group='none'.*found 0; there are: clients · implicit · 16"),
        ({}, "found 3; there are: dates · implicit · 8 .*; dates · implicit · 16 .*; dates · implicit · 32"),
        ({"examples": 8, "columns": ["speed"]}, "expected columns of method, seeds, .*; found speed"),
    ],
)
def test_a_main_table_that_is_not_there(changes, message):
    given = {"group": "dates", "regime": "implicit"} | changes
    with pytest.raises(ColoraError, match=message):
        main_table_markdown(rich_records(), **given)


def test_markdown_marks_bold_and_escapes():
    found = table_markdown(table("a *b*", ["x|y"], [[Entry("<b>`1`</b>\n[c](d)", bold=True)]], ["5 > 4"]))
    assert found == (
        "**a \\*b\\***\n\n| x\\|y |\n| --- |\n| **&lt;b&gt;\\`1\\`&lt;/b&gt; [c]\\(d)** |\n\n5 &gt; 4\n"
    )  # fmt: skip


def test_the_whole_report_as_markdown_has_the_tables_of_every_section():
    found = sections_markdown(report_sections([Experiment.of("x", rich_records())]))
    headings = re.findall(r"^#+ .*", found, flags=re.MULTILINE)
    assert headings == [
        "# Report", "## What was found", "### The figures in numbers", "## By likelihood, in nats", "## Curves",
        "## Methods", "## Where collaboration does not help", "## Appendix", "### How the numbers are made",
        "### Experiment x: 5 groups; 132 trials", "#### Quality", "#### Curves by other measures",
        "#### Similarity of tasks: cosine of their updates, the mean over seeds", "#### Parameters and storage",
        "#### Settings", "### Failed trials", "### Records, code and machines",
    ]  # fmt: skip
    assert "At 1 of the 10 places compared." in found
    assert "| local | 3 | 41.0 ± 1.0 |" in found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (bytes_text(0), "0 B"), (bytes_text(999), "999 B"), (bytes_text(53_760), "53.8 kB"),
        (bytes_text(999_900), "1 MB"), (bytes_text(9.8e6), "9.8 MB"), (bytes_text(2.5e9), "2.5 GB"),
        (bytes_text(1.2e13), "12 000 GB"), (count_text(1234567), "1 234 567"), (count_text(12), "12"),
        (mean_text(1.25, None, 1), "1.2"), (mean_text(1.0, 0.5, 3), "1.000 ± 0.500"), (mean_text(None, None, 1), "–"),
    ],
)  # fmt: skip
def test_numbers_are_written_for_readers(text, expected):
    assert text.replace("\u00a0", " ") == expected
