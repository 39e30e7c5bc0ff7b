"""Takes bytes from the fuzzer, checks that every answer has a key or none: no exception, in time, the same at each call.

python fuzz/answer_key.py -max_total_time=1800 -max_len=400 CORPUS_FOLDER
"""

import sys
import time

import atheris

with atheris.instrument_imports(include=["jaxselftrain"]):
    from jaxselftrain.answers import answer_key

from texts import text_of

SECONDS = 2.0  # CPU time; instrumented code is several times slower than what the voter runs


def check(data: bytes) -> None:
    """One input."""
    text = text_of(data)
    started = time.process_time()
    key = answer_key(text)
    seconds = time.process_time() - started
    assert seconds < SECONDS, f"{seconds:.2f} s for {text!r}"
    assert key is None or (":" in key and key.partition(":")[0].isalpha()), repr(key)
    assert answer_key(text) == key, text


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
