"""A run that is kept elsewhere: nothing of it is lost with the machine that it was started on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from etils import epath
from runs import command, lines, make_home, without_times

from jaxselftrain import load_config, train
from jaxselftrain.errors import UserError
from jaxselftrain.remote import Copy, here, place_of


@pytest.mark.parametrize(
    ("folder", "place", "local"),
    [
        ("runs/a", None, "runs/a"),
        ("/data/a", None, "/data/a"),
        ("C:/a", None, "C:/a"),
        ("gs://bucket/runs/a", "bucket/runs/a", "runs/bucket/runs/a"),
        ("file:///data/a", "data/a", "runs/data/a"),
    ],
)
def test_where_a_run_works(folder, place, local):
    assert place_of(folder) == place and here(folder) == Path(local)


@pytest.mark.parametrize("folder", ["ftp://host/a", "gs://", "https://host/a"])
def test_other_places_are_refused(folder):
    with pytest.raises(UserError, match="name a local folder, or one at gs://, s3://, file://"):
        place_of(folder)


def test_a_file_address_begins_at_the_root():
    with pytest.raises(UserError, match="after file:// comes a path from the root, file:///kept/a"):
        place_of("file://kept/a")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """(config, the uninterrupted run)."""
    home = make_home(
        tmp_path_factory.mktemp("remote"),
        questions=8,
        held_out=4,
        first_held_out=20,
        mesh={"data": 2, "fsdp": 2, "tensor": 2},
        evaluate={"every": 2},
        checkpoint={"every": 1},
        log={"tensorboard": False},
        train={"steps": 3},
    )
    config = load_config(home / "config.yaml", ())
    list(train(config, home / "whole", say=lambda text: None))
    return config, home / "whole"


def test_a_place_that_cannot_be_made_is_one_sentence(runs, tmp_path, monkeypatch):
    config, _ = runs
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="the run cannot be kept in .*/file/kept .*; choose another train.folder"):
        list(train(config, f"file://{tmp_path}/file/kept", say=lambda text: None))


def test_a_machine_that_has_never_seen_the_run_goes_on_with_it(runs, tmp_path, monkeypatch):
    config, whole = runs
    monkeypatch.chdir(tmp_path)
    kept, said = tmp_path / "kept", []
    for report in train(config, f"file://{kept}", say=said.append):
        if report.step == 2:
            break
    local = here(f"file://{kept}")
    assert any(f"run folder {local}, kept in {kept}" in text for text in said)
    assert (kept / "checkpoints").is_dir() and not (local / "checkpoints").exists()
    shutil.rmtree("runs")
    said.clear()
    list(train(config, f"file://{kept}", say=said.append))
    assert said[0] == f"fetched the run's files from {kept}" and any("resuming after step" in text for text in said)
    for folder in (local, kept):
        assert without_times(lines(folder)) == without_times(lines(whole))
        assert lines(folder, "responses.jsonl") == lines(whole, "responses.jsonl")
        assert (folder / "evaluations" / "step_000002.jsonl").is_file() and (folder / "config.yaml").is_file()


def test_a_run_that_went_on_elsewhere_is_fetched_again_and_one_that_did_not_is_not(tmp_path):
    said: list[str] = []
    local, kept = tmp_path / "local", tmp_path / "kept"
    for folder, text in ((local, "one\n"), (kept, "one\ntwo\n")):
        (folder / "evaluations").mkdir(parents=True)
        (folder / "metrics.jsonl").write_text(text)
    copy = Copy(local, epath.Path(kept), say=said.append)
    copy.fetch()
    assert (local / "metrics.jsonl").read_text() == "one\ntwo\n" and len(said) == 1
    (local / "metrics.jsonl").write_text("one\ntwo\nthree\n")
    for name in ("evaluations/step_000001.json", "half.tmp", ".lock", "rows_1.part", "tensorboard"):
        (local / name).write_text("x")
    copy.fetch()
    copy.keep()
    assert (kept / "metrics.jsonl").read_text() == "one\ntwo\nthree\n" and len(said) == 1
    assert sorted(path.name for path in kept.iterdir()) == ["evaluations", "metrics.jsonl"]
    assert (kept / "evaluations" / "step_000001.json").read_text() == "x"


def test_what_cannot_be_kept_is_told_and_made_up_for(tmp_path):
    said: list[str] = []
    local, kept = tmp_path / "local", tmp_path / "kept"
    local.mkdir()
    (local / "metrics.jsonl").write_text("one\n")
    kept.write_text("a file in the way")
    copy = Copy(local, epath.Path(kept), say=said.append)
    with pytest.raises(UserError, match="the run cannot be kept in .*kept"):
        Copy(tmp_path / "new", epath.Path(kept), say=said.append).fetch()
    copy.keep()
    assert len(said) == 1 and "trying again at the next checkpoint" in said[0]
    kept.unlink()
    copy.keep()
    assert (kept / "metrics.jsonl").read_text() == "one\n"


def test_a_fetch_that_was_stopped_is_made_again(tmp_path, monkeypatch):
    """Metrics come last, and tell whether everything is here."""
    local, kept, order = tmp_path / "local", tmp_path / "kept", []
    kept.mkdir()
    for name in ("config.yaml", "metrics.jsonl", "responses.jsonl"):
        (kept / name).write_text(name)
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: order.append(path.name) or write(path, data))
    Copy(local, epath.Path(kept), say=order.append).fetch()
    assert order[:3] == ["config.yaml", "responses.jsonl", "metrics.jsonl"]
    (local / "metrics.jsonl").unlink()
    (local / "responses.jsonl").unlink()
    Copy(local, epath.Path(kept), say=order.append).fetch()
    assert (local / "responses.jsonl").read_text() == "responses.jsonl"


def test_a_run_kept_here_is_not_copied(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("one\n")
    copy = Copy(tmp_path, epath.Path(tmp_path), say=lambda text: pytest.fail(text))
    copy.fetch()
    copy.keep()
    assert not copy.is_elsewhere and [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_stages_elsewhere_are_refused_and_nothing_is_made(tmp_path, monkeypatch):
    make_home(tmp_path, questions=8, held_out=4, first_held_out=20, stages=[{"name": "one"}])
    monkeypatch.chdir(tmp_path)
    code, _, err = command("train", str(tmp_path / "config.yaml"), "train.folder=gs://bucket/runs/first")
    assert code == 2 and "the stages of a config are kept on a local disk so far" in err and "Traceback" not in err
    assert not (tmp_path / "gs:").exists() and not (tmp_path / "runs").exists()
