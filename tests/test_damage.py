"""Checkpoints that are not what was saved: none is trained on, the one before takes its place, and the run is the same."""

import json
import os
import random
import shutil

import jax
import numpy as np
import pytest
import tiny
from runs import command, final_weights, lines, make_home, without_times

from jaxselftrain import sections
from jaxselftrain.checkpoints import HEALTHY, METRIC, Checkpoints, DamagedError, Saved
from jaxselftrain.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:coroutine")  # reads that Orbax leaves undone; `quiet` does it for users
SECTIONS = {"evaluate": {"questions": None}, "checkpoint": {"every": 2, "keep": 10}, "train": {"steps": 5}}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


class Few:
    """Three checkpoints of a tiny policy, whose arrays differ from step to step."""

    def __init__(self, folder):
        config = tiny.tiny_config(mesh={"data": 1})
        mesh = tiny.mesh_of(config)
        self.folder = folder
        self.saved = {}
        with_noise = [tiny.state(config, mesh, weights=tiny.params(seed=step)) for step in (1, 2, 3)]
        checkpoints = Checkpoints(folder, sections.Checkpoint(keep=3))
        for step, state in enumerate(with_noise, 1):
            moments = jax.tree.map(lambda x, step=step: x + step if x.ndim else x, state.moments)  # not all zeros
            state = tiny.replace(state, moments=moments)
            votes = jax.tree.map(np.asarray, tiny.votes(seed=step))
            self.saved[step] = Saved(state, tiny.rollouts(seed=step), votes, {"step": step, "draws": 100 + step})
            checkpoints.save(step, self.saved[step], metrics={HEALTHY: float(step)})
        checkpoints.wait()
        checkpoints.close()

    def copy(self, to):
        shutil.rmtree(to, ignore_errors=True)
        shutil.rmtree(f"{to}.damaged", ignore_errors=True)
        shutil.copytree(self.folder, to)
        return to

    def restored(self, folder, say=lambda text: None, **last):
        """The step that is gone on from; asserts that it is what was saved."""
        like = self.saved[1]
        checkpoints = Checkpoints(folder, sections.Checkpoint(keep=3))
        try:
            found = checkpoints.restore_newest(abstract(like.state), abstract(like.rollouts), like.feedback, say=say, **last)
        finally:
            checkpoints.close()
        want = self.saved[found.host["step"]]
        assert found.host == want.host
        for name in ("state", "rollouts", "feedback"):
            assert tiny.equal_bits(getattr(found, name), getattr(want, name)), name
        return found.host["step"]


@pytest.fixture(scope="module")
def few(tmp_path_factory):
    return Few(tmp_path_factory.mktemp("few") / "checkpoints")


def files(folder):
    return sorted(path for path in folder.rglob("*") if path.is_file())


def flip(path, rng):
    content = bytearray(path.read_bytes())
    content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    path.write_bytes(content)


def test_no_flipped_bit_of_any_file_is_restored_in_silence(few, tmp_path):
    """Some files are not read, and some bytes mean nothing: then what is restored is what was saved."""
    rng, found = random.Random(0), {}
    for file in files(few.folder / "3"):
        folder = few.copy(tmp_path / "checkpoints")
        flip(folder / "3" / file.relative_to(few.folder / "3"), rng)
        found[file.relative_to(few.folder / "3")] = few.restored(folder)
    assert set(found.values()) == {2, 3}
    arrays = {path: step for path, step in found.items() if path.parts[0] == "state" and "d" in path.parts[1:-1]}
    assert 2 in arrays.values()


@pytest.mark.parametrize("how", ["cut", "empty", "gone"])
def test_no_file_that_is_cut_short_is_restored_in_silence(few, tmp_path, how):
    found = {}
    for file in files(few.folder / "3"):
        folder = few.copy(tmp_path / "checkpoints")
        path = folder / "3" / file.relative_to(few.folder / "3")
        if how == "gone":
            path.unlink()
        else:
            os.truncate(path, path.stat().st_size // 2 if how == "cut" else 0)
        found[str(file.relative_to(few.folder / "3"))] = few.restored(folder)
    assert all(found[f"{item}/manifest.ocdbt"] == 2 for item in ("state", "rollouts", "feedback"))
    assert found["host/metadata"] == 2


@pytest.mark.parametrize("item", ["state", "rollouts", "feedback", "host", ""])
def test_a_missing_item_is_named_and_the_folder_is_kept_aside(few, tmp_path, item):
    folder, said = few.copy(tmp_path / "checkpoints"), []
    shutil.rmtree(folder / "3" / item)
    (folder / "3").mkdir(exist_ok=True)
    assert few.restored(folder, said.append) == 2
    assert len(said) == 1 and said[0].startswith("the checkpoint of step 3 is damaged (") and "step 2 takes its place" in said[0]
    assert (item or "feedback") in said[0] and str(tmp_path / "checkpoints.damaged" / "3") in said[0] and "\n" not in said[0]
    assert (tmp_path / "checkpoints.damaged" / "3").is_dir()
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2"]
    shutil.copytree(few.folder / "3", folder / "3")
    shutil.rmtree(folder / "3" / "state")
    assert few.restored(folder) == 2  # once more
    assert sorted(path.name for path in (tmp_path / "checkpoints.damaged").iterdir()) == ["3", "3.1"]


def test_those_after_a_step_are_passed_over_and_left_alone(few, tmp_path):
    folder = few.copy(tmp_path / "checkpoints")
    shutil.rmtree(folder / "3" / "state")
    assert few.restored(folder, last=2) == 2
    shutil.rmtree(folder / "2" / "state")
    assert few.restored(folder, last=2) == 1
    assert [path.name for path in (tmp_path / "checkpoints.damaged").iterdir()] == ["2"] and (folder / "3").is_dir()
    shutil.rmtree(folder / "1" / "state")
    with pytest.raises(UserError, match="no checkpoint up to step 2 in .* is whole"):
        few.restored(folder, last=2)


def test_a_changed_counter_of_the_hosts_is_seen(few, tmp_path):
    folder, said = few.copy(tmp_path / "checkpoints"), []
    path = folder / "3" / "host" / "metadata"
    path.write_text(path.read_text().replace('"draws": 103', '"draws": 104'))
    assert few.restored(folder, said.append) == 2 and "changed since it was saved: host" in said[0]


def test_where_none_is_whole_all_are_named_and_none_is_moved(few, tmp_path):
    folder = few.copy(tmp_path / "checkpoints")
    for step in (1, 2, 3):
        shutil.rmtree(folder / str(step) / "rollouts")
    with pytest.raises(UserError, match=r"no checkpoint in .* is whole \(step 3: .*; step 2: .*; step 1: .*\); put back a copy"):
        few.restored(folder)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoints"]
    assert sorted(path.name for path in folder.iterdir()) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (MemoryError(), MemoryError),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), jax.errors.JaxRuntimeError),
        (PermissionError(13, "Permission denied"), UserError),
        (ValueError("anything else"), DamagedError),
    ],
)
def test_no_memory_and_no_permission_are_no_damage(few, tmp_path, monkeypatch, error, raised):
    like, checkpoints = few.saved[1], Checkpoints(few.copy(tmp_path / "checkpoints"), sections.Checkpoint(keep=3))

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(checkpoints.manager, "restore", fail)
    with pytest.raises(raised):
        checkpoints.restore(3, abstract(like.state), abstract(like.rollouts), like.feedback)
    checkpoints.close()


