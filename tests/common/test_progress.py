"""The progress bar: on standard error, where that is a terminal, and the only one of the project."""

import ast

import pytest

from colora.common import progress
from colora.common.progress import progress_bar
from tests.helpers.import_graph import modules


@pytest.mark.parametrize(
    ("terminal", "shown", "seen"), [(True, True, True), (True, False, False), (False, True, False)]
)
def test_a_bar_is_shown_on_a_terminal_only(monkeypatch, capsys, terminal, shown, seen):
    console = progress.Console
    monkeypatch.setattr(progress, "Console", lambda stderr: console(stderr=stderr, force_terminal=terminal))
    with progress_bar(shown=shown) as bar:
        bar.advance(bar.add_task("onboarding", total=2))
    captured = capsys.readouterr()
    assert ("onboarding" in captured.err) == seen
    assert captured.out == ""


def test_elsewhere_a_line_tells_now_and_then(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with progress_bar() as bar:
        task = bar.add_task("onboarding", total=20)
        for _ in range(10):
            now[0] += 10
            bar.advance(task)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"onboarding: {done} of 20" for done in (4, 7, 10)]
    with progress_bar(shown=False) as bar:
        task = bar.add_task("onboarding", total=2)
        now[0] += 100
        bar.advance(task)
        now[0] += 100
        bar.advance(task)
    assert capsys.readouterr().err == ""


def test_there_is_one_progress_bar():
    makers = []
    for path, module, _ in modules():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            used = [node.func] if isinstance(node, ast.Call) else node.bases if isinstance(node, ast.ClassDef) else []
            makers += [module for one in used if ast.unparse(one).split(".")[-1] in ("Progress", "track", "tqdm")]
    assert makers == ["colora.common.progress"]
