"""The page shows what the run folders hold, as numbers, pictures and text, and nothing of the text acts."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from report_runs import HOSTILE, Tags, add_alarm, hostile_run, responses, rows_of, write_evaluation, write_lines, write_run

from jaxselftrain.metrics import METRICS, read_alarms, read_metrics, read_rolled_back
from jaxselftrain.report.command import run_report
from jaxselftrain.report.page import ORDER, write_report
from jaxselftrain.report.runs import read_groups, read_run
from jaxselftrain.report.samples import evenly, read_asked
from jaxselftrain.report.series import SERIES
from jaxselftrain.report.special_pictures import binned
from jaxselftrain.report.story import best_told, tell
from jaxselftrain.report.text import visible


def values_of(path: Path, metric: str) -> dict[int, float]:
    return {int(row["step"]): float(row["value"]) for row in rows_of(path) if row["metric"] == metric}


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """The run of one report, with an alarm."""
    run = write_run(tmp_path_factory.mktemp("single") / "collapse", collapse=True)
    add_alarm(run)
    run_report(runs=[run], out=None, watch=False, seconds=1)
    return run


@pytest.fixture(scope="module")
def several(tmp_path_factory):
    """(runs, folder of the report): two experiments with three seeds each, and one with one."""
    home = tmp_path_factory.mktemp("several")
    runs = [write_run(home / f"srt-{seed}", f"train.seed={seed}") for seed in range(3)]
    runs += [write_run(home / f"random-{seed}", f"train.seed={seed}", "reward.kind=random", collapse=True) for seed in range(3)]
    runs.append(write_run(home / "alone", "vote.samples=8"))
    return runs, write_report(runs, home / "report", reload_seconds=None).parent


def test_every_picture_is_there_as_png_and_csv(single):
    out = single / "report"
    page = Tags((out / "report.html").read_text(encoding="utf-8"))
    shown = [name for name in ORDER if name != "confidence"]  # nothing measured it
    assert sorted(path.name for path in (out / "pictures").iterdir()) == sorted(f"{n}.{e}" for n in shown for e in ("csv", "png"))
    for name in shown:
        assert (out / "pictures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert rows_of(out / "pictures" / f"{name}.csv")
    images = page.named("img")
    assert len(images) == len(shown) and all(str(image["src"]).startswith("data:image/png;base64,") for image in images)
    assert all(image["alt"] for image in images)
    assert "“How sure the policy is of its tokens”, because neither the reward nor the alarm measured it." in page.text
    assert {link["href"] for link in page.named("a") if not str(link["href"]).startswith("#")} == {
        f"pictures/{name}.{ending}" for name in shown for ending in ("csv", "png")
    }


def test_the_numbers_of_a_single_run_are_those_of_its_metrics(single):
    lines = read_metrics(single)
    for series in SERIES:
        path = single / "report" / "pictures" / f"{series.name}.csv"
        for metric in series.metrics:
            want = {int(line["step"]): line[metric] for line in lines if metric in line}
            found = rows_of(path) if path.is_file() else []
            kept = [row for row in found if row["metric"] == metric and not row["rolled_back_by_alarm_at"]]
            assert {int(row["step"]): float(row["value"]) for row in kept} == want
            for row in kept:
                if metric.startswith("heldout/"):
                    line = next(line for line in lines if line["step"] == int(row["step"]))
                    assert float(row["low"]) == line[f"{metric}_low"] and float(row["high"]) == line[f"{metric}_high"]
                else:
                    assert row["low"] == row["high"] == ""
    against = rows_of(single / "report" / "pictures" / "against.csv")
    assert [(float(row["pseudo_reward"]), float(row["true_accuracy"])) for row in against] == [
        (line["pseudo_reward"], line["true_accuracy"]) for line in lines[1:]
    ]


def test_the_metrics_of_all_pictures_are_explained_or_the_alarms(single):
    named = {metric for series in SERIES for metric in series.metrics}
    assert {name for name in named - METRICS.keys() if not name.endswith(("_drift", "_slope", "_acceleration"))} <= {
        "alarm_score"
    }


def test_what_an_alarm_did_is_told_drawn_and_kept(single):
    (alarm,), back = read_alarms(single), read_rolled_back(single)
    page = Tags((single / "report" / "report.html").read_text(encoding="utf-8"))
    assert alarm["told"] in page.text and "rollback at step 30" in page.text
    rows = [row for row in rows_of(single / "report" / "pictures" / "reward.csv") if row["rolled_back_by_alarm_at"]]
    assert {row["rolled_back_by_alarm_at"] for row in rows} == {"30"}
    taken = [float(row["value"]) for row in rows if row["metric"] == "true_accuracy"]
    assert taken == [line["true_accuracy"] for line in back] and len(taken) == 10
    assert "Dotted lines: steps that an alarm took back." in page.text


def test_alarms_are_upright_lines_and_what_was_taken_back_is_dashed(single, tmp_path, monkeypatch):
    from matplotlib.figure import Figure

    from jaxselftrain.report.pictures import draw_series

    saved = []
    monkeypatch.setattr(Figure, "savefig", lambda self, path, **_: (saved.append(self), Path(path).write_bytes(b"PNG")))
    series = next(series for series in SERIES if series.name == "reward")
    draw_series(series, read_groups([single]), tmp_path)
    axis = saved[0].axes[0]
    upright = [line for line in axis.lines if list(line.get_xdata()) == [30, 30]]
    dashed = [line for line in axis.lines if list(line.get_xdata()) == list(range(21, 31))]
    assert len(upright) == 1 and "alarm: rollback to 20" in [text.get_text() for text in axis.texts]
    assert len(dashed) == 3 and all(line.is_dashed() and line.get_alpha() < 1 for line in dashed)


def test_seeds_are_one_line_with_a_band(several):
    runs, out = several
    page = Tags((out / "report.html").read_text(encoding="utf-8"))
    groups = read_groups(runs)
    assert [(group.name, len(group.runs)) for group in groups] == [("srt (3 seeds)", 3), ("random (3 seeds)", 3), ("alone", 1)]
    found = rows_of(out / "pictures" / "reward.csv") + rows_of(out / "pictures" / "held_out.csv")
    for name, folders in {"srt (3 seeds)": runs[:3], "random (3 seeds)": runs[3:6]}.items():
        for metric in ("true_accuracy", "pseudo_reward", "heldout/avg"):
            series = [{int(line["step"]): line[metric] for line in read_metrics(folder) if metric in line} for folder in folders]
            table_RS = np.asarray([list(each.values()) for each in series])
            mine = [row for row in found if row["line"] == name and row["metric"] == metric]
            assert [int(row["step"]) for row in mine] == list(series[0]) and {row["runs"] for row in mine} == {"3"}
            for column, want in {"value": table_RS.mean(0), "low": table_RS.min(0), "high": table_RS.max(0)}.items():
                np.testing.assert_allclose([float(row[column]) for row in mine], want, rtol=1e-12)
            assert {row["band"] for row in mine} == {"smallest to largest of the runs"}
    assert "means over 3 runs that differ in their seed alone" in page.text
    assert "reward.kind" in page.text and "3 of 3 improved" in page.text and "3 of 3 got worse" in page.text


def test_a_mean_ends_where_the_shortest_run_does(tmp_path):
    runs = [write_run(tmp_path / f"s{seed}", f"train.seed={seed}", held_out=False) for seed in range(2)]
    lines = [json.loads(text) for text in (runs[1] / "metrics.jsonl").read_text().splitlines()]
    write_lines(runs[1] / "metrics.jsonl", lines[:26])
    write_report(runs, tmp_path / "out", reload_seconds=None)
    assert list(values_of(tmp_path / "out" / "pictures" / "entropy.csv", "entropy")) == list(range(1, 26))


def test_what_was_not_measured_is_left_out_and_said(tmp_path):
    run = write_run(tmp_path / "bare", held_out=False, gold=False, kl=False, finished=False)
    (run / "responses.jsonl").unlink()
    (tmp_path / "out" / "pictures").mkdir(parents=True)
    (tmp_path / "out" / "pictures" / "kl.png").write_text("of an earlier report")
    page = Tags(write_report([run], tmp_path / "out", reload_seconds=None).read_text(encoding="utf-8"))
    left = {path.stem for path in (tmp_path / "out" / "pictures").iterdir()}
    assert left == {"reward", "agreement", "entropy", "length", "format"}
    for sentence in (
        "because no copy of the initial policy was kept; reference.keep=always keeps one",
        "because no held-out questions were evaluated",
        "because the training questions have no gold answers",
        "because none of its signals was logged, as where the alarm is off",
        "because no responses were logged",
        "nobody knows how much of that is right",
        "whether the model got better is not known",
    ):
        assert sentence in page.text, sentence


def test_a_value_that_is_no_number_is_a_gap(tmp_path):
    run = write_run(tmp_path / "nan", held_out=False)
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    lines[5]["entropy"] = None
    lines[6]["entropy"] = "many"
    write_lines(run / "metrics.jsonl", lines)
    write_report([run], tmp_path / "out", reload_seconds=None)
    assert sorted({*range(1, 41)} - set(values_of(tmp_path / "out" / "pictures" / "entropy.csv", "entropy"))) == [5, 6]


def test_the_story_has_the_start_the_peak_the_end_and_the_best_checkpoint(tmp_path):
    risen, fallen = write_run(tmp_path / "risen"), write_run(tmp_path / "fallen", collapse=True)
    story = tell(read_run(risen, "risen"))
    lines = [line for line in read_metrics(risen) if "heldout/avg" in line]
    assert story.verdict == "improved" and (story.start, story.end) == (lines[0]["heldout/avg"], lines[-1]["heldout/avg"])
    run = read_run(fallen, "fallen")
    story = tell(run)
    assert story.verdict == "got worse" and run.best == run.exported == 20 and story.peak == run.points("heldout/avg")[20]
    assert "step 20, because its held-out avg@8" in best_told(
        run
    ) and "it is the one that `jaxselftrain export` takes" in best_told(run)
    assert "agreeing with itself on wrong answers" in story.warnings[0]
    write_evaluation(fallen, 40, 0.45)
    lines = [json.loads(text) for text in (fallen / "metrics.jsonl").read_text().splitlines()]
    lines[-1]["heldout/avg"] = 0.45
    write_lines(fallen / "metrics.jsonl", lines)
    assert tell(read_run(fallen, "fallen")).verdict == "fell from its peak"
    (fallen / "checkpoints" / "20").rmdir()
    assert "but it was not kept, and `jaxselftrain export` takes step 40" in best_told(read_run(fallen, "fallen"))


def test_a_reward_that_rises_alone_is_warned_of_and_no_checkpoint_may_be_the_best(tmp_path):
    run = write_run(tmp_path / "run")
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line |= {"true_accuracy": 0.1} if line["step"] else {"heldout/avg": 0.9}
    write_lines(run / "metrics.jsonl", lines)
    told = tell(read_run(run, "run"))
    assert "went from 10.0% to 10.0%: the model is agreeing with itself on wrong answers" in told.warnings[0]
    assert "none is better than the model before training, whose held-out avg@8 of 90.0%" in told.sentences[-1]
    assert "takes step 40." in told.sentences[-1]
    write_lines(run / "metrics.jsonl", [{**line, "true_accuracy": 0.1 + line["step"] / 100} for line in lines])
    assert tell(read_run(run, "run")).warnings == []


def test_shares_are_counted(single):
    rows = rows_of(single / "report" / "pictures" / "shares.csv")
    assert sum(int(row["questions"]) for row in rows) == 80
    shares = [(step, share) for step in range(1, 25) for share in (0.3, 0.7, 1.0)]
    columns, counts_BC, means = binned(shares)
    assert columns == [(step, step + 1) for step in range(1, 25, 2)] and counts_BC.shape == (10, 12)
    assert counts_BC[3].tolist() == counts_BC[7].tolist() == counts_BC[9].tolist() == [2] * 12 and counts_BC.sum() == 72
    np.testing.assert_allclose(means, 2 / 3)


def test_the_threshold_picture_has_the_first_and_the_last_evaluation(single):
    rows = rows_of(single / "report" / "pictures" / "thresholds.csv")
    for step in (0, 40):
        want = json.loads((single / "evaluations" / f"step_{step:06d}.thresholds.json").read_text())
        found = [row for row in rows if row["line"] == f"step {step}"]
        assert [{name: float(row[name]) for name in want[0]} for row in found] == want


def test_questions_are_bounded_evenly_and_say_so(tmp_path):
    run = write_run(tmp_path / "long", steps=200, held_out=False)
    page = Tags(write_report([run], tmp_path / "out", reload_seconds=None).read_text(encoding="utf-8"))
    asked = [attributes for attributes in page.named("details") if attributes.get("class") == "asked"]
    assert len(asked) == 60 and "60 of the 400 logged questions, evenly over the run" in page.text
    assert (
        evenly(400, 60)[0] == 0 and evenly(400, 60)[-1] == 399 and len(set(evenly(400, 60))) == 60 and evenly(3, 60) == [0, 1, 2]
    )
    rows = [responses(1, text="x" * 5000) | {"classes": [[f"n:{n}", 1] for n in range(40)]}]
    rows[0]["samples"] *= 30
    write_lines(run / "responses.jsonl", rows)
    (one,) = read_asked(run, total=1, most=60, of_page=1.0)
    assert len(one.samples) == 64 and one.samples_omitted == 56 and one.votes == 120
    assert len(one.classes) == 12 and one.classes_omitted == 28 and one.classes[0] == ("0", 1)
    assert {(len(sample.text), sample.omitted) for sample in one.samples} == {(2000, 3000)}
    (one,) = read_asked(run, total=1, most=60, of_page=0.001)
    assert {len(sample.text) for sample in one.samples} == {160}


def test_hostile_text_is_only_text(tmp_path):
    run = hostile_run(tmp_path)
    text = write_report([run], tmp_path / "out", reload_seconds=None).read_text(encoding="utf-8")
    page = Tags(text)
    ours = {
        "html",
        "head",
        "meta",
        "link",
        "title",
        "style",
        "body",
        "header",
        "p",
        "h1",
        "h2",
        "h3",
        "nav",
        "a",
        "div",
        "section",
    }
    ours |= {
        "span",
        "dl",
        "dt",
        "dd",
        "figure",
        "figcaption",
        "img",
        "details",
        "summary",
        "bdi",
        "meter",
        "table",
        "tr",
        "th",
        "td",
    }
    ours |= {"ol", "li", "pre", "b", "code"}
    assert {tag for tag, _ in page.tags} <= ours
    assert not any(name.startswith("on") or name == "style" for _, attributes in page.tags for name in attributes)
    assert len(page.named("style")) == 1 and len(page.named("link")) == 1 and len(page.named("meta")) == 4
    assert all(str(attributes["src"]).startswith("data:image/png;base64,") for attributes in page.named("img"))
    assert not re.search("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202e\u2066\u200b\ufeff\ufffe\ud800-\udfff]", text)
    assert (
        HOSTILE[0] in page.text
        and "⟨U+0000⟩⟨U+0001⟩⟨U+0008⟩⟨U+001B⟩[31m⟨U+007F⟩⟨U+0085⟩⟨U+000D⟩" in page.text
        and "⟨U+202E⟩abc⟨U+2066⟩" in page.text
    )
    assert "cut here: 98000 more characters are in responses.jsonl" in page.text
    policy = next(str(each["content"]) for each in page.named("meta") if each.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-") and "script" not in policy


def test_visible_text_can_be_written_and_plain_text_is_left_alone():
    plain = "so 2 + 2\tis\n4: Ünïcödé, 日本語, العربية, 👩‍🔬 and می‌خواهم"
    assert visible(plain) == plain
    everything = "".join(map(chr, range(0x110000)))
    shown = visible(everything)
    shown.encode("utf-8")
    assert "\x00" not in shown and "\u202e" not in shown and "⟨U+D800⟩" in shown


def test_a_name_is_no_formula_for_a_spreadsheet(tmp_path):
    write_report([write_run(tmp_path / "=1+1")], tmp_path / "out", reload_seconds=None)
    assert rows_of(tmp_path / "out" / "pictures" / "reward.csv")[0]["line"] == "'=1+1"
