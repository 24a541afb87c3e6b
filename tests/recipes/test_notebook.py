"""The notebook runs from its first cell to its last, and prints what is stored in it."""

import re
from pathlib import Path

import pytest

from tests.helpers.docs import ROOT
from tests.helpers.recipes import pattern
from tests.helpers.run_files import save_base

nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install nbformat nbclient ipykernel")
nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install nbformat nbclient ipykernel")
pytest.importorskip("ipykernel", reason="ipykernel is not installed: pip install nbformat nbclient ipykernel")

NOTEBOOK = ROOT / "recipes" / "tour.ipynb"


def read():
    return nbformat.read(NOTEBOOK, as_version=4)


def lines(cell):
    """What a cell printed and showed; not what it said on standard error, nor the progress of training."""
    texts = []
    for output in cell.get("outputs", []):
        if output.output_type == "stream" and output.name == "stdout":
            texts.append(output.text)
        elif "text/markdown" in output.get("data", {}):
            texts.append(output.data["text/markdown"])
    return [line for line in "\n".join(texts).splitlines() if line.strip()]


def test_the_notebook_runs_and_prints_what_is_stored(tmp_path, monkeypatch):
    notebook, stored = read(), read()
    (parameters,) = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    parameters.source = f"BASE, STEPS = {save_base(tmp_path / 'base')!r}, 2"
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    nbclient.NotebookClient(
        notebook, timeout=200, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}
    ).execute()
    for cell, before in zip(notebook.cells, stored.cells, strict=True):
        expected, found = lines(before), lines(cell)
        for show, line in zip(expected, found, strict=False):
            assert re.fullmatch(pattern(show), line.replace("**", "")), f"stored: {show}\nprinted: {line}"
        assert len(found) == len(expected), f"stored: {expected}\nprinted: {found}"


def test_the_stored_outputs_are_of_one_run_with_the_default_model():
    cells = [cell for cell in read().cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert all(output.output_type != "error" for cell in cells for output in cell.outputs)
    assert all(output.get("name") != "stderr" for cell in cells for output in cell.outputs)
    assert sum(len(lines(cell)) for cell in cells) >= 15
    (parameters,) = [cell for cell in cells if "parameters" in cell.metadata.get("tags", [])]
    assert 'BASE, STEPS = "smollm2"' in parameters.source
    assert not re.search(r"/(tmp|home|root|var)/", Path(NOTEBOOK).read_text(encoding="utf-8"))
