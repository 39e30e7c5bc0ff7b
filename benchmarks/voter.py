r"""Takes 64 questions x 64 made-up completions, gives the time to vote on them: ours, math-verify's, ours with hostile ones.

    python benchmarks/voter.py [--math-verify PYTHON]

Everything is pinned to one core. Ours is the whole way from texts to votes, in a worker that is up and has an empty cache,
the fastest of several runs. math-verify gets the answers already extracted, drops equal strings within a question, parses
each once and compares it with the first of each class found so far, in CPU seconds (ours are by the clock); PYTHON is an
interpreter that has it installed, where this one has not. The bars that the project holds itself to stand beside the figures.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import os
import random
import re
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

QUESTIONS = SAMPLES = 64
HOSTILE = 50
REPEATS = 5
HOSTILE_FILE = Path(__file__).parent.parent / "tests" / "data" / "hostile_answers.jsonl"

# In the manner of competition answers; one per question.
ANSWERS = r"""
27|-3|142.0|1,250|10080|3.14|0.0625|\frac{3}{4}|-\frac{7}{12}|\frac{1}{2}|2\frac{1}{3}|\frac{\sqrt{3}}{2}|2\sqrt{13}
5\sqrt{2}|\sqrt{51}|3\pi|\frac{\pi}{6}|12\pi|\frac{9\pi}{2}|3+4i|6-5i|e^{2}|\log_{2}(5)|2^{10}|10!|\binom{10}{3}|45^\circ
\$18.90|75\%|12\text{ cm}^2|x^2-2x+1|2x^3+4x-7|\frac{x+2}{7}|3x+5|(x-1)(x+4)|y=2x+3|x=5|x^2+y^2=9|(3,\frac{\pi}{2})|(1,-2)
(0,1,5)|[-2,7]|(-\infty,3)|[0,1)\cup(2,\infty)|\{1,2,3\}|1,-2|3,5,7|\begin{pmatrix}1&2\\3&4\end{pmatrix}
\begin{pmatrix}-2\\1\end{pmatrix}|\text{Evelyn}|\text{even}|(C)|B|\text{June 20}|x\ge3|-1<x<4|\frac{1}{3}n(n+1)|a+b\sqrt{c}
\frac{2}{5}\sqrt{10}|\sin(x)+1|\tan^{-1}(2)|6.02\times10^{23}|1+\sqrt[3]{2}|f^{-1}(x)=\frac{x-3}{2}
"""
RESPELLINGS = (
    lambda a: f"${a}$", lambda a: a.replace(r"\frac", r"\dfrac"), lambda a: a.replace(r"\frac", r"\tfrac"), lambda a: f" {a} ",
    lambda a: a.replace("+", " + ").replace("-", " - ").replace(",", ", "), lambda a: rf"\displaystyle {a}",
    lambda a: a.replace("(", r"\left(").replace(")", r"\right)"), lambda a: rf"\({a}\)", lambda a: a.replace(r"\sqrt", r"\sqrt "),
)  # fmt: skip
JUNK = (
    "?",
    "",
    r"\text{cannot be determined}",
    "the answer is above",
    r"\frac{1}{",
    r"\alpha\beta??",
    r"\sum_{k=1}^{n}k",
    "!!!",
    "A or B",
)
PHRASES = (
    "First we simplify the expression.", "Substituting the value from above,", "By symmetry the two cases are alike.",
    r"Hence $\frac{a}{b} = %d$ and $x^2 = %d$.", "Let us check this with n = %d: it gives %d.",
    "Therefore we have %d + %d choices.",
)  # fmt: skip


def answers_of_questions(random: random.Random) -> list[list[str | None]]:
    """For each question what its samples state; None: no box. 60% the same string, the rest respelled, wrong or junk."""
    golds = [gold for line in ANSWERS.split("\n") for gold in line.split("|") if gold]
    assert len(golds) == QUESTIONS, len(golds)
    questions = []
    for gold in golds:
        answers: list[str | None] = [gold] * round(0.6 * SAMPLES)
        wrong = [wrong_answer(gold, random) for _ in range(8)]  # the same mistakes are made again and again
        while len(answers) < SAMPLES:
            kind = random.random()
            if kind < 0.3:
                answers.append(random.choice(RESPELLINGS)(gold))
            elif kind < 0.75:
                answers.append(wrong[min(random.randrange(8), random.randrange(8))])
            elif kind < 0.85:
                answers.append(random.choice(golds))
            else:
                answers.append(random.choice((*JUNK, None)))
        random.shuffle(answers)
        questions.append(answers)
    return questions


def wrong_answer(gold: str, random: random.Random) -> str:
    """The same with other digits."""
    return "".join(str(random.randrange(1, 10)) if c.isdigit() and random.random() < 0.7 else c for c in gold)


def completion(answer: str | None, random: random.Random) -> str:
    """A response of some 600 characters around an answer; no two are alike."""
    steps = [random.choice(PHRASES) for _ in range(random.randrange(6, 26))]
    text = " ".join(step.replace("%d", str(random.randrange(10_000))) for step in steps)
    return f"{text} ({random.random()}) " + (
        "I am not sure." if answer is None else rf"The final answer is $\boxed{{{answer}}}$."
    )


def ours(questions: list[list[str]]) -> tuple[float, int]:
    """(seconds, completions given up) of reading and voting, in a worker that is up but has read none of the texts."""
    from jaxselftrain.sections import Answer, Vote
    from jaxselftrain.voter import Voter
    from jaxselftrain.votes import vote

    with Voter(Answer(format="boxed"), Vote(workers=1)) as voter:
        voter.read([r"\boxed{1}"])
        while len(voter.pids()) < 2:  # the spare one shares the core while it comes up
            time.sleep(0.05)
        started, killed = time.perf_counter(), 0
        for completions in questions:
            reading = voter.read(completions)
            killed += reading.killed
            vote(reading.keys, ties="first", denominator="valid", opaque_may_win=False)
        return time.perf_counter() - started, killed


def math_verify_seconds(questions: list[list[str | None]]) -> float:
    """CPU seconds to group the answers by comparing each different string with the first of each class."""
    from math_verify import parse, verify

    def parsed(answer: str):
        return parse(rf"\boxed{{{answer}}}", parsing_timeout=None)

    verify(parsed("1"), parsed("2"), timeout_seconds=None)
    started = time.process_time()
    for answers in questions:
        leaders: list = []
        for answer, _ in Counter(answer for answer in answers if answer is not None).most_common():
            value = parsed(answer)
            if not any(verify(leader, value, timeout_seconds=None) for leader in leaders):
                leaders.append(value)
    return time.process_time() - started


def hostile_texts() -> list[str]:
    """All hostile completions of the tests."""
    rows = [json.loads(line) for line in HOSTILE_FILE.read_text(encoding="utf-8").splitlines()]
    return [row["text"] if "text" in row else "".join(part * times for part, times in row["parts"]) for row in rows]


def one_at_a_time(texts: list[str]) -> tuple[float, float, int]:
    """(seconds of the slowest, the worker's peak resident MiB or NaN where /proc is missing, completions given up)."""
    from jaxselftrain.sections import Answer, Vote
    from jaxselftrain.voter import Voter

    with Voter(Answer(format="boxed"), Vote(workers=1)) as voter:
        voter.read([r"\boxed{1}"])
        slowest, killed = 0.0, 0
        for text in texts:
            started = time.perf_counter()
            killed += voter.read([text]).killed
            slowest = max(slowest, time.perf_counter() - started)
        status = Path(f"/proc/{voter.pids()[0]}/status")
        peak = re.search(r"VmHWM:\s+(\d+) kB", status.read_text()) if status.exists() else None
    return slowest, int(peak[1]) / 1024 if peak else math.nan, killed


def main() -> None:
    """Print the table."""
    from rich.console import Console
    from rich.table import Table

    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--math-verify", metavar="PYTHON", help="interpreter that has math-verify")
    python = options.parse_args().math_verify or (sys.executable if importlib.util.find_spec("math_verify") else None)
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    draw = random.Random(0)
    answers = answers_of_questions(draw)
    texts = [[completion(answer, draw) for answer in row] for row in answers]
    mixed, hostile = [list(row) for row in texts], hostile_texts()
    for n, place in enumerate(draw.sample(range(QUESTIONS * SAMPLES), HOSTILE)):
        text = hostile[n * len(hostile) // HOSTILE]  # evenly spread over the file and so over its kinds
        mixed[place // SAMPLES][place % SAMPLES] = text

    plain, _ = min(ours(texts) for _ in range(REPEATS))
    with_hostile, killed = min(ours(mixed) for _ in range(REPEATS))
    table = Table(title=f"{QUESTIONS} questions x {SAMPLES} completions, one core")
    for name in ("what", "measured", "bar"):
        table.add_column(name, justify="left" if name == "what" else "right")
    table.add_row("answers, keys and votes", f"{plain:.2f} s", "0.60 s")
    if python is None:
        table.add_row("math-verify", "not installed (--math-verify PYTHON)", "")
    else:
        command = [python, __file__, "--grade"]
        done = subprocess.run(command, input=json.dumps(answers), capture_output=True, text=True, check=True)
        theirs = float(done.stdout)
        table.add_row("math-verify, equal strings dropped", f"{theirs:.2f} s", "")
        table.add_row("ratio", f"{theirs / plain:.1f}", "10.0")
    table.add_row(f"more with {HOSTILE} hostile ones among them", f"{with_hostile - plain:.2f} s", "2.00 s")
    slowest, mib, given_up = one_at_a_time(hostile)
    table.add_row(f"slowest of {len(hostile)} hostile ones", f"{slowest:.2f} s", "0.50 s")
    table.add_row("worker's peak memory over these", f"{mib:.0f} MiB", "512 MiB")
    table.add_row("completions given up", str(killed + given_up), "0")
    Console().print(table)


if __name__ == "__main__":
    if sys.argv[1:] == ["--grade"]:
        print(math_verify_seconds(json.load(sys.stdin)))
    else:
        main()
