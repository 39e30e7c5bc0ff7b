"""Takes the case files of the tests (or a folder with larger ones of the same form), prints how the keys do on them.

    python benchmarks/answer_keys.py [FOLDER]

Equivalence cases right, wrongly equal and asymmetric; triples that break transitivity; hostile completions with the wanted
outcome, their largest CPU time and the peak memory; microseconds of some answers.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace

from jaxselftrain.answers import answer_key, extract, is_opaque, matches

SAMPLES = ["42", "3.14", r"\frac{1}{2}", "x^2+2x+1", r"2\sqrt{3}", "(1,2)", r"\text{east}", "x=5", r"\sin^2 x", r"e^{i\pi}"]


def rows(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def wanted(want: str, key: str | None) -> bool:
    if want.startswith("value:"):
        return key == answer_key(want.removeprefix("value:"))
    return want == "any" or key is None or (want == "opaque|none" and is_opaque(key))


def equivalence(folder: Path) -> None:
    cases = rows(folder / "equivalence_cases.jsonl")
    wrong = [case for case in cases if matches(case["a"], case["b"]) != case["equal"]]
    false_equal = [case for case in wrong if case["basis"] == "math" and not case["equal"]]
    asymmetric = sum(matches(case["a"], case["b"]) != matches(case["b"], case["a"]) for case in cases)
    print(
        f"equivalence: {len(cases) - len(wrong)} of {len(cases)} right, {len(false_equal)} false-equal, {asymmetric} asymmetric"
    )
    for case in wrong:
        print("  wrong:", json.dumps(case), answer_key(case["a"]), answer_key(case["b"]))
    triples = [tuple(t[k] for k in ("a", "bridge", "c")) for t in rows(folder / "nontransitive_triples.jsonl")]
    broken = sum(matches(a, b) and matches(b, c) and not matches(a, c) for a, b, c in triples)
    print(f"triples: {broken} of {len(triples)} not transitive")


def hostile(folder: Path) -> None:
    settings = SimpleNamespace(format="boxed", pattern=None, max_characters=1000)
    answer_key(r"\sqrt2")  # a warm worker has mpmath
    cases = rows(folder / "hostile_answers.jsonl")
    good, worst = 0, 0.0
    for case in cases:
        text = case["text"] if "text" in case else "".join(part * times for part, times in case["parts"])
        start = time.process_time()
        found = extract(text, settings)  # type: ignore[arg-type]
        key = None if found is None else answer_key(found)
        worst = max(worst, time.process_time() - start)
        good += wanted(case["want"], key)
        if not wanted(case["want"], key):
            print("  not as wanted:", case["id"], case["want"], key)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"hostile: {good} of {len(cases)} as wanted; at most {worst * 1000:.1f} ms CPU each, peak memory {peak:.0f} MiB")


def speed() -> None:
    for text in SAMPLES:
        best = 1.0
        for _ in range(5):
            start = time.perf_counter()
            for _ in range(20):
                answer_key(text)
            best = min(best, (time.perf_counter() - start) / 20)
        print(f"{best * 1e6:8.1f} us  {text}")


if __name__ == "__main__":
    here = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parents[1] / "tests" / "data"
    equivalence(here)
    hostile(here)
    speed()
