"""Takes a workload's name or its numbers, gives the Workload and questions of exactly its length for a tokenizer."""

from __future__ import annotations

import argparse
import random
from typing import NamedTuple

from jaxselftrain.model.tokenizer import Tokenizer


class Workload(NamedTuple):
    """Q questions x N samples, C prompt and T response tokens each."""

    Q: int
    N: int
    C: int
    T: int

    def __str__(self) -> str:
        name = next((f"{name}: " for name, workload in WORKLOADS.items() if workload == self), "")
        return f"{name}{self.Q} questions x {self.N} samples, {self.C} prompt + {self.T} response tokens"


WORKLOADS = {"W1": Workload(8, 16, 48, 8), "W2": Workload(8, 16, 48, 128), "W3": Workload(4, 32, 256, 64)}
WORDS = (
    "the number of apples in each box is two more than what Tom has left over after he gives half away to his sister and "
    "then buys seven more at the market for three dollars so how many does she need to fill every shelf"
).split()


def workload(text: str) -> Workload:
    """An argparse type: W1, W2, W3 or Q,N,C,T."""
    if text in WORKLOADS:
        return WORKLOADS[text]
    try:
        found = Workload(*(int(part) for part in text.split(",")))
    except (TypeError, ValueError):
        found = None
    if found is None or min(found) < 1:
        raise argparse.ArgumentTypeError(f"{text} is neither one of {', '.join(WORKLOADS)} nor Q,N,C,T")
    return found


def name_of(found: Workload) -> str | None:
    return next((name for name, known in WORKLOADS.items() if known == found), None)


def questions(tokenizer: Tokenizer, *, count: int, C: int) -> tuple[list[str], list[list[int]]]:
    """`count` different texts and their tokens, C each; BOS stands in front where there is one, because Tunix puts it there."""
    rng, found = random.Random(0), {}
    bos = tokenizer.hf.bos_token or ""
    most = 100 * count
    while len(found) < count and (most := most - 1):
        words = tokenizer.hf(" ".join(rng.choice(WORDS) for _ in range(C + 8)), add_special_tokens=False).input_ids
        text = bos + tokenizer.hf.decode(words[: C - bool(bos)])
        tokens = tokenizer.hf(text, add_special_tokens=False).input_ids
        if len(tokens) == C and tokens == tokenizer.encode(text):
            found[text] = tokens
    if len(found) < count:
        raise SystemExit(f"only {len(found)} of {count} different questions of {C} tokens were found; use longer prompts")
    return list(found), list(found.values())
