"""The command: refusals in one sentence, watching a run, and no JAX."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest
from report_runs import Tags, finish, write_run

from jaxselftrain import cli
from jaxselftrain.errors import UserError
from jaxselftrain.report import command
from jaxselftrain.report.command import run_report
from jaxselftrain.report.page import write_report
from jaxselftrain.run_folder import replace_text


def sentence_of(capsys, *arguments: str) -> str:
    assert cli.main(["report", *arguments]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("jaxselftrain: error: ") and printed.err.count("\n") == 1
    return printed.err


def test_what_is_no_run_is_refused_in_one_sentence(tmp_path, capsys):
    assert "is not a run folder: it holds no config.yaml" in sentence_of(capsys, str(tmp_path / "absent"))
    run = write_run(tmp_path / "home" / "1-gold", steps=3, held_out=False)
    assert f"but holds some: give {run}" in sentence_of(capsys, str(run.parent))
    assert "is given twice" in sentence_of(capsys, str(run), str(run / ".." / "1-gold"))
    (run / "responses.jsonl").write_text('{"step": 1, "share": 0.5}\n')
    assert "responses.jsonl holds a line that is not as a run logs it" in sentence_of(capsys, str(run))
    (run / "responses.jsonl").unlink()
    (run / "metrics.jsonl").write_text("")
    assert "holds no line yet" in sentence_of(capsys, str(run))
    (run / "metrics.jsonl").write_text("[\n")
    assert "metrics.jsonl:1 is not a line of JSON" in sentence_of(capsys, str(run))
    (run / "metrics.jsonl").unlink()
    assert "holds no metrics.jsonl" in sentence_of(capsys, str(run))
    (run / "config.yaml").write_text("vote: {sampels: 3}\n")
    assert "config.yaml" in sentence_of(capsys, str(run))


def test_an_out_that_cannot_be_written_is_refused_in_one_sentence(tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "run", steps=3, held_out=False)
    (tmp_path / "file").write_text("")
    assert "cannot be made a folder" in sentence_of(capsys, str(run), "--out", str(tmp_path / "file"))
    (tmp_path / "out" / "report.html").mkdir(parents=True)
    assert "cannot be written" in sentence_of(capsys, str(run), "--out", str(tmp_path / "out"))

    def full(path, text):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    monkeypatch.setattr("jaxselftrain.report.page.replace_text", full)
    assert "No space left on device; free some space" in sentence_of(capsys, str(run))


def test_the_command_says_where_the_page_is_and_starts_no_jax(tmp_path):
    runs = [write_run(tmp_path / name, f"vote.samples={len(name)}", steps=3) for name in ("vote", "two")]
    code = "import sys; from jaxselftrain.cli import main; main(); assert 'jax' not in sys.modules"
    got = subprocess.run(
        [sys.executable, "-c", code, "report", str(runs[0]), str(runs[1])],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=120,
    )
    assert (got.returncode, got.stdout, got.stderr) == (0, "report: report/report.html\n", "")
    assert (tmp_path / "report" / "report.html").is_file()


def refreshes(page: Path) -> list[str | None]:
    tags = Tags(page.read_text(encoding="utf-8"))
    return [attributes["content"] for attributes in tags.named("meta") if attributes.get("http-equiv") == "refresh"]


def test_watching_makes_the_page_anew_until_the_run_is_finished(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run", steps=4, held_out=False, finished=False)
    page, lines = run / "report" / "report.html", (run / "metrics.jsonl").read_text()
    (run / "metrics.jsonl").unlink()
    seen = []

    def sleep(seconds):
        """What happens while the command sleeps."""
        seen.append(refreshes(page) if page.is_file() else None)
        if len(seen) == 1:
            replace_text(run / "metrics.jsonl", lines[: lines.index("\n", lines.index('"step": 2')) + 1] + '{"step": 3, "tor')
        elif len(seen) == 2:
            replace_text(run / "metrics.jsonl", lines)
        elif len(seen) == 4:
            finish(run)

    monkeypatch.setattr(command.time, "sleep", sleep)
    written = []
    monkeypatch.setattr(command, "write_report", lambda *a, **k: written.append(k) or write_report(*a, **k))
    run_report(runs=[run], out=None, watch=True, seconds=7)
    assert seen == [None, ["7"], ["7"], ["7"]] and refreshes(page) == []
    assert [each["reload_seconds"] for each in written] == [7, 7, None]  # nothing new: not made anew
    assert capsys.readouterr().out.count("report: ") == 1
    assert not list(page.parent.glob("*.tmp"))


def test_ctrl_c_ends_watching_and_leaves_a_page_that_stands_still(tmp_path, monkeypatch, capsys):
    run = write_run(tmp_path / "run", steps=4, held_out=False, finished=False)

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(command.time, "sleep", interrupted)
    assert cli.main(["report", str(run), "--watch"]) == 0
    assert refreshes(run / "report" / "report.html") == [] and "Traceback" not in capsys.readouterr().err
    with pytest.raises(UserError, match="not a run folder"):
        run_report(runs=[tmp_path / "absent"], out=None, watch=True, seconds=1)
