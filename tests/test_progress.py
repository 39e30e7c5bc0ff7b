"""What a run shows while it goes on: a bar for who watches, lines for a log."""

import io
import re
import sys

import pytest

from jaxselftrain import progress
from jaxselftrain.loop import Report
from jaxselftrain.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(monkeypatch, stream, *, shown=True, first=0, last=30):
    monkeypatch.setattr(sys, "stderr", stream)
    with Progress(30, shown=shown) as of:
        of.say("opening")
        for step in range(first, last + 1):
            of.watch("sampling")
            extra = {"heldout/avg": 0.5} if step == 12 else {}
            of.show(Report(step, {"pseudo_reward": step / 30, "tokens_per_second": 123.456} | extra, []))
    return stream.getvalue()


def test_a_log_has_lines_and_none_too_many(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", 1000.0)
    text = shown(monkeypatch, io.StringIO())
    assert "\r" not in text
    assert text.splitlines() == [
        "opening",
        "step 0 of 30: pseudo-reward 0, tok/s 123",
        "step 12 of 30: pseudo-reward 0.4, tok/s 123, held-out avg 0.5",
        "step 30 of 30: pseudo-reward 1, tok/s 123",
    ]
    monkeypatch.setattr(progress, "EVERY", 0.0)
    assert len(shown(monkeypatch, io.StringIO()).splitlines()) == 1 + 31


def test_a_terminal_has_a_bar_that_stays(monkeypatch):
    text = shown(monkeypatch, Terminal(), first=20)
    assert "\r" in text and "step 20 of" not in text and "opening" in text
    assert re.search(r"training: 100%.*30/30", text.split("\r")[-1])


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_a_process_that_is_not_the_first_shows_nothing_of_its_steps(stream, monkeypatch):
    assert shown(monkeypatch, stream(), shown=False) == "opening\n"
