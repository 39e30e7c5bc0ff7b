"""The notebooks, executed on a small run, or making small runs of their own."""

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


def executed(name, monkeypatch, **variables):
    """The outputs of a notebook, executed with these environment variables: all text, and the kinds of all data."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(word in cell.source for cell in notebook.cells if cell.cell_type == "code" for word in ("def ", "class "))
    for variable, value in {**environment(), **variables}.items():
        monkeypatch.setitem(os.environ, variable, str(value))
    NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    data = [out.get("data", {}) for out in outputs]
    text = "".join(out.get("text", "") for out in outputs) + "".join(found.get("text/plain", "") for found in data)
    return text, {kind for found in data for kind in found}


def test_every_notebook_is_tested_here():
    names = {path.stem for path in FOLDER.glob("*.ipynb")}
    assert names == {"quickstart", "reward_dynamics", "self_training_from_python", "collapse"}


def test_the_quickstart_shows_the_run(run, monkeypatch):
    text, kinds = executed("quickstart", monkeypatch, RUN=run)
    assert "image/png" in kinds
    assert f"{len(lines(run))} lines, steps 0 to 2" in text and "pseudo_reward" in text and "majority" in text


def test_a_run_without_kept_responses_gets_a_sentence(run, tmp_path, monkeypatch):
    without = shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns(RESPONSES_FILE, "checkpoints"))
    text, _ = executed("quickstart", monkeypatch, RUN=without)
    assert "kept no responses: it ran with log.responses=0" in text and "majority" not in text.rpartition("kept no responses")[2]
    text, kinds = executed("reward_dynamics", monkeypatch, RUNS=without, PICTURES=tmp_path)
    assert "kept no responses" in text and "image/png" in kinds


def test_reward_dynamics_shows_several_runs(run, tmp_path, monkeypatch):
    other = shutil.copytree(run, tmp_path / "other", ignore=shutil.ignore_patterns("checkpoints"))
    text, kinds = executed("reward_dynamics", monkeypatch, RUNS=f"{run},{other}", PICTURES=tmp_path)
    assert {"image/png", "text/html"} <= kinds
    for folder in (run, other):
        assert f"{folder}: {len(lines(folder))} lines, steps 0 to 2" in text
    assert "pseudo_reward" in text and "1 =" in text  # the question whose votes are shown


def test_self_training_from_python_changes_its_labels_and_stops(run, tmp_path, monkeypatch):
    text, kinds = executed("self_training_from_python", monkeypatch, CONFIG=run.parent / "config.yaml", FOLDER=tmp_path / "made")
    assert "Q = 4 questions a step, N = 4 samples each" in text and "image/png" in kinds
    assert lines(tmp_path / "made")[5]["label_accuracy"] == 1.0  # gold by then
    assert "stopped after step 7" in text and lines(tmp_path / "made")[-1]["step"] == 7


def test_collapse_compares_a_run_with_and_without_the_alarms_action(run, tmp_path, monkeypatch):
    given = {"CONFIG": run.parent / "config.yaml", "FOLDER": tmp_path, "STEPS": 6}
    text, kinds = executed("collapse", monkeypatch, **given)
    assert "image/png" in kinds and "surprise_rise past 0.1: raised at [" in text and "saturated_share" in text
    assert [line["step"] for line in lines(tmp_path / "warned")] == list(range(7))
    assert lines(tmp_path / "rolled-back")
