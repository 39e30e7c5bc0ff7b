"""The notebooks, executed on a small run."""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from runs import environment, lines, make_run

from jaxselftrain.metrics import RESPONSES_FILE

FOLDER = Path(__file__).parents[1] / "notebooks"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("notebooks"))


def executed(name, run, monkeypatch):
    """The outputs of a notebook on a run folder."""
    notebook = nbformat.read(FOLDER / name, as_version=4)
    nbformat.validate(notebook)
    assert not any(word in cell.source for cell in notebook.cells if cell.cell_type == "code" for word in ("def ", "class "))
    for variable, value in {**environment(), "RUN": str(run)}.items():
        monkeypatch.setitem(os.environ, variable, value)
    NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]


@pytest.mark.parametrize("name", sorted(path.name for path in FOLDER.glob("*.ipynb")))
def test_the_notebook_runs_and_shows_the_run(name, run, monkeypatch):
    outputs = executed(name, run, monkeypatch)
    assert any("image/png" in out.get("data", {}) for out in outputs)
    text = "".join(out.get("text", "") for out in outputs)
    assert f"{len(lines(run))} lines, steps 0 to 2" in text and "pseudo_reward" in text and "majority" in text


def test_a_run_without_kept_responses_gets_a_sentence(run, tmp_path, monkeypatch):
    without = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(RESPONSES_FILE, "checkpoints"))
    outputs = executed("quickstart.ipynb", without, monkeypatch)
    text = "".join(out.get("text", "") for out in outputs)
    assert "kept no responses: it ran with log.responses=0" in text and "majority" not in text.rpartition("kept no responses")[2]
