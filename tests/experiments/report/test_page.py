"""The page and its figures: what they hold, that names cannot break them, and that they do not change by themselves."""

import ast
import re
import subprocess
import sys
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from colora.errors import ColoraError
from colora.experiments.report.build import write_report
from colora.experiments.report.drawing.draw import draw
from colora.experiments.report.drawing.svg import look
from colora.experiments.report.gather import Experiment
from colora.experiments.report.page import page
from colora.experiments.report.panels import (
    collaborator_panels,
    efficiency_panels,
    federated_panels,
    similarity_maps,
    styles,
    sweep_panels,
)
from colora.experiments.report.sections import report_sections
from colora.experiments.trial import write_trial_records
from tests.helpers.run_files import cli
from tests.helpers.trial_records import record, rich_records

EVIL = '<script>alert("x")</script>&\' $\\frac{$ _a'
ROOT = Path(__file__).parents[3]
MOST_BYTES = 500_000


class Elements(HTMLParser):
    """Counts elements, checks that they close, and keeps ids and what is linked."""

    VOID = ("meta", "link", "br")

    def __init__(self, text):
        super().__init__()
        self.names, self.open, self.ids, self.texts = [], [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.names.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.names.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


def html(*records, name="x"):
    return page(report_sections([Experiment.of(name, list(records))]), "Report")


@pytest.fixture(scope="module")
def rich():
    return html(*rich_records())


def experiment():
    return Experiment.of("x", rich_records())


# ---- figures as data ---------------------------------------------------------------------------------------------


def test_curves_over_examples():
    one = experiment()
    panels = efficiency_panels(one, styles([one]))
    assert [panel.title for panel in panels] == [
        f"{metric} · dates · {regime} · 3 tasks"
        for regime in ("implicit", "explicit")
        for metric in ("ROUGE-L", "exact match, %", "token NLL")
    ]
    lines = {line.label: line for line in panels[0].lines}
    assert list(lines) == ["base", "local", "pooled", "colora"]
    assert lines["colora"].x == (8, 16, 32)
    assert lines["colora"].mean == pytest.approx((51, 61, 71))
    assert lines["colora"].low == pytest.approx((50, 60, 70))
    assert lines["colora"].high == pytest.approx((52, 62, 72))
    assert panels[0].scale == "log2"
    assert "colora: 51 at 8, 61 at 16, 71 at 32" in panels[0].text


def test_curves_over_tasks():
    one = experiment()
    panel = collaborator_panels(one, styles([one]))[0]
    assert panel.title == "ROUGE-L · few · implicit · 16 examples a task"
    assert panel.scale == "log2"
    assert {line.label: line.mean for line in panel.lines} == {
        "local": pytest.approx((51, 51)), "colora": pytest.approx((57, 60)),
    }  # fmt: skip


def test_sweeps_over_rank_and_rates():
    swept = [record(rank=r, seed=s, quality=50 + r + s) for r in (2, 4, 8) for s in (0, 1)]
    swept += [record(core_lr=rate, group="rates") for rate in (0.02, 0.06, 0.2)]
    swept += [record(core_lr=rate, group="two") for rate in (0.02, 0.06)]  # two are in the table
    one = Experiment.of("x", swept)
    panels = [panel for panel in sweep_panels(one, styles([one])) if panel.y_label == "ROUGE-L"]
    assert [(panel.x_label, [(line.label, line.x) for line in panel.lines]) for panel in panels] == [
        ("rank r", [("colora", (2, 4, 8))]), ("learning rate of the cores", [("colora", (0.02, 0.06, 0.2))]),
    ]  # fmt: skip


def test_a_grid_has_a_line_for_each_other_setting_and_none_for_what_follows():
    grid = [record(lr=lr, core_lr=core) for lr in (1e-3, 2e-3) for core in (0.02, 0.06, 0.2)]
    one = Experiment.of("x", grid)
    panel = next(p for p in sweep_panels(one, styles([one])) if p.x_label == "learning rate of the cores")
    assert [line.label for line in panel.lines] == ["colora, lr=0.001", "colora, lr=0.002"]
    one = Experiment.of("x", [record(rank=r, alpha=float(r)) for r in (2, 4, 8)])
    panel = next(p for p in sweep_panels(one, styles([one])) if p.x_label == "rank r")
    assert [(line.label, line.x) for line in panel.lines] == [("colora", (2, 4, 8))]


def test_quality_against_bytes():
    one = experiment()
    panel = federated_panels(one, styles([one]))[0]
    assert {line.label: line.x for line in panel.lines} == {"fedit": (12e6,), "fed-colora": (3e6,)}
    assert (panel.scale, panel.joined) == ("log10", False)


def similar(value, tasks=("a", "b", "c"), **changes):
    square = [[1.0 if i == j else value for j in range(len(tasks))] for i in range(len(tasks))]
    return record(tasks=tasks, similarity=square, **changes)


def test_similarity_is_the_mean_over_seeds_at_the_most_examples_and_tasks():
    records = [similar(0.2, seed=0), similar(0.6, seed=1), similar(0.9, examples=8), similar(0.9, ("a", "b"))]
    (found,) = similarity_maps(Experiment.of("x", records))
    assert found.title == "colora · dates · implicit · 16 examples a task · 3 tasks"
    assert found.names == ("a", "b", "c")
    assert found.values[1] == (pytest.approx(0.4), 1.0, pytest.approx(0.4))
    assert similarity_maps(Experiment.of("x", [similar(0.9, ("a", "b"))])) == []
    with pytest.raises(ColoraError, match=r"x: colora-dates.*expected a similarity of 3 × 3, found lines of 1"):
        similarity_maps(Experiment.of("x", [record(similarity=[[1.0]])]))


def test_looks_are_the_same_on_the_page_and_differ_between_methods():
    names = [f"m{number}" for number in range(40)]
    looks = styles([Experiment.of("x", [record(name) for name in names]), Experiment.of("y", [record("m3")])])
    kinds = [look(number) for number in looks.values()]
    assert len(set(kinds)) == 40
    assert len({marker for _, _, marker in kinds[:11]}) == 11  # told apart without colours
    assert look(0) == ("c1", "d0", "o")


def test_the_reference_has_the_first_look_whatever_else_is_there():
    assert styles([Experiment.of("x", [record("base"), record("local"), record()])])["colora"] == 0


def test_of_many_lines_the_reference_the_best_other_and_the_base_stand_out():
    names = {"colora": 60, "base": 5, "local": 50, **{f"m{number}": 20 + number for number in range(6)}}
    many = [record(name, quality, examples=n) for name, quality in names.items() for n in (8, 16)]
    one = Experiment.of("x", many)
    panel = next(panel for panel in efficiency_panels(one, styles([one])) if panel.y_label == "ROUGE-L")
    assert {line.label for line in panel.lines if line.strong} == {"colora", "base", "local"}
    few = Experiment.of("x", many[:4])
    assert all(line.strong for line in efficiency_panels(few, styles([few]))[0].lines)


def test_the_main_measure_and_the_rest_are_apart():
    one = experiment()
    assert {panel.y_label for panel in efficiency_panels(one, styles([one]), "main")} == {"ROUGE-L"}
    assert {panel.y_label for panel in efficiency_panels(one, styles([one]), "rest")} == {"token NLL"}


# ---- the page ----------------------------------------------------------------------------------------------------


def test_the_page_is_whole(rich):
    found = Elements(rich)
    assert len(found.ids) == len(set(found.ids))
    for target in re.findall(r'(?:href="#|url\(#)([^")]+)', rich):
        assert target in found.ids
    for name in ("script", "img", "iframe", "object"):
        assert name not in found.names
    assert found.names.count("h1") == 1
    assert found.names.count("svg") == found.names.count("figure") == found.names.count("desc") > 10


def test_headings_go_down_a_level_at_a_time(rich):
    levels = [int(level) for level in re.findall(r"<h([1-6])>", rich)]
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_every_header_of_a_table_says_what_it_is_for(rich):
    assert set(re.findall(r"<th[^>]*?(?: scope=\"(\w+)\")?[ >]", rich)) >= {"col", "row"}
    assert all('scope="' in header for header in re.findall(r"<th\b[^>]*>", rich))


def test_every_figure_is_well_formed_and_has_a_text(rich):
    figures = re.findall(r"<svg.*?</svg>", rich, flags=re.DOTALL)
    for figure in figures:
        root = ElementTree.fromstring(figure)
        assert root.get("role") == "img"
        assert root[0].text == root.get("aria-label")
        assert len(root[1].text) > 20
        assert not re.search(r"\d\.\d\d", "".join(re.findall(r' d="([^"]*)"', figure)))  # coordinates are short
        assert "style=" not in figure
    colora = next(f for f in figures if "ROUGE-L · dates · implicit · 3 tasks" in f)
    assert "colora: 51 at 8, 61 at 16, 71 at 32" in colora
    assert {"examples a task", "ROUGE-L", "local"} <= set(ElementTree.fromstring(colora).itertext())


def test_columns_of_a_regime_have_a_header_over_them(rich):
    assert '<th class="span" scope="colgroup" colspan="2">prompt does not name the task</th>' in rich
    assert '<th scope="col" class="g">dates <small>ROUGE-L</small></th>' in rich


def test_a_table_of_words_becomes_cards_on_a_phone_and_keeps_its_roles(rich):
    methods = rich[rich.index("<h2>Methods</h2>") :]
    assert methods.index('<table class="cards" role="table">') < methods.index("</section>")
    assert '<tr role="row"><th scope="row" role="rowheader">base</th>' in methods
    assert '<td class="t" role="cell" data-of="title">CoLoRA</td>' in methods
    answer = rich[: rich.index("<h2>Methods</h2>")]
    assert 'class="cards"' not in answer  # numbers are compared in columns


def test_nothing_is_fetched(rich):
    plain = re.sub(r'xmlns(:\w+)?="[^"]*"', "", rich)
    assert "http" not in plain
    assert "@import" not in plain
    assert "src=" not in plain


def test_names_cannot_break_the_page():
    tasks = (EVIL, "b")
    made = [
        record(EVIL + method, 50 + n, seed=seed, examples=n, group=EVIL, tasks=tasks,
               similarity=[[1.0, 0.5], [0.5, 1.0]], bytes_up=5, bytes_down=5)
        for method in ("1", "2") for n in (8, 16) for seed in (0, 1)
    ]  # fmt: skip
    found = html(*made, record(EVIL, error=EVIL, code="c0de"), name=EVIL)
    assert "script" not in Elements(found).names
    assert "<script" not in found
    assert any(EVIL in text for text in Elements(found).texts)
    for figure in re.findall(r"<svg.*?</svg>", found, flags=re.DOTALL):
        ElementTree.fromstring(figure)


def test_the_page_has_bold_bests_warnings_and_failures():
    found = html(record(quality=60), record("local", 50, code="beef"), record("pooled", error="died of <NaN>"))
    assert "<strong>60.0</strong>" in found
    assert "<strong>50.0</strong>" not in found
    assert found.count('class="warning"') == 3  # of mixed code, on top and at the experiment; of a failed trial
    assert "beef (1 trial), c0de (2 trials)" in found
    assert "died of &lt;NaN&gt;" in found


def test_an_experiment_of_failures_only():
    found = html(record(error="died"))
    assert "Every trial of this experiment failed." in found
    assert "At no place were both colora and a rival measured" in found
    assert "1 trial failed and is in no table" in found
    assert "At no place were both sides measured." in found


# ---- from end to end ---------------------------------------------------------------------------------------------


def test_the_same_records_give_the_same_bytes(tmp_path):
    write_trial_records(tmp_path / "r" / "main.jsonl", rich_records())
    for name in ("one", "two"):
        write_report(tmp_path / "r", tmp_path / f"{name}.html", tmp_path / f"{name}.md")
    assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()
    assert (tmp_path / "one.md").read_bytes() == (tmp_path / "two.md").read_bytes()


def test_the_command_writes_a_page_and_markdown(tmp_path):
    write_trial_records(tmp_path / "r" / "a.jsonl", [record(), record("local")])
    write_trial_records(tmp_path / "r" / "b.jsonl", [record("pooled", code="x"), record("local", code="y")])
    refused = cli("report", tmp_path / "r", tmp_path / "out.html")
    assert refused.exit_code == 2
    assert "b.jsonl: expected records of one version" in refused.stderr
    assert not (tmp_path / "out.html").exists()
    result = cli("report", tmp_path / "r", tmp_path / "new" / "out.html", "--mixed", "--markdown", tmp_path / "out.md")
    assert result.exit_code == 0, result.stderr
    assert f"written: {tmp_path / 'new' / 'out.html'}" in result.stderr
    found = (tmp_path / "new" / "out.html").read_text(encoding="utf-8")
    assert "<h3>Experiment a</h3>" in found
    assert "<h3>Experiment b</h3>" in found
    assert "| colora | 1 | 50.0 |" in (tmp_path / "out.md").read_text(encoding="utf-8")


def test_a_folder_is_no_page(tmp_path):
    write_trial_records(tmp_path / "a.jsonl", [record()])
    with pytest.raises(ColoraError, match="expected the name of a file to write, found a folder"):
        write_report(tmp_path / "a.jsonl", tmp_path)


def test_the_command_takes_the_experiment_and_the_method_that_the_answer_is_about(tmp_path):
    write_trial_records(tmp_path / "a.jsonl", [record(), record("local", 40), record("pooled", 30)])
    write_trial_records(tmp_path / "b.jsonl", [record(quality=60), record("local", 65)])
    out = tmp_path / "out.html"
    for options, told in [
        ([], "CoLoRA is 10.0 points ahead of the best of 2 rivals, local, in ROUGE-L"),
        (["--main", "b"], "CoLoRA is 5.0 points behind local in ROUGE-L"),
        (["--reference", "pooled"], "pooled LoRA, same rank is 20.0 points behind the best of 2 rivals, colora,"),
    ]:
        assert cli("report", tmp_path, out, *options).exit_code == 0
        assert told in out.read_text(encoding="utf-8")
    for options, told in [
        (["--main", "c"], "of experiment c, found a, b"),
        (["--reference", "x"], "of method x, found"),
    ]:
        refused = cli("report", tmp_path, out, *options)
        assert (refused.exit_code, told in refused.stderr) == (2, True)


@pytest.mark.records
def test_the_page_of_the_committed_records_is_light(tmp_path):
    write_report(ROOT / "benchmarks" / "compare" / "records", tmp_path / "report.html")
    size = (tmp_path / "report.html").stat().st_size
    assert 50_000 < size < MOST_BYTES
    assert (ROOT / "docs" / "report.html").stat().st_size < MOST_BYTES


def test_the_page_needs_no_matplotlib(tmp_path):
    write_trial_records(tmp_path / "main.jsonl", rich_records())
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from pathlib import Path\n"
        "from colora.experiments.report.build import write_report\n"
        f"write_report(Path({str(tmp_path / 'main.jsonl')!r}), Path({str(tmp_path / 'out.html')!r}))\n"
    )
    subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (tmp_path / "out.html").exists()


