"""Run folders as a run leaves them, written by hand: for the report, which reads nothing else."""

from __future__ import annotations

import csv
import json
import os
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from jaxselftrain.config import Config, override_config, to_yaml

HELD_OUT = 40  # questions
HOSTILE = [
    "<script>window.hacked = 1</script>",
    "</pre></li></style><style>body{display:none}</style><script src='http://127.0.0.1:{port}/a.js'></script>",
    '"><img src=http://127.0.0.1:{port}/b.png onerror="window.hacked=2"><iframe src=http://127.0.0.1:{port}/c></iframe>',
    "<svg onload=window.hacked=3><a href=javascript:window.hacked=4>x</a><base href=http://127.0.0.1:{port}/>",
    "<meta http-equiv=refresh content='0;url=http://127.0.0.1:{port}/d'><link rel=stylesheet href=http://127.0.0.1:{port}/e.css>",
    "{{ 7 * 7 }} {% raw %} ${hacked} <!-- ]]> <![CDATA[ --!> &lt; &#60;script&#62;",
    "\x00\x01\x08\x1b[31m\x7f\x85\r\n \u202eabc\u2066\u200b\ufeff \ud800 half \udfff \ufffe \U000e0041",
    "w" * 100_000,
    "ي" * 300 + " abc " + "Z̷̢͝" * 500,
    "<details open ontoggle=window.hacked=5><form action=http://127.0.0.1:{port}/f><input autofocus onfocus=window.hacked=6>",
]


def config(*overrides: str) -> Config:
    values: dict[str, Any] = {
        "questions": {"source": "jsonl", "path": "train.jsonl"},
        "evaluate": {"questions": {"source": "jsonl", "path": "held_out.jsonl"}, "every": 10},
        "rollout": {"questions": 8},
        "vote": {"samples": 4},
        "train": {"steps": 40},
    }
    return override_config(Config.model_validate(values), overrides)


def line(step: int, *, random: np.random.Generator, collapse: bool = False, gold: bool = True, kl: bool = True) -> dict[str, Any]:
    """What a step of training logs: accuracy rises with the reward, or falls while it goes on rising."""
    part = min(1.0, step / 40)
    noise = random.normal(0, 0.01, 8)
    reward = min(1.0, 0.5 + 0.45 * part + noise[0])
    right = 0.4 + 0.3 * part if not collapse or part < 0.4 else max(0.02, 0.52 - 1.2 * (part - 0.4))
    found = {
        "step": step,
        "pseudo_reward": reward,
        "majority_share": reward,
        "saturated_share": max(0.0, part - 0.1),
        "same_majority_share": 0.2 + 0.6 * part * collapse,
        "dominant_answer_share": 0.2 + 0.6 * part * collapse,
        "entropy": 1.5 - part,
        "response_length": 20.0 - 10 * part * collapse + noise[2],
        "no_answer_share": 0.05,
        "truncated_share": 0.02,
        "loss": 0.1,
    }
    if gold:
        found |= {"true_accuracy": right + noise[3], "label_accuracy": right + 0.1, "majority_accuracy": right + 0.1}
    if kl:
        found |= {"kl": 0.1 * part, "kl_k1": 0.1 * part + noise[4] / 10, "surprise": 1 - 0.1 * part + noise[4] / 10}
    return found


def responses(
    step: int, *, share: float = 0.75, text: str = "so it is 4", question: str = "2 + 2 =", id: str = "q1"
) -> dict[str, Any]:
    """What a step logs of one question."""
    samples = [
        {"text": text, "answer": "4" if n else None, "reward": float(n > 0), "tokens": 5, "truncated": n == 0} for n in range(4)
    ]
    row = {"step": step, "id": id, "question": question, "majority": "n:4", "share": share, "classes": [["n:4", 3]]}
    return row | {"samples": samples}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_evaluation(run: Path, step: int, right: float, *, seed: int = 0) -> dict[str, float]:
    """An evaluation of HELD_OUT questions, and its metrics."""
    folder = run / "evaluations"
    folder.mkdir(exist_ok=True)
    score_Q = np.clip(right + np.random.default_rng(seed).normal(0, 0.1, HELD_OUT), 0, 1)
    write_lines(folder / f"step_{step:06d}.jsonl", [{"id": f"h{q}", "scores": {"avg": float(v)}} for q, v in enumerate(score_Q)])
    curve = [{"share": s, "coverage": 1 - s / 2, "majority": min(1, right + s / 4), "sample": right} for s in (0.25, 0.5, 1.0)]
    (folder / f"step_{step:06d}.thresholds.json").write_text(json.dumps(curve))
    found = {}
    for name, value in {"avg": float(score_Q.mean()), "maj": right + 0.05, "greedy": right + 0.02}.items():
        found |= {f"heldout/{name}": value, f"heldout/{name}_low": value - 0.04, f"heldout/{name}_high": value + 0.04}
    return found


