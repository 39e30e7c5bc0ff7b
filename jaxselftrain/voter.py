"""Takes the texts of responses, gives their answers and keys, read in worker processes that may be killed at any moment."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from jaxselftrain.answers import compile_pattern
from jaxselftrain.worker_pool import WorkerPool

if TYPE_CHECKING:
    from jaxselftrain.sections import Answer, Vote

MAX_CHARACTERS = 2**20  # of a response; 32,000 tokens are about 200,000


@dataclass(frozen=True)
class Reading:
    """What `Voter.read` found, in the order of its texts."""

    keys: list[str | None]  # canonical key of the answer (answers.answer_key); None: no vote
    answers: list[str | None]  # the answer as it stands in the text
    killed: int  # texts given up: over the time limit, over the memory limit, or they broke the worker twice


class Voter:
    """Reads answers in `vote.workers` processes, with one more warm to replace a killed one at once (see WorkerPool).

    Usable from any thread and in notebooks, several at a time. Close it, or use it as a context manager; the workers also
    end when it is garbage, and when this process dies. Raises UserError when `answer.pattern` does not compile.
    """

    def __init__(self, answer: Answer, vote: Vote):
        if answer.pattern is not None:
            compile_pattern(answer.pattern)
        settings = {"answer": answer.model_dump(mode="json")}
        self._pool = WorkerPool("jaxselftrain.voter_worker", settings, workers=vote.workers, seconds=vote.seconds)

    def read(self, texts: Iterable[str]) -> Reading:
        """Answers and keys of `texts`. Equal texts are read once, also across calls.

        A text that takes more than `vote.seconds` gets key None and is counted in `killed`; the others are unaffected. One
        of more than MAX_CHARACTERS states no answer and is not looked at. Raises TypeError for what is no list of strings,
        RuntimeError in a forked child of the process that made this Voter.
        """
        given = _checked(texts)
        # An empty text stands for those too long: it states no answer in any format.
        found = self._pool.run([text if len(text) <= MAX_CHARACTERS else "" for text in given])
        return Reading(
            keys=[None if result is None else result[1] for result in found],
            answers=[None if result is None else result[0] for result in found],
            killed=found.count(None),
        )

    def pids(self) -> list[int]:
        """Process ids of the workers that are up, the warm one included; for diagnosis."""
        return self._pool.pids()

    def close(self) -> None:
        """End all workers; no process is left behind. May be called more than once; waits for a `read` in another thread."""
        self._pool.close()

    def __enter__(self) -> Voter:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _checked(texts: Iterable[str]) -> list[str]:
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise TypeError(f"Voter.read takes a list of strings, not {type(texts).__name__}: put a single response in a list")
    given = list(texts)
    for index, text in enumerate(given):
        if not isinstance(text, str):
            raise TypeError(f"Voter.read takes a list of strings, and texts[{index}] is {type(text).__name__}")
    return given
