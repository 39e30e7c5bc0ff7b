"""Takes the fuzzer's bytes, gives text: either plain UTF-8, or a row of the pieces that answers are made of.

    python fuzz/texts.py CORPUS_FOLDER

writes the texts of tests/data into a corpus, for the fuzzer to begin with.
"""

from __future__ import annotations

import json
import sys
from hashlib import blake2b
from pathlib import Path

# One byte is one piece, so that a mutation of a byte is a mutation of the expression and not of its spelling.
PIECES = (
    *"0123456789+-*/^_=<>()[]{}|,.;:!%$&'\" \nabcdefgijknrtxyzABCDEX",
    r"\frac{", r"\dfrac", r"\tfrac12", r"\sqrt{", r"\sqrt[3]{", r"\pi", r"\infty", r"\cdot", r"\times", r"\div", r"\pm", r"\le",
    r"\geq", r"\neq", r"\in", r"\cup", r"\cap", r"\emptyset", r"\{", r"\}", r"\left(", r"\right)", r"\left[", r"\right.", r"\%",
    r"\$", r"\circ", r"^\circ", r"\text{", r"\mathrm{", r"\mbox{ cm}", r"\boxed{", r"\fbox{", r"\sin", r"\cos^{2}", r"\tan^{-1}",
    r"\log_{", r"\ln", r"\exp", r"\lfloor", r"\rfloor", r"\binom{", r"\sum_{", r"\int_0^1", r"\lim", r"\begin{pmatrix}",
    r"\end{pmatrix}", r"\begin{cases}", r"\end{cases}", r"\\", r"\overline{", r"\angle", r"\sqrt", r"\mathbb{R}", r"\,",
    r"\theta",
    "}{", "}", "^{", "_{", "**", "1e9", "10^{10}", "999999999", "0.3", "1,000", "1/3", "2!", "x^2", " and ", " or ", "sqrt(",
    "pi", "i", "mod", "dollars", "####", "answer is", "(B)", "N/A", "nan", "inf", "__import__('os')", "\0", "\u202e", "\ud800",
    "\u00bd", "\u00b2", "\u221a", "\u2212", "\uff15", "\u06f5", "\ufeff", "\r\n", "\t",
)  # fmt: skip


def text_of(data: bytes) -> str:
    """Bytes that begin with an odd one are UTF-8, those that begin with an even one are pieces."""
    if not data:
        return ""
    if data[0] % 2:
        return data[1:].decode("utf-8", "surrogateescape")
    return "".join(PIECES[byte % len(PIECES)] for byte in data[1:])


def main() -> None:
    """A file for each answer and completion of the case files."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    for path in (Path(__file__).parent.parent / "tests" / "data").glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for text in row.values() if isinstance(row, dict) else row:
                if isinstance(text, str) and len(text) < 400:
                    data = b"\1" + text.encode("utf-8", "surrogatepass")  # odd: plain UTF-8
                    (folder / blake2b(data, digest_size=8).hexdigest()).write_bytes(data)


if __name__ == "__main__":
    main()
