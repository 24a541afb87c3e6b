"""The page of a comparison says what its verdict says, and nothing else."""

import json
import re
from html import unescape

import pytest

from colora.experiments.own.contenders import CONTENDERS
from colora.experiments.own.verdict.measure import EXACT_MATCH, NATS
from colora.experiments.own.verdict.sentences import gain_text
from colora.experiments.trial import TaskScores, TrialRecord
from tests.helpers.own_tasks import QuickRunner, compare_quickly
from tests.helpers.run_files import run_file, save_base

NUMBER = r"[−+-]?\d+\.\d+"
INTERVAL = re.compile(rf"95 % interval ({NUMBER}) to ({NUMBER})|\[({NUMBER}), ({NUMBER})\]")
LIKELIHOOD = {"local": (0.3, 0.3, 0.3), "colora": (0.3, 0.7, 0.25), "pooled": (0.9, 0.9, 0.9)}  # nats of the tasks
TITLES = {one.method: one.title for one in CONTENDERS}


class OneTaskAhead(QuickRunner):
    """A LoRA each and CoLoRA find as many right answers; the first finds those of one task of three likelier.

    If the three tasks stood for others, chance could explain that; for these three it is certain.
    """

    def run(self, trial, tasks, progress=None):
        if trial.method in ("local", "colora") and trial.split == "test" and not trial.seed:
            super(QuickRunner, self).run(trial, tasks)  # in earnest, for the adapters
        right = [100.0 if trial.method in LIKELIHOOD and number % 3 else 0.0 for number in range(8)]
        found = {
            task.name: TaskScores(nll=[nats] * 8, tokens=[1] * 8, rougeL=right, exact_match=right)
            for task, nats in zip(tasks, LIKELIHOOD.get(trial.method, (5.0, 5.0, 5.0)), strict=True)
        }
        return TrialRecord(trial=trial, scores=found, seconds={"train": 0.1, "evaluate": 0.1})


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """The verdict, and the rows of cells and the whole text of its page."""
    folder = tmp_path_factory.mktemp("compared")
    for name in "abc":
        rows = [{"input": f"{name} {number}", "output": name} for number in range(40)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    file = run_file(folder, save_base(folder / "base", chat=False), [{"path": f"{name}.jsonl"} for name in "abc"])
    verdict, _, _ = compare_quickly(file, folder / "c", OneTaskAhead)
    page = re.sub(
        r"<style>.*?</style>|<svg.*?</svg>", "", (folder / "c" / "report.html").read_text("utf-8"), flags=re.S
    )
    return verdict, page


def words(html):
    return unescape(re.sub(r"<[^>]+>", " ", html))


def test_every_interval_of_the_page_is_one_of_the_verdict(compared):
    verdict, page = compared
    assert (verdict.recommended, verdict.runner_up, verdict.as_good) == ("local", "colora", ["local"])
    assert "which decides: its token NLL is lower by 0.117 (95 % interval 0.117 to 0.117)." in verdict.sentences[1]
    gains = [(verdict.gain, EXACT_MATCH), (verdict.gain_nats, NATS), (verdict.gain_over_base, EXACT_MATCH)]
    for one in verdict.outcomes[1:]:
        gains += [(one.behind, EXACT_MATCH), (one.behind_nats, NATS)]
    told = {INTERVAL.search(gain_text(*one)).groups() for one in gains}
    shown = {found.groups() for found in INTERVAL.finditer(words(page))}
    assert shown == told


def test_the_page_marks_what_the_verdict_calls_as_good(compared):
    verdict, page = compared
    rows = re.findall(r'<tr><th scope="row"[^>]*>(.*?)</th>(<td.*?)</tr>', page)
    marked = [
        re.search(r"\((.*)\)", words(name))[1] for name, cells in rows if re.search('class="best"|<i>≈</i>', cells)
    ]
    assert marked == verdict.as_good


def test_the_page_has_one_name_for_a_measure_and_none_for_the_digest(compared):
    verdict, page = compared
    assert verdict.measure == "exact match"
    assert "accuracy" not in words(page)
    assert not re.search("tasks-[0-9a-f]{8}", page)
    assert all(TITLES[one.method] in words(page) for one in verdict.outcomes)
