"""The restart with huge pages: once, with nothing of the command or its environment lost."""

import subprocess
import sys

import pytest

from jaxselftrain import huge_pages
from jaxselftrain.huge_pages import TUNABLE, environment, is_useful

SCRIPT = "import os, sys; from jaxselftrain import huge_pages as h; h.is_useful = lambda: True; print('start', flush=True); "
REPORT = "h.restart_with_huge_pages(); print(os.environ['GLIBC_TUNABLES'], sys.argv[1:], sys.flags.utf8_mode, os.getpid())"


def test_a_tunable_is_added_to_those_that_are_there():
    assert environment({"A": "1"}) == {"A": "1", "GLIBC_TUNABLES": f"{TUNABLE}=1"}
    assert environment({"GLIBC_TUNABLES": "glibc.malloc.check=3"}) == {"GLIBC_TUNABLES": f"glibc.malloc.check=3:{TUNABLE}=1"}


@pytest.mark.parametrize("value", ["0", "1", "2"])
def test_what_the_user_set_stays(value):
    assert environment({"GLIBC_TUNABLES": f"{TUNABLE}={value}"}) is None


@pytest.mark.parametrize(
    ("library", "switch", "useful"),
    [
        ("glibc 2.36", "always [madvise] never", True),
        ("glibc 2.34", "always [madvise] never", False),
        ("glibc 2.36", "[always] madvise never", False),  # every process has them there
        ("glibc 2.36", "always madvise [never]", False),
        ("glibc 2.36", None, False),
        (None, "always [madvise] never", False),
    ],
)
def test_where_it_is_of_use(monkeypatch, tmp_path, library, switch, useful):
    monkeypatch.setattr(huge_pages.os, "confstr", lambda name: library, raising=False)
    monkeypatch.setattr(huge_pages, "SWITCH", tmp_path / "enabled")
    if switch is not None:
        (tmp_path / "enabled").write_text(switch)
    assert is_useful() is useful


def test_the_command_starts_again_once_as_the_same_process(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    command = [sys.executable, "-X", "utf8", "-c", SCRIPT + REPORT, "a b", "--c=d"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as started:
        lines = started.stdout.read().splitlines()
    assert started.returncode == 0
    assert lines == ["start", "start", f"{TUNABLE}=1 ['a b', '--c=d'] 1 {started.pid}"]
