"""The table that sets runs beside each other."""

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from jaxselftrain.cli import main
from jaxselftrain.compare import comparison, read_scores, read_thresholds
from jaxselftrain.errors import UserError


def evaluation(run, step, scores):
    """A file as an evaluation leaves it; `scores` is measure -> a value a question."""
    (run / "evaluations").mkdir(parents=True, exist_ok=True)
    count = len(next(iter(scores.values())))
    rows = [{"id": f"q{q}", "scores": {name: values[q] for name, values in scores.items()}} for q in range(count)]
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (run / "evaluations" / f"step_{step:06d}.jsonl").write_text(text)


def shown(*runs):
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    console.print(comparison(runs))
    return console.export_text()


def test_each_run_has_its_change_with_an_interval_paired_by_question(tmp_path):
    hard = np.linspace(0, 0.8, 100)
    evaluation(tmp_path / "vote", 0, {"avg": hard.tolist(), "greedy": [0.0] * 100})
    evaluation(tmp_path / "vote", 5, {"avg": [0.0] * 100, "greedy": [0.0] * 100})
    evaluation(tmp_path / "vote", 12, {"avg": (hard + 0.1).tolist(), "greedy": [1.0] * 25 + [0.0] * 75})
    evaluation(tmp_path / "random", 0, {"avg": hard.tolist(), "no_answer": [0.0] * 100})
    evaluation(tmp_path / "random", 12, {"avg": (hard - 0.02).tolist(), "no_answer": [0.0] * 100})
    text = shown(tmp_path / "vote", tmp_path / "random")
    rows = [line.replace("│", " ").split() for line in text.splitlines() if "@k" in line or "greedy" in line]
    assert rows[0][1:] == ["avg@k", "40.0", "50.0", "+10.0", "[+10.0,", "+10.0]", "<", "0.001"]  # every question gained the same
    assert rows[1][:4] == ["greedy", "0.0", "25.0", "+25.0"]
    low, high = float(rows[1][4].strip("[,")), float(rows[1][5].strip("]"))
    assert 12 < low < 20 and 30 < high < 38  # 25 +- 1.96 * sqrt(0.25 * 0.75 / 100)
    assert rows[2][1:5] == ["avg@k", "40.0", "38.0", "-2.0"] and len(rows) == 3


def test_models_are_compared_with_the_first_of_them(tmp_path):
    random = np.random.default_rng(0)
    hard = random.random(200)
    for number, name in enumerate(("base", "same", "better")):
        evaluation(tmp_path / name, 3, {"avg": np.clip(hard + random.normal(0.04 * (number == 2), 0.02, 200), 0, 1).tolist()})
    files = [tmp_path / name / "evaluations" / "step_000003.jsonl" for name in ("base", "same", "better")]
    rows = [line.replace("│", " ").split() for line in shown(*files).splitlines() if "avg@k" in line]
    assert len(rows) == 2 and rows[1][-2:] == ["<", "0.001"] and float(rows[0][-1]) > 0.01
    assert float(rows[1][4]) == pytest.approx(4.0, abs=0.7)
    with pytest.raises(UserError, match="name another"):
        comparison(files[:1])
    with pytest.raises(UserError, match="not both"):
        comparison([files[0], tmp_path / "base"])
    evaluation(tmp_path / "other", 3, {"avg": [1.0]})
    with pytest.raises(UserError, match="different questions"):
        comparison([files[0], tmp_path / "other" / "evaluations" / "step_000003.jsonl"])


def test_one_evaluation_is_not_enough(tmp_path):
    evaluation(tmp_path, 0, {"avg": [1.0]})
    with pytest.raises(UserError, match="no held-out evaluation before and after"):
        comparison([tmp_path])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "q0"}', "1"])
def test_an_unreadable_evaluation_is_named(text, tmp_path):
    evaluation(tmp_path, 0, {"avg": [1.0]})
    evaluation(tmp_path, 3, {"avg": [1.0]})
    (tmp_path / "evaluations" / "step_000003.jsonl").write_text(text)
    with pytest.raises(UserError, match=r"step_000003\.jsonl cannot be read"):
        comparison([tmp_path])


def test_other_questions_cannot_be_compared(tmp_path):
    evaluation(tmp_path, 0, {"avg": [1.0]})
    evaluation(tmp_path, 3, {"avg": [1.0, 0.0]})
    with pytest.raises(UserError, match="different questions"):
        comparison([tmp_path])


def test_evaluations_are_drawn_by_their_agreement(tmp_path):
    curve = [{"share": 0.5, "coverage": 1.0, "majority": 0.6, "sample": 0.5}]
    for name in ("base", "better"):
        evaluation(tmp_path / name, 3, {"avg": [0.5, 1.0]})
        (tmp_path / name / "evaluations" / "step_000003.thresholds.json").write_text(json.dumps(curve))
    files = [str(tmp_path / name / "evaluations" / "step_000003.jsonl") for name in ("base", "better")]
    assert main(["compare", *files, "--picture", str(tmp_path / "out.png")]) == 0
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    assert read_thresholds(Path(files[0])) == curve
    for text in ("{", "[1]", '[{"share": 1}]'):
        (tmp_path / "base" / "evaluations" / "step_000003.thresholds.json").write_text(text)
        with pytest.raises(UserError, match=r"step_000003\.thresholds\.json cannot be read"):
            read_thresholds(Path(files[0]))


def test_separators_of_lines_in_a_response_are_no_ends_of_lines(tmp_path):
    file = tmp_path / "e.jsonl"
    rows = [{"id": f"q{n}", "scores": {"avg": n}, "responses": [{"text": "a\u2028b\u2029c\x85d"}]} for n in range(2)]
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert read_scores(file) == {"q0": {"avg": 0.0}, "q1": {"avg": 1.0}}


@pytest.mark.parametrize("scores", [{"avg": "x"}, {}, [1], None])
def test_scores_that_are_none_are_one_sentence(scores, tmp_path):
    file = tmp_path / "e.jsonl"
    file.write_text(json.dumps({"id": "q", "scores": scores}) + "\n")
    with pytest.raises(UserError, match="cannot be read as an evaluation"):
        read_scores(file)
