"""What the README says is what happens: its example runs, its figures are those of the records."""

import json
import re
from pathlib import Path
from statistics import fmean, stdev

import pytest

from benchmarks.adapter.million import table as million_table
from benchmarks.adapter.step import summary_markdown as step_markdown
from benchmarks.adapter.stored import table as stored_table
from benchmarks.architectures.table import table as architectures_table
from benchmarks.cli.startup import table as startup_table
from benchmarks.compare.chosen import (
    choices_markdown,
    federated_choices_markdown,
    federated_markdown,
    prompts_markdown,
    recipe_markdown,
    rotation_markdown,
)
from benchmarks.compare.shrinkage import table as shrinkage_table
from benchmarks.compare.summary import (
    costs_markdown,
    federated_real_markdown,
    groups_markdown,
    leads_markdown,
    main_markdown,
    means_markdown,
    methods_markdown,
    multiplier_markdown,
    quality_and_bytes_markdown,
    regret_markdown,
    rounding_markdown,
    tuning_markdown,
)
from benchmarks.federated.federation import choices_table
from benchmarks.federated.federation import table as federation_markdown
from benchmarks.importing.import_demo import table as import_table
from benchmarks.serving.attack import table as attack_table
from benchmarks.serving.engines import table as engines_table
from benchmarks.serving.same_answers import table as same_answers_table
from benchmarks.serving.serving import table as serving_table
from benchmarks.training.spectral import table as spectral_table
from benchmarks.training.steadiness import RECORD as STEADINESS
from benchmarks.training.steadiness import read as read_steadiness
from benchmarks.training.steadiness import table_markdown as steadiness_markdown
from benchmarks.transfer.grouping import table as grouping_table
from benchmarks.transfer.newcomers import table as newcomers_table
from benchmarks.transfer.onboarding import H200_RECORD
from benchmarks.transfer.onboarding import table as onboarding_table
from benchmarks.transfer.recipes import table as recipes_table
from benchmarks.transfer.transfer import table as transfer_table
from benchmarks.transfer.updating import table as updating_table
from colora.experiments.load import load_experiment
from colora.experiments.run import chosen_trials
from colora.experiments.trial import read_trial_records
from tests.helpers.docs import README, ROOT, between, doc
from tests.helpers.tiny import tiny_llama, tiny_tokenizer

pytestmark = pytest.mark.records

FEDERATED = doc("federated.md")
TASKS = doc("tasks.md")
SERVING = doc("serving.md")
MADE_PAGES = re.findall(r'"(reference/\w+\.md)"', doc("hooks.py"))
DECISION_FILES = sorted((ROOT / "docs" / "decisions").glob("*.md"))
DECISIONS = "\n".join(path.read_text(encoding="utf-8") for path in DECISION_FILES)


def test_the_example_runs_and_leaves_plain_loras(tmp_path, monkeypatch):
    tiny_llama().save_pretrained(tmp_path / "base")
    tiny_tokenizer(chat=False).save_pretrained(tmp_path / "base")
    (code,) = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(compile(code.replace('"smollm2"', '"base"'), "README.md", "exec"), {})
    assert sorted(path.name for path in (tmp_path / "loras").iterdir()) == ["casual", "formal", "polite"]
    assert (tmp_path / "loras" / "polite" / "adapter_model.safetensors").is_file()


