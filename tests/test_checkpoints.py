"""Saving when the worst happens: a kill in the middle of a save, a disk that fills up, a device without memory."""

import asyncio
import gc
import json
import re
import resource
import signal
import subprocess
import sys
import time

import jax
import numpy as np
import pytest
import tensorstore
from runs import command, environment, final_weights, lines, make_home, start, wait_for_step, without_times

from jaxselftrain import checkpoints, loop
from jaxselftrain.config import load_config
from jaxselftrain.errors import UserError
from jaxselftrain.training import train

# The command line, where the save of step 4 never ends: the files are written, the name is not final.
STUCK = """
import sys, time
from orbax.checkpoint._src.path import atomicity

def stuck(real):
    async def finalize(self, *args, **kwargs):
        if self.get_final().name == "4":
            open(sys.argv[1], "w").close()
            time.sleep(600)
        return await real(self, *args, **kwargs)
    return finalize

for kind in (atomicity.AtomicRenameTemporaryPath, atomicity.CommitFileTemporaryPath):
    kind.finalize = stuck(kind.finalize)
from jaxselftrain.cli import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    sections = {"evaluate": {"questions": None}, "checkpoint": {"every": 2, "keep": 10}, "train": {"steps": 5}}
    return make_home(tmp_path_factory.mktemp("home"), questions=30, held_out=6, first_held_out=28, **sections)


@pytest.fixture(scope="module")
def whole(home):
    """The same run, uninterrupted."""
    code, _, err = command("train", str(home / "config.yaml"), f"train.folder={home / 'whole'}")
    assert code == 0, err
    return home / "whole"


def test_a_kill_in_the_middle_of_a_save_loses_only_that_save(home, whole, tmp_path):
    arguments = ["train", str(home / "config.yaml"), f"train.folder={tmp_path / 'run'}"]
    marker, checkpoints = tmp_path / "saving", tmp_path / "run" / "checkpoints"
    process = subprocess.Popen([sys.executable, "-c", STUCK, str(marker), *arguments], env=environment(), stderr=subprocess.PIPE)
    limit = time.monotonic() + 120
    while not marker.exists():
        assert process.poll() is None and time.monotonic() < limit, process.stderr.read().decode()[-2000:]
        time.sleep(0.01)
    half = [path.name for path in checkpoints.iterdir() if not path.name.isdigit()]
    assert any(name.startswith("4.") for name in half)  # the save was under way
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert {path.name for path in checkpoints.iterdir() if path.name.isdigit()} == {"2"}
    code, _, err = command(*arguments)
    assert code == 0 and "resuming after step 2" in err, err
    assert {path.name for path in checkpoints.iterdir()} == {"2", "4", "5"}  # nothing half-written is left
    assert without_times(lines(tmp_path / "run")) == without_times(lines(whole))
    ours, theirs = final_weights(tmp_path / "run", 5), final_weights(whole, 5)
    assert ours.keys() == theirs.keys() and all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)


def test_a_full_disk_ends_the_run_in_one_sentence_and_keeps_the_old_checkpoint(home, whole, tmp_path):
    """No file may grow beyond 8 KiB once step 2 is saved, which no checkpoint can keep to."""
    arguments = ["train", str(home / "config.yaml"), f"train.folder={tmp_path / 'run'}"]
    process = start(*arguments, "train.steps=400", "log.tensorboard=false", "log.responses=0")
    wait_for_step(tmp_path / "run", 2, process)
    while not (tmp_path / "run" / "checkpoints" / "2").exists():
        time.sleep(0.005)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (8192, 8192))
    _, err = process.communicate(timeout=120)
    assert process.returncode == 2 and "Traceback" not in err and "never" not in err, err
    found = re.search(r"no room on the disk for .*/run(/checkpoints)?", err.splitlines()[-1])  # the log may hit the limit first
    assert found, err
    kept = max(int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit())
    assert kept >= 2
    if found[1]:
        assert f"the checkpoint of step {kept} is intact" in err.splitlines()[-1]
    code, _, err = command(*arguments, "train.steps=5")
    assert code == 0, err
    assert [line["step"] for line in lines(tmp_path / "run")] == list(range(1, max(kept, 5) + 1))
    theirs = {line["step"]: line for line in without_times(lines(whole))}
    assert all(line == theirs[line["step"]] for line in without_times(lines(tmp_path / "run")) if line["step"] < 5)


def test_of_several_failed_reads_one_is_told(tmp_path, caplog):
    """Two arrays are missing; the loop that reads them ends with the first error, as Orbax's does."""

    async def read(*names):
        places = [{"driver": "file", "path": str(tmp_path / name)} for name in names]
        opening = [tensorstore.open({"driver": "zarr", "kvstore": place}) for place in places]
        tasks = [asyncio.ensure_future(each) for each in opening]
        await asyncio.wait(tasks)
        raise tasks[0].exception()

    def said():
        caplog.clear()
        with pytest.raises(ValueError, match="NOT_FOUND"):
            asyncio.run(read("a", "b", "c"))
        gc.collect()
        return [record.getMessage() for record in caplog.records if record.name == "asyncio"]

    with checkpoints.quiet():
        assert said() == []
    asyncio.run(_fail_unheard())
    gc.collect()
    assert "never retrieved" in caplog.text  # another library's errors are still told


async def _fail_unheard():
    async def fail():
        raise ValueError("unheard")

    task = asyncio.ensure_future(fail())
    await asyncio.wait([task])


def test_out_of_device_memory_says_what_to_lower(home, tmp_path, monkeypatch):
    real, calls = loop.Loop._call, []

    def full(self, *arguments, **flags):
        calls.append(flags)
        if len(calls) == 2:  # XLA's own words
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 17179869184 bytes.")
        return real(self, *arguments, **flags)

    monkeypatch.setattr(loop.Loop, "_call", full)
    config = load_config(home / "config.yaml", ("update.micro_batches=2", "rollout.questions=8", "mesh.data=-1"))
    with pytest.raises(
        UserError, match=r"out of device memory: raise update.micro_batches \(now 2; auto finds what fits\).* rollout.max_tokens"
    ):
        list(train(config, tmp_path / "run", say=lambda text: None))


def test_the_summary_says_what_the_run_cost(whole):
    summary = json.loads((whole / "summary.json").read_text())
    assert summary["compiled"]["step"]["times"] == 1 and summary["compiled"]["step"]["seconds"] > 0
    assert "sample" not in summary["compiled"]  # nothing was evaluated
    assert 0.1 < summary["peak_memory_gib"]["host"] < 20
    steps = sum(summary["split"].values())
    assert summary["seconds"] > steps > 0 and np.isclose(summary["seconds"], lines(whole)[-1]["elapsed_seconds"], atol=0.06)
