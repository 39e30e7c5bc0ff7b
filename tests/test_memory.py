"""What `auto` decides, against the compiler's account of each choice and against runs with the choice written out."""

import pytest
from runs import make_home

from jaxselftrain import memory
from jaxselftrain.assembly import open_parts
from jaxselftrain.config import load_config
from jaxselftrain.errors import UserError
from jaxselftrain.memory import choices, device_limit, fit_memory, step_bytes
from jaxselftrain.run_folder import read_config
from jaxselftrain.train import train

WIDTH = 64


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    # long enough that activations outweigh the weights; two questions for each of the eight devices
    sections = {"rollout": {"questions": 16, "max_tokens": 96}, "mesh": {"data": -1}, "evaluate": {"questions": None}}
    return make_home(tmp_path_factory.mktemp("memory"), questions=16, held_out=4, first_held_out=20, **sections)


def parts_of(home, micro, remat):
    settings = f"update.micro_batches={micro}", f"model.remat={str(remat).lower()}"
    return open_parts(load_config(home / "config.yaml", settings), cache=None)


def chosen(config):
    return config.update.micro_batches, config.model.remat


def test_choices_go_from_fast_to_small_and_leave_no_device_idle(home):
    config = parts_of(home, "auto", "auto").config
    for rows, counts in {1: [1, 2, 4, 8, 16, 32, 64], 2: [1, 2, 4, 8], 8: [1, 2]}.items():  # 16 questions, then their 4 samples
        assert [chosen(c) for c in choices(config, rows=rows)] == [(n, remat) for remat in (False, True) for n in counts]
    assert {chosen(c)[1] for c in choices(parts_of(home, "auto", True).config, rows=1)} == {True}
    assert {chosen(c)[0] for c in choices(parts_of(home, 4, "auto").config, rows=1)} == {4}


def test_the_first_choice_that_fits_is_taken(home, monkeypatch):
    parts, told = parts_of(home, "auto", "auto"), []
    sizes = {choice: step_bytes(parts_of(home, *choice), WIDTH) for choice in ((1, False), (2, False), (1, True), (2, True))}
    assert sizes[1, False] > sizes[2, False] > sizes[2, True] and sizes[1, False] > sizes[1, True]
    monkeypatch.setattr(memory, "step_bytes", lambda parts, width: sizes[chosen(parts.config)])  # not to compile them again
    for limit in (sizes[1, False], sizes[1, False] - 1, sizes[2, False] - 1):
        fitting = next(choice for choice, size in sizes.items() if size <= limit)
        assert chosen(fit_memory(parts, WIDTH, limit=limit, say=told.append).config) == fitting
    assert "update.micro_batches = 1, model.remat = false: the step takes" in told[0]
    with pytest.raises(UserError, match=r"the training step takes at least 0\.0 GiB a device.* lower rollout.max_tokens"):
        fit_memory(parts, WIDTH, limit=min(sizes.values()) - 1, say=told.append)
    assert device_limit() > 2**20


def test_a_run_keeps_what_was_decided(home, tmp_path, monkeypatch):
    told = []
    auto = ("update.micro_batches=auto", "model.remat=auto", "rollout.max_tokens=6")
    list(train(load_config(home / "config.yaml", (*auto, "train.steps=1")), tmp_path / "run", say=told.append))
    assert chosen(read_config(tmp_path / "run")) == (1, False) and any("GiB a device" in line for line in told)
    monkeypatch.setattr("jaxselftrain.loop.fit_memory", None)  # fails if it is asked again
    again = load_config(home / "config.yaml", (*auto, "train.steps=2"))
    assert [report.step for report in train(again, tmp_path / "run", say=told.append)] == [2]
    assert chosen(read_config(tmp_path / "run")) == (1, False)
