"""The notebook runs from the first cell to the last against the served line."""

from __future__ import annotations

import json

import nbformat
import pytest
from nbclient import NotebookClient

from tests.line import ROOT, Line

NOTEBOOK = ROOT / "notebooks" / "01_first_line.ipynb"


def test_the_notebook_is_committed_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text("utf-8"))["cells"]
    assert all(not cell.get("outputs") for cell in cells)


@pytest.mark.ray
@pytest.mark.engine
def test_every_cell_runs(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    assert line.url
    for name, value in {
        "NOTEBOOK_STEPS": "8",
        "NOTEBOOK_CASES": "16",
        "NOTEBOOK_KEEP_RUNNING": "1",
        "FACTORY_SOURCE": str(ROOT),
    }.items():
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(NOTEBOOK, as_version=4)

    NotebookClient(notebook, timeout=400, kernel_name="python3").execute()

    printed = "".join(
        output.get("text", "")
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output.output_type == "stream"
    )
    assert "promoted" in printed or "refused" in printed
    assert "tier 1" in printed
