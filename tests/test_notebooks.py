"""Notebooks run from top to bottom, in a kernel as Jupyter has it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


def executed(path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The outputs of all cells of a notebook that is run in a folder; its workers are processes, as anywhere."""
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PYTHONPATH", str(ROOT / "src"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("UMBEL_WORKERS")
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    nbclient.NotebookClient(notebook, timeout=240, kernel_name="python3").execute(cwd=str(folder))
    return [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]


def test_the_example_runs_from_top_to_bottom_with_its_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    outputs = executed(ROOT / "examples" / "notebook.ipynb", tmp_path, monkeypatch)
    shown = [output.data for output in outputs if "data" in output]
    assert sum("image/png" in data for data in shown) == 2
    pages = [data["text/html"] for data in shown if "text/html" in data]
    assert any("<progress" in page and "finished (rounds), 20 rounds" in page for page in pages)
    assert any("<svg" in page and "test.accuracy" in page for page in pages)
    said = "".join(output.text for output in outputs if output.output_type == "stream" and output.name == "stdout")
    assert "early stop after " in said
    accuracy = float(said.rpartition("with ")[2])
    assert accuracy >= 0.9
    assert not [output.text for output in outputs if output.output_type == "stream" and output.name == "stderr"]
    assert len(list((tmp_path / "umbel-metrics").iterdir())) == 1


def test_a_new_apps_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, "-m", "umbel.cli", "new", "my-app", "--framework", "numpy", "--notebook"]
    subprocess.run(command, cwd=tmp_path, env=settings, check=True, capture_output=True)
    outputs = executed(tmp_path / "my-app" / "notebook.ipynb", tmp_path / "my-app", monkeypatch)
    assert any("image/png" in output.data for output in outputs if "data" in output)
