"""Takes a JSONL file of answers, gives every pair on which our keys and math-verify disagree.

    python benchmarks/math500_keys.py math500.jsonl        (each line: {"answer": ...})

Needs math-verify (`pip install math-verify`). Equal strings are compared once. math-verify is asked in both directions,
because it is not symmetric; a pair counts as equal for it when either says so.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from itertools import combinations
from pathlib import Path

from jaxselftrain.answers import answer_key


def main(path: str) -> None:
    from math_verify import parse, verify

    logging.disable(logging.CRITICAL)
    answers = [str(json.loads(line)["answer"]) for line in Path(path).read_text(encoding="utf-8").splitlines() if line.strip()]
    distinct = list(dict.fromkeys(answers))
    start = time.process_time()
    keys = {answer: answer_key(answer) for answer in distinct}
    ours = time.process_time() - start
    start = time.process_time()
    parsed = {answer: parse(f"${answer}$", parsing_timeout=None) for answer in distinct}
    pairs = equal = 0
    disagreements = []
    for a, b in combinations(distinct, 2):
        pairs += 1
        key_equal = keys[a] is not None and keys[a] == keys[b]
        forth = verify(parsed[a], parsed[b], timeout_seconds=None)
        back = verify(parsed[b], parsed[a], timeout_seconds=None)
        equal += key_equal
        if key_equal != (forth or back) or forth != back:
            disagreements.append((a, b, key_equal, forth, back))
    theirs = time.process_time() - start
    print(f"{len(answers)} answers, {len(distinct)} distinct, {pairs} pairs: {equal} equal by keys")
    print(f"CPU seconds: keys {ours:.3f}, math-verify {theirs:.1f}; {len(disagreements)} disagreements")
    for a, b, key_equal, forth, back in disagreements:
        print(json.dumps({"a": a, "b": b, "keys": key_equal, "math_verify": [forth, back]}))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python benchmarks/math500_keys.py ANSWERS.jsonl")
    main(sys.argv[1])