def test_an_early_checkpoint_without_digests_is_restored_as_it_is(few, tmp_path):
    folder = few.copy(tmp_path / "checkpoints")
    (folder / "3" / "host" / "metadata").write_text(json.dumps(few.saved[3].host))
    assert few.restored(folder) == 3


def test_the_best_and_the_healthiest_are_kept_by_a_resumed_run_too(few, tmp_path):
    """Which they are is read from the checkpoints; what the process before knew is gone."""
    like, scores = few.saved[1], {1: 0.9, 2: 0.1, 3: 0.2, 4: 0.3, 5: 0.4}
    for step, score in scores.items():
        checkpoints = Checkpoints(tmp_path / "checkpoints", sections.Checkpoint(keep=1))
        checkpoints.save(step, like, metrics={METRIC: score, HEALTHY: float(-abs(step - 3))})
        checkpoints.wait()
        checkpoints.close()
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == ["1", "3", "5"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(tmp_path_factory.mktemp("home"), questions=30, held_out=6, first_held_out=28, **SECTIONS)


@pytest.fixture(scope="module")
def whole(home):
    code, _, err = command("train", str(home / "config.yaml"), f"train.folder={home / 'whole'}")
    assert code == 0, err
    return home / "whole"


def arrays_cut(step):
    for path in files(step / "state"):
        if "/d/" in str(path):
            os.truncate(path, path.stat().st_size // 2)


def arrays_flipped(step):
    """Nine single bits of the largest file of the state, in weights and in moments; every length is as it was."""
    path = max(files(step / "state"), key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    for tenth in range(1, 10):
        content[len(content) * tenth // 10] ^= 1
    path.write_bytes(content)


def test_a_run_whose_last_checkpoints_are_damaged_goes_on_from_the_one_before(whole, home, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    arrays_flipped(run / "checkpoints" / "5")
    arrays_cut(run / "checkpoints" / "4")
    code, _, err = command("export", str(run), str(tmp_path / "x"))
    told = err.splitlines()[-1]
    assert code == 2 and "Traceback" not in err and "the checkpoint of step 5 in" in told, err
    assert "is damaged (changed since it was saved: state/params/" in told and "makes it again from the one before" in told
    code, _, err = command("train", str(home / "config.yaml"), f"train.folder={run}")
    assert code == 0 and "Traceback" not in err and "Exception" not in err and "never awaited" not in err, err
    for step in (5, 4):
        assert f"the checkpoint of step {step} is damaged (" in err and (run / "checkpoints.damaged" / str(step)).is_dir()
    assert "resuming after step 2" in err
    assert without_times(lines(run)) == without_times(lines(whole))
    assert without_times(lines(run, "responses.jsonl")) == without_times(lines(whole, "responses.jsonl"))
    ours, theirs = final_weights(run, 5), final_weights(whole, 5)
    assert ours.keys() == theirs.keys() and all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    code, out, err = command("export", str(run), str(tmp_path / "y"))
    assert code == 0 and "step 5" in out, err


def test_a_run_without_a_whole_checkpoint_is_refused_and_left_alone(whole, home, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    for step in (run / "checkpoints").iterdir():
        arrays_cut(step)
    before = (run / "metrics.jsonl").read_bytes()
    for _ in range(2):
        code, _, err = command("train", str(home / "config.yaml"), f"train.folder={run}")
        assert code == 2 and "Traceback" not in err and "is whole (step 5: " in err.splitlines()[-1], err
        assert (run / "metrics.jsonl").read_bytes() == before and not (run / "checkpoints.damaged").exists()