@pytest.mark.parametrize(
    ("text", "name", "table"),
    [
        (README, "quality and bytes", quality_and_bytes_markdown),
        (doc("method.md"), "real", lambda: methods_markdown("real", regime="implicit")),
        (DECISIONS, "leads", leads_markdown),
        (DECISIONS, "means", means_markdown),
        (DECISIONS, "main", main_markdown),
        (DECISIONS, "groups", groups_markdown),
        (DECISIONS, "regret", lambda: regret_markdown("similarity")),
        (FEDERATED, "federation", federation_markdown),
        (DECISIONS, "federation choices", choices_table),
        (TASKS, "import", import_table),
        (TASKS, "transfer", transfer_table),
        (TASKS, "onboarding", onboarding_table),
        (DECISIONS, "updating", updating_table),
        (DECISIONS, "newcomers", newcomers_table),
        (DECISIONS, "onboarding choices", lambda: onboarding_table(choices=True)),
        (DECISIONS, "onboarding choices, H200", lambda: onboarding_table(True, H200_RECORD)),
        (SERVING, "serving", serving_table),
        (SERVING, "engines", engines_table),
        (doc("many-tasks.md"), "stored", stored_table),
        (doc("many-tasks.md"), "million", million_table),
        (SERVING, "same answers", same_answers_table),
        (SERVING, "attack", attack_table),
        (doc("architectures.md"), "architectures", architectures_table),
        (DECISIONS, "spectral", spectral_table),
        (DECISIONS, "grouping", grouping_table),
        (DECISIONS, "rounding", rounding_markdown),
        (DECISIONS, "tuning", tuning_markdown),
        (DECISIONS, "choices", choices_markdown),
        (DECISIONS, "rotation", rotation_markdown),
        (DECISIONS, "prompts", prompts_markdown),
        (DECISIONS, "recipes", recipes_table),
        (DECISIONS, "federated turned", federated_markdown),
        (DECISIONS, "federated choices", federated_choices_markdown),
        (FEDERATED, "real federated", federated_real_markdown),
        (DECISIONS, "recipe", recipe_markdown),
        (DECISIONS, "costs", costs_markdown),
        (DECISIONS, "shrinkage", shrinkage_table),
        (DECISIONS, "regret real", lambda: regret_markdown("real")),
        (DECISIONS, "startup", startup_table),
        (DECISIONS, "steadiness", lambda: steadiness_markdown(read_steadiness(STEADINESS))),
    ],
    ids=lambda value: value if isinstance(value, str) and len(value) < 20 else "",
)
def test_the_tables_are_those_of_the_records(text, name, table):
    assert between(text, name) == table()


def test_the_multipliers_are_those_of_the_records():
    told = " ".join(re.search(r"With the same number of steps.*?\n\n", DECISIONS, flags=re.DOTALL)[0].split())
    rows = [[cell.strip() for cell in line.split("|")[2:5]] for line in multiplier_markdown().splitlines()[2:]]
    (few, by_rouge_4, by_nll_4), (more, by_rouge_16, by_nll_16) = (
        (n, rouge.split(" [")[0], nll.split(" [")[0]) for n, rouge, nll in rows
    )
    assert (
        f"it needs {by_rouge_4} the examples where CoLoRA has {few}, and {by_rouge_16} where CoLoRA has {more}. "
        f"By likelihood it needs {by_nll_4} and {by_nll_16}." in told
    )


def test_the_gain_that_is_none_is_that_of_the_records():
    (row,) = [line.split("|") for line in groups_markdown().splitlines() if line.startswith("| similar | explicit")]
    assert f"one LoRA for all does as well ({row[4].strip()} and {row[5].strip()})" in " ".join(DECISIONS.split())


def test_the_regret_that_is_told_is_that_of_the_records():
    (row,) = [line for line in means_markdown().splitlines() if line.startswith("| implicit")]
    told = re.search(
        r"it is ([\d.]+)\s+points\s+in the mean.*?([\d.]+)\s+behind\s+to ([\d.]+) ahead.*?worth ([\d.]+)",
        README,
        re.DOTALL,
    )
    assert list(told.groups()) == re.findall(r"\d+\.\d", row)


def test_what_a_newcomer_gets_is_that_of_the_records():
    rouge = {cells[1].strip(): cells[2].split()[0] for line in onboarding_table().splitlines()
             if len(cells := line.split("|")) > 2}  # fmt: skip
    told = re.search(r"ROUGE-L ([\d.]+) in a language.*?anew with it gives ([\d.]+) and.*?([\d.]+);", README, re.DOTALL)
    assert told.groups() == tuple(rouge[name] for name in ("extended", "retrained, seven tasks", "own LoRA"))


