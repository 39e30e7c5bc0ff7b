"""Takes the fuzzer's bytes, gives text: either plain UTF-8, or a row of the pieces that answers are made of.

    python fuzz/texts.py CORPUS_FOLDER

writes the texts of tests/data and the slow ones below into a corpus, for the fuzzer to begin with.
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

# What reviewers and fuzzing found slow in some version, or is slow in other readers; the bounds have to act on each.
SLOW = {
    "fractions without braces": r"\frac1" * 100 + "2",
    "fractions of two arguments without braces": r"\frac" * 30 + "12" * 15,
    "fractions after numbers": r"2\frac{" * 19 + "1" + "}{x}" * 19,
    "roots in roots": r"\sqrt{2+" * 19 + "2" + "}" * 19,
    "roots of x in roots": r"\sqrt{x+" * 18 + "2" + "}" * 18,
    "roots without braces": r"\sqrt" * 60 + "2",
    "a tower of numbers": "2" + "^2" * 100,
    "a tower of x": "x^{" * 18 + "x" + "}" * 18,
    "a tower without braces": "x" + "^x" * 38,
    "plus and minus": "1" + r"\pm1" * 99,
    "plus and minus in a list": ",".join([r"\pm\sqrt{2}\pm\sqrt{3}\pm\pi\pm e"] * 16),
    "plus and minus, one sign in a letter": r"\pm x\pm y\pm z\pm\sqrt{w}",
    "a product of brackets": "".join(f"(x+{n})" for n in range(1, 70)),
    "a product of binomial coefficients": "".join(rf"\binom{{n}}{{{k}}}" for k in range(2, 40)),
    "a power of a product": "((x+1)(y+2)(z+3))^{40}",
    "boxes in boxes": r"\boxed{" * 60 + "5" + "}" * 60,
    "quadratic inequalities": r"x^2-2x<" + "+".join(f"{n}x" for n in range(1, 60)),
    "bars in bars": "|1-" * 4 + "x" + "|" * 4 + "<2",
    "unions of roots": r"\cup".join(rf"[\sqrt{{{n}}},\sqrt{{{n + 1}}})" for n in range(2, 26)),
    "sums of sines": "+".join(rf"\sin({n}x)" for n in range(1, 40)),
    "sines of sines": r"\sin(" * 18 + "x" + ")" * 18,
    "arctangents": "+".join(rf"\arctan\frac{{1}}{{{n}}}" for n in range(2, 40)),
    "long digits": "1" * 900,
    "a long decimal": "0." + "1" * 900,
    "a repeating decimal": r"0.\overline{" + "1" * 300 + "}",
    "choose": r"\binom{5000}{2500}",
    "factorials of factorials": "((3!)!)!",
    "sets in sets": r"\{1," * 18 + "2" + r"\}" * 18,
    "pairs in pairs": "(1," * 18 + "2" + ")" * 18,
    "equations": "=".join(["x+y"] * 60),
    "an equation in x and y": "+".join(rf"\sqrt{{x^{n}+y}}" for n in range(2, 20)) + "=xy",
    "a condition over the integers": r"\{x\in\mathbb{Z} : " + r"\text{ and }".join(f"x\\ne {n}" for n in range(40)) + r"\}",
    "names": "(" + ",".join("zyxwvutsrqponmlkjhgfdcba") + ")=(" + ",".join(map(str, range(24))) + ")",
}


def text_of(data: bytes) -> str:
    """Bytes that begin with an odd one are UTF-8, those that begin with an even one are pieces."""
    if not data:
        return ""
    if data[0] % 2:
        return data[1:].decode("utf-8", "surrogateescape")
    return "".join(PIECES[byte % len(PIECES)] for byte in data[1:])


def main() -> None:
    """A file for each answer and completion of the case files, and for each slow text."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)

    def write(text: str) -> None:
        data = b"\1" + text.encode("utf-8", "surrogatepass")  # odd: plain UTF-8
        (folder / blake2b(data, digest_size=8).hexdigest()).write_bytes(data)

    for text in SLOW.values():
        write(text)
    for path in (Path(__file__).parent.parent / "tests" / "data").glob("*.jsonl"):
        for line in path.read_text(encoding="utf-8").splitlines():
            row = json.loads(line)
            for text in row.values() if isinstance(row, dict) else row:
                if isinstance(text, str) and len(text) < 400:
                    write(text)


if __name__ == "__main__":
    main()