def write_run(
    folder: Path,
    *overrides: str,
    steps: int = 40,
    collapse: bool = False,
    held_out: bool = True,
    finished: bool = True,
    **what: Any,
) -> Path:
    """A run folder; evaluated every tenth step. Returns it."""
    folder.mkdir(parents=True)
    own = config(f"train.steps={steps}", *overrides)
    (folder / "config.yaml").write_text(to_yaml(own))
    random = np.random.default_rng(own.train.seed)
    lines = [{"step": 0}, *(line(step, random=random, collapse=collapse, **what) for step in range(1, steps + 1))]
    if held_out:
        for each in lines[::10]:
            part = each["step"] / steps
            right = 0.4 + 0.25 * part if not collapse or part <= 0.5 else 0.525 - 0.8 * (part - 0.5)
            each |= write_evaluation(folder, each["step"], right)
        (folder / "checkpoints" / str(steps)).mkdir(parents=True)
        (folder / "checkpoints" / str(steps // 20 * 10)).mkdir(exist_ok=True)
    write_lines(folder / "metrics.jsonl", lines)
    shares = random.beta(2 + 4 * np.arange(2, 2 * steps + 2) / (2 * steps), 2)
    rows = [
        responses(s, share=float(round(shares[2 * s - 2 + n], 2)), id=f"q{s}.{n}") for s in range(1, steps + 1) for n in (0, 1)
    ]
    write_lines(folder / "responses.jsonl", rows)
    if finished:
        finish(folder)
    return folder


def finish(folder: Path) -> None:
    """The summary, newer than everything else whatever the clock's grain."""
    (folder / "summary.json").write_text("{}")
    later = (folder / "metrics.jsonl").stat().st_mtime_ns + 1
    os.utime(folder / "summary.json", ns=(later, later))


def add_alarm(folder: Path) -> Path:
    """An alarm at step 30 that goes back to step 20, and steps that were taken back. Returns the folder."""
    told = "Step 30: 3 signals are past their thresholds, entropy is 0.02 of what it was at the start; going back to step 20."
    write_lines(
        folder / "alarms.jsonl",
        [{"step": 30, "score": 3.0, "signals": {"entropy": 0.02}, "action": "rollback", "to": 20, "told": told}],
    )
    random = np.random.default_rng(9)
    rows = [line(step, random=random, collapse=True) | {"alarm": 30, "alarm_score": 2.0} for step in range(21, 31)]
    write_lines(folder / "rolled_back.jsonl", rows)
    lines = [json.loads(text) for text in (folder / "metrics.jsonl").read_text().splitlines()]
    for each in lines[1:]:
        each |= {
            "alarm_score": float(each["step"] == 29),
            "entropy_drift": -each["step"] / 40,
            "kl_acceleration": 0.1,
        }
    write_lines(folder / "metrics.jsonl", lines)
    if (folder / "summary.json").is_file():
        finish(folder)
    return folder


def hostile_run(folder: Path, port: int = 9) -> Path:
    """Everything that a stranger may have written is hostile: responses, answers, ids, questions, settings, names, alarms."""
    texts = [text.replace("{port}", str(port)) for text in HOSTILE]
    run = write_run(folder / "<img src=x onerror=alert(1)>$\\frac{_", f"prompt.few_shot={json.dumps(texts[1])}", collapse=True)
    rows = []
    for step, text in enumerate(texts, 1):
        row = responses(step, text=text, question=text, id=text)
        row |= {"majority": text, "classes": [[text, 3], ["n:4", 1]]}
        for sample in row["samples"]:
            sample["answer"] = text
        rows.append(row)
    write_lines(run / "responses.jsonl", rows)
    write_lines(run / "alarms.jsonl", [{"step": 30, "action": texts[2], "told": texts[0], "score": 1}])
    return run


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


class Tags(HTMLParser):
    """Every tag with its attributes, and the text between them."""

    def __init__(self, page: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def named(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for tag, attributes in self.tags if tag == name]
