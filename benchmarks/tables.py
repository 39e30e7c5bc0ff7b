"""Takes a title, columns and rows, prints a Markdown table that reads well on a terminal too."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence

from jaxselftrain.errors import UserError


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, notes: Sequence[str] = ()) -> None:
    """The first column stands to the left, figures to the right; `notes` come below."""
    widths = [max(len(cell) for cell in cells) for cells in zip(columns, *rows, strict=True)]

    def line(cells):
        first, *rest = (
            cell.ljust(width) if i == 0 else cell.rjust(width) for i, (cell, width) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    rule = "| " + " | ".join([":" + "-" * (widths[0] - 1), *("-" * (width - 1) + ":" for width in widths[1:])]) + " |"
    print(f"**{title}**", "", line(columns), rule, *(line(row) for row in rows), "", sep="\n")
    for note in notes:
        print(note, "", sep="\n")


def si(value: float, unit: str) -> str:
    """1234567 B -> 1.23 MB."""
    for prefix in ("", "k", "M", "G", "T", "P"):
        if abs(value) < 1000 or prefix == "P":
            return f"{value:.3g} {prefix}{unit}"
        value /= 1000
    raise AssertionError("unreachable")


def seconds(value: float) -> str:
    """Three significant digits, at most three decimals."""
    return number(value, 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 1 else 3)


def number(value: float, decimals: int) -> str:
    """Nothing where there is none: of a side that did not get so far."""
    return "" if math.isnan(value) else f"{value:.{decimals}f}"


def told(main: Callable[[], None]) -> None:
    """Runs a script; what its user can change is a sentence and exit code 2, not a traceback."""
    try:
        main()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