def test_the_seconds_of_new_tasks_together_are_those_of_the_record():
    rows = [[cell.strip() for cell in line.split("|")] for line in newcomers_table().splitlines()]
    seconds = {cells[1]: f"{float(cells[5]):.0f}" for cells in rows[2:]}
    told = re.search(r"a task took (\d+) seconds of (\d+) onboarded together and (\d+) alone", TASKS)
    count = next(cells[3] for cells in rows if cells[1] == "together")
    assert told.groups() == (seconds["together"], count, seconds["one by one"])


def test_the_cost_of_a_million_tasks_is_that_of_the_record():
    rows = [line.split("|") for line in stored_table().splitlines() if line.startswith("| 1 000 000 |")]
    (memory, _), (disk, cold) = [[cell.strip() for cell in row[4:6]] for row in rows]
    told = re.search(
        r"a million tasks in memory took\s+(.*?) of eight .*? on disk (.*?) when\s+warm and ([^.]*\..*?) when\s+cold",
        DECISIONS,
        re.DOTALL,
    )
    assert [" ".join(one.split()) for one in told.groups()] == [memory, disk, cold]


def test_the_lead_over_a_lora_each_is_that_of_the_records():
    means = {cells[1].strip(): float(cells[2].split()[0]) for line in quality_and_bytes_markdown().splitlines()[2:]
             if "–" not in (cells := line.split("|"))[2]}  # fmt: skip
    told = re.search(r"and ([\d.]+) points ahead of one\s+LoRA each", README)
    assert float(told[1]) == pytest.approx(means["CoLoRA"] - means["one LoRA each"], abs=0.051)


def test_what_a_newcomer_costs_is_that_of_the_records():
    told = {cells[1].strip(): cells[-2].strip() for line in onboarding_table().splitlines()
            if len(cells := line.split("|")) > 2}  # fmt: skip
    costs = re.search(r"The small core\s+costs (\d+ kB);\s+extended, a task costs (\d+ kB \+ [\d.]+ MB)", README)
    assert costs.groups() == (told["onboarded"], told["extended"])
    assert told["second of its kind"] == told["extended"].split(" + ")[0]


def test_the_cost_of_a_step_is_that_of_the_record():
    record = json.loads((ROOT / "benchmarks" / "adapter" / "records" / "step.json").read_text(encoding="utf-8"))
    (row,) = [line for line in step_markdown(record).splitlines() if "bank of 1024 tasks" in line]
    assert re.search(r"bank of 1024 tasks costs ([\d.]+) \(", README)[1] == row.split("|")[3].strip()


def test_the_command_for_one_row_is_that_row():
    file, only = re.search(r"colora compare (\S+) --only '(.*?)' --threads 1", DECISIONS).groups()
    trials = chosen_trials(load_experiment(ROOT / file), only)
    assert {(trial.method, trial.group, trial.regime) for trial in trials} == {("colora", "similar-8", "implicit")}
    assert [trial.seed for trial in trials] == [0, 1, 2]


def test_what_rounding_did_is_told():
    records = read_trial_records(ROOT / "benchmarks" / "compare" / "records" / "stability.jsonl")
    again = [record for record in records if record.trial.method == "colora"]
    assert {record.environment["threads"] for record in again} == {2}
    means = [record.mean("rougeL") for record in again]
    assert f"{fmean(means):.1f} ± {stdev(means):.1f}" in DECISIONS


@pytest.mark.parametrize("link", sorted(set(re.findall(r"\]\((?!http)([^)#]+)", README))))
def test_links_lead_somewhere(link):
    assert (ROOT / link).exists()


def headings(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", [*sorted((ROOT / "docs").glob("*.md")), *DECISION_FILES], ids=lambda page: page.stem)
def test_links_of_the_docs_lead_somewhere(page):
    for link in re.findall(r"\]\((?!http)([^)]+)", page.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() or path in MADE_PAGES, link
        assert not anchor or anchor in headings(target), link


def test_every_decision_file_is_in_the_index():
    index = (ROOT / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    assert {path.name for path in DECISION_FILES} - set(re.findall(r"^\| \[(.*?)\]", index, flags=re.MULTILINE)) == {
        "README.md"
    }
