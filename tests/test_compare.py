"""The table that sets runs beside each other."""

import json

import numpy as np
import pytest
from rich.console import Console

from jaxselftrain.compare import comparison
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
    assert rows[0][1:] == ["avg@k", "40.0", "50.0", "+10.0", "[+10.0,", "+10.0]"]  # every question gained the same
    assert rows[1][:4] == ["greedy", "0.0", "25.0", "+25.0"]
    low, high = float(rows[1][4].strip("[,")), float(rows[1][5].strip("]"))
    assert 12 < low < 20 and 30 < high < 38  # 25 +- 1.96 * sqrt(0.25 * 0.75 / 100)
    assert rows[2][1:5] == ["avg@k", "40.0", "38.0", "-2.0"] and len(rows) == 3


def test_one_evaluation_is_not_enough(tmp_path):
    evaluation(tmp_path, 0, {"avg": [1.0]})
    with pytest.raises(UserError, match="no held-out evaluation before and after"):
        comparison([tmp_path])


@pytest.mark.parametrize("text", ["{", "[]", '{"id": "q0"}', "1"])
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
