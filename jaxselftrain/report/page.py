"""Takes run folders, gives report.html beside its pictures: one page without scripts that asks the network for nothing.

Model output is untrusted. Every text in the page goes through `text.visible` and is escaped; the page's own policy allows no
script, no style but its own, and no picture from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from jaxselftrain import __version__
from jaxselftrain.config import to_yaml
from jaxselftrain.errors import UserError
from jaxselftrain.metrics import METRICS
from jaxselftrain.report.pictures import Missing, Picture, draw_series
from jaxselftrain.report.runs import Group, Run, differences, read_groups
from jaxselftrain.report.samples import Asked, read_asked, read_shares
from jaxselftrain.report.series import SERIES
from jaxselftrain.report.special_pictures import draw_against, draw_shares, draw_thresholds
from jaxselftrain.report.story import percent, tell, tiles, verdict_told
from jaxselftrain.report.text import visible
from jaxselftrain.run_folder import make_folder, replace_text

PAGE, PICTURES = "report.html", "pictures"
ORDER = (
    *("held_out", "reward", "against", "labels", "shares", "agreement"),
    *("thresholds", "surprise", "entropy", "kl", "confidence", "length", "format", "alarm"),
)
ROWS = 60  # questions to browse, over all runs


@dataclass(frozen=True)
class Browsed:
    """The questions of one run that the page shows."""

    run: Run
    asked: list[Asked]
    logged: int


def write_report(folders: Sequence[Path], out: Path, *, reload_seconds: int | None) -> Path:
    """Draws the pictures and writes the page, each file in one move; gives the page's path.

    With `reload_seconds` the page loads itself anew so often. Raises UserError for folders that hold no run, and when
    something cannot be written.
    """
    groups = read_groups(folders)
    shares = {run.folder: read_shares(run.folder) for group in groups for run in group.runs}
    make_folder(out)
    make_folder(out / PICTURES)
    try:
        pictures = _draw(groups, shares, out / PICTURES)
        page = render(groups, pictures, _browse(groups, shares), reload_seconds=reload_seconds)
        replace_text(out / PAGE, page)
    except OSError as error:
        raise UserError(
            f"{error.filename or out} cannot be written: {error.strerror}; free some space or name another --out"
        ) from None
    return out / PAGE


def render(
    groups: Sequence[Group], pictures: Sequence[Picture | Missing], browsed: Sequence[Browsed], *, reload_seconds: int | None
) -> str:
    """The HTML text."""
    environment = Environment(
        loader=PackageLoader("jaxselftrain.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_shown,
        trim_blocks=True,
    )
    environment.filters |= {"percent": percent, "png": _png, "code": _code}
    loader: Any = environment.loader
    style, _, _ = loader.get_source(environment, "page.css")
    drawn = [each for each in pictures if isinstance(each, Picture)]
    stories = [[tell(run) for run in group.runs] for group in groups]
    return environment.get_template("page.html").render(
        style=Markup(style),
        style_hash=base64.b64encode(hashlib.sha256(style.encode()).digest()).decode(),
        reload_seconds=reload_seconds,
        version=__version__,
        made=time.strftime("%Y-%m-%d %H:%M"),
        runs=[run for group in groups for run in group.runs],
        cards=[
            {
                "group": group,
                "stories": told,
                "tiles": tiles(group, told),
                "verdict": verdict_told(told),
                "finished": all(run.finished for run in group.runs),
            }
            for group, told in zip(groups, stories, strict=True)
        ],
        pictures=drawn,
        notes=list(dict.fromkeys(note for picture in drawn for note in picture.notes)),
        missing=[each for each in pictures if isinstance(each, Missing)],
        explained=METRICS,
        browsed=browsed,
        differences=differences(groups),
        settings=[(group, to_yaml(group.runs[0].config)) for group in groups],
    )


def _draw(groups: Sequence[Group], shares: dict[Path, list[tuple[int, float]]], folder: Path) -> list[Picture | Missing]:
    """All pictures in their order. One that an earlier report left, and that cannot be drawn now, is taken away."""
    pooled = {group.name: [each for run in group.runs for each in shares[run.folder]] for group in groups}
    drawn = {series.name: draw_series(series, groups, folder) for series in SERIES}
    drawn |= {
        "against": draw_against(groups, folder),
        "shares": draw_shares(groups, pooled, folder),
        "thresholds": draw_thresholds(groups, folder),
    }
    for name, picture in drawn.items():
        if isinstance(picture, Missing):
            for ending in ("png", "csv"):
                (folder / f"{name}.{ending}").unlink(missing_ok=True)
    return [drawn[name] for name in ORDER]


def _browse(groups: Sequence[Group], shares: dict[Path, list[tuple[int, float]]]) -> list[Browsed]:
    runs = [run for group in groups for run in group.runs if shares[run.folder]]
    most = max(2, ROWS // max(1, len(runs)))
    return [
        Browsed(
            run, read_asked(run.folder, total=len(shares[run.folder]), most=most, of_page=1 / len(runs)), len(shares[run.folder])
        )
        for run in runs
    ]


def _shown(value: Any) -> Any:
    """What the template puts out: texts without what acts unseen; jinja escapes them next."""
    return value if isinstance(value, Markup | int | float) else visible(str(value))


def _code(text: str) -> Markup:
    """A sentence in which `this` is set as code."""
    parts = [escape(visible(part)) for part in text.split("`")]
    return Markup("").join(Markup("<code>%s</code>") % part if number % 2 else part for number, part in enumerate(parts))


def _png(data: bytes) -> Markup:
    return Markup("data:image/png;base64,") + base64.b64encode(data).decode()
