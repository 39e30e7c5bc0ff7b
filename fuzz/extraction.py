"""Takes bytes from the fuzzer, checks that every answer extracted from a response stands in it: no exception, in time.

python fuzz/extraction.py -max_total_time=1800 -max_len=2000 CORPUS_FOLDER
"""

import sys
import time
from types import SimpleNamespace

import atheris

with atheris.instrument_imports(include=["jaxselftrain"]):
    from jaxselftrain.answers import extract

from texts import text_of

SECONDS = 2.0  # CPU time; instrumented code is several times slower than what the voter runs
PATTERN = r"answer is ([^.\n]*)"
FORMATS = ("boxed", "hash", "first_line", "last_line", "letter", "regex")


def check(data: bytes) -> None:
    """One input, in every format."""
    text = text_of(data)
    for format in FORMATS:
        answer = SimpleNamespace(format=format, pattern=PATTERN if format == "regex" else None, max_characters=100)
        started = time.process_time()
        found = extract(text, answer)
        seconds = time.process_time() - started
        assert seconds < SECONDS, f"{format}: {seconds:.2f} s for {text!r}"
        if found is not None:
            assert 0 < len(found) <= 100 and found == found.strip(), (format, found)
            stands = (
                found.lower() in text.lower() if format == "letter" else found in text.replace("\r\n", "\n").replace("\r", "\n")
            )
            assert stands or found in text, (format, found, text)


if __name__ == "__main__":
    atheris.Setup(sys.argv, check)
    atheris.Fuzz()
