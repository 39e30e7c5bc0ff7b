"""The fault campaign itself, with a few kills; `make faults` makes a hundred."""

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.long
@pytest.mark.parametrize("kills, processes", [(4, 1), (3, 2)])
def test_a_few_kills_lose_nothing(kills, processes, tmp_path):
    script = Path(__file__).with_name("campaign.py")
    few = ["--kills", str(kills), "--processes", str(processes), "--seed", "1", "--steps", "15"]
    arguments = [*few, "--folder", str(tmp_path / "faults")]
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True, timeout=1800)
    assert done.returncode == 0, done.stdout + done.stderr
    cells = dict(
        line.strip("| ").split(" | ") for line in done.stdout.splitlines() if line.startswith("| ") and line[2].islower()
    )
    assert (cells["kills"], cells["losses"]) == (str(kills), "0")
    left = {path.name for path in (tmp_path / "faults").iterdir() if path.is_dir()}
    assert left == {"whole", "cache"}  # a run that lost nothing is not kept