def test_matplotlib_is_imported_by_the_figures_only_and_its_absence_is_explained():
    for path in (ROOT / "src" / "colora").rglob("*.py"):
        names = [
            ast.unparse(n)
            for n in ast.walk(ast.parse(path.read_text("utf-8")))
            if isinstance(n, ast.Import | ast.ImportFrom)
        ]
        draws = path.name in ("figures.py", "figure.py") and "experiments/report" not in path.as_posix()
        assert any("matplotlib" in name for name in names) == draws, path
    code = (
        "import sys; sys.modules['matplotlib'] = None\n"
        "from colora.errors import ColoraError\n"
        "try: import colora.theory.experiments.figures\n"
        "except ColoraError as error: print(error)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "expected matplotlib for the figures" in found
    assert 'pip install "colora[report]"' in found


def test_many_tasks_have_a_map_and_one_has_none():
    names = tuple(f"task-{number}" for number in range(32))
    square = [[1.0 if i == j else 0.5 for j in range(32)] for i in range(32)]
    many, alone = record(tasks=names, similarity=square), record(tasks=names[:1], similarity=[[1.0]])
    one = Experiment.of("x", [many, alone])
    (found,) = similarity_maps(one)
    assert len(found.names) == 32
    drawn = [text for text in ElementTree.fromstring(draw(found)).itertext() if text in names]
    assert drawn == list(names)  # along the left; there is no room over the columns
    few = similar(0.5, ("p", "q", "r"))
    (found,) = similarity_maps(Experiment.of("x", [few]))
    drawn = [text for text in ElementTree.fromstring(draw(found)).itertext() if text in ("p", "q", "r", "0.50")]
    assert drawn == ["0.50"] * 3 + ["p", "q", "r"] + ["p", "q"]
