"""Takes answers that our keys have judged, gives those that the package math-verify judges differently.

math-verify compares two answers at a time, with a parser of its own, so a difference points at a mistake on one of the two
sides. It calls sympy on what a model wrote and can run for ever: it works in processes that may be killed, never here.
"""

from __future__ import annotations

import importlib.util
import json
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from jaxselftrain.errors import UserError
from jaxselftrain.voter_worker import serve
from jaxselftrain.worker_pool import WorkerPool

SECONDS = 5.0  # for one comparison, as math-verify's own limit, which is off here: it rests on signals


class Judged(NamedTuple):
    """One sample of an evaluation that stated an answer."""

    id: str  # of the question
    gold: str
    answer: str
    right: bool  # whether the keys of answer and gold are equal


@dataclass(frozen=True)
class CrossCheck:
    """Where math-verify and the keys differ. Counts are of samples."""

    compared: int
    failed: int  # math-verify took too long or broke
    differs: int
    rows: list[dict[str, Any]]  # each different (question, answer) once: id, gold, answer, samples, keys, math_verify

    def jsonl(self) -> str:
        """The rows as JSON lines."""
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in self.rows)


def require_math_verify() -> None:
    """Raises UserError when the package is not installed."""
    if importlib.util.find_spec("math_verify") is None:
        raise UserError(
            "evaluate.cross_check = math_verify needs the package math-verify; install it with "
            "`pip install 'jaxselftrain[math-verify]'`, or set evaluate.cross_check=null"
        )


def cross_check(judged: Iterable[Judged], *, workers: int) -> CrossCheck:
    """Judges each different pair of answer and gold once with math-verify. Raises UserError when it is not installed."""
    require_math_verify()
    samples = Counter(judged)
    pairs = [json.dumps([sample.gold, sample.answer]) for sample in samples]
    with WorkerPool("jaxselftrain.cross_check", {}, workers=workers, seconds=SECONDS) as pool:
        verdicts = dict(zip(samples, pool.run(pairs), strict=True))
    rows = [
        {
            "id": sample.id,
            "gold": sample.gold,
            "answer": sample.answer,
            "samples": samples[sample],
            "keys": sample.right,
            "math_verify": verdict,
        }
        for sample, verdict in verdicts.items()
        if verdict is not None and verdict != sample.right
    ]
    return CrossCheck(
        compared=samples.total(),
        failed=sum(samples[sample] for sample, verdict in verdicts.items() if verdict is None),
        differs=sum(row["samples"] for row in rows),
        rows=rows,
    )


def _reader(settings: dict[str, Any]) -> Callable[[str], bool]:
    """Runs in the worker: the function from JSON of [gold, answer] to math-verify's verdict."""
    from math_verify import parse, verify

    def parsed(answer: str):
        return parse(f"\\boxed{{{answer}}}", parsing_timeout=None, raise_on_error=True)

    def read(text: str) -> bool:
        gold, answer = json.loads(text)
        return bool(verify(parsed(gold), parsed(answer), timeout_seconds=None, raise_on_error=True))

    read(json.dumps(["x+1", "1+x"]))  # its parser tables are built at first use: not on the first answer's clock
    return read


if __name__ == "__main__":
    serve(_reader)
