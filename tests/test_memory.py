"""What `auto` decides, against the compiler's account of each choice and against runs with the choice written out."""

import math

import jax
import pytest
from runs import make_home

from jaxselftrain import memory
from jaxselftrain.assembly import open_parts
from jaxselftrain.config import load_config
from jaxselftrain.errors import UserError
from jaxselftrain.memory import PART, choices, fit_memory, step_bytes
from jaxselftrain.run_folder import read_config
from jaxselftrain.training import train

WIDTH = 64


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    # long enough that activations outweigh the weights; two questions for each of the eight devices
    sections = {"rollout": {"questions": 16, "max_tokens": 96}, "mesh": {"data": -1}, "evaluate": {"questions": None}}
    return make_home(tmp_path_factory.mktemp("memory"), questions=16, held_out=4, first_held_out=20, **sections)


def parts_of(home, micro, remat, *more):
    settings = f"update.micro_batches={micro}", f"model.remat={remat}", *more
    return open_parts(load_config(home / "config.yaml", settings), cache=None)


def chosen(config):
    return config.update.micro_batches, config.model.remat


def groups(config, devices, platform):
    return [[chosen(config) for config in group] for group in choices(config, devices=devices, platform=platform)]


def test_choices_go_from_fast_to_small_and_leave_no_device_idle(home):
    config = parts_of(home, "auto", "auto").config  # 16 questions of 4 samples
    for devices, counts, split in ((1, [1, 2, 4, 8, 16], (32, 64)), (2, [1, 2, 4, 8], (16, 32)), (8, [1, 2], (4, 8))):
        want = [[(n, remat) for n in counts] for remat in ("none", "dots", "layers")]
        want += [[(n, "layers") for n in split]]  # a question's samples apart only when nothing else fits
        assert groups(config, devices, "gpu") == want
    assert groups(parts_of(home, "auto", "none").config, 2, "gpu") == [
        [(n, "none") for n in ns] for ns in ((1, 2, 4, 8), (16, 32))
    ]
    assert groups(parts_of(home, 4, "auto").config, 2, "gpu") == [[(4, remat)] for remat in ("none", "dots", "layers")]


@pytest.mark.parametrize(("tokens", "counts"), [(96, [16]), (8, [2, 4, 8, 16]), (2, [1, 2, 4, 8, 16])])
def test_parts_on_cpus_have_enough_tokens_to_be_fast(home, tokens, counts):
    config = parts_of(home, "auto", "auto", f"rollout.max_tokens={tokens}").config
    assert counts[0] == 1 or 16 * 4 * tokens // counts[0] >= PART
    assert groups(config, 1, "cpu")[:2] == [[(n, remat) for n in counts] for remat in ("dots", "layers")]


def test_the_compilers_account_falls_as_more_is_computed_again(home):
    tried = [(1, "none"), (1, "dots"), (1, "layers"), (2, "layers")]
    sizes = [step_bytes(parts_of(home, *choice), WIDTH) for choice in tried]
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == 4


def test_the_first_choice_that_fits_is_taken(home, monkeypatch):
    parts, told, asked = parts_of(home, "auto", "auto", "rollout.max_tokens=4"), [], []
    sizes = {(1, "dots"): math.inf, (2, "dots"): 4e9, (1, "layers"): 3e9, (2, "layers"): 2e9}  # inf: the compiler refuses
    sizes |= {(4, "layers"): 2e9, (8, "layers"): 2e9}  # of a question's samples apart

    def size_of(parts, width):
        asked.append(chosen(parts.config))
        return sizes[asked[-1]]

    monkeypatch.setattr(memory, "step_bytes", size_of)
    for limit, want in ((5e9, (2, "dots")), (3.5e9, (1, "layers")), (2e9, (2, "layers"))):
        assert chosen(fit_memory(parts, WIDTH, limit=int(limit), say=told.append).config) == want
    assert told[0] == "update.micro_batches = 2, model.remat = dots: the step takes 3.7 of 4.7 GiB a device"
    assert asked[:2] == [(2, "dots"), (1, "dots")]  # the smallest first: where it does not fit, its group is left out
    with pytest.raises(UserError, match=r"the training step takes at least 1\.9 GiB a device.* lower rollout.max_tokens"):
        fit_memory(parts, WIDTH, limit=10**9, say=told.append)
    sizes = dict.fromkeys(sizes, math.inf)
    with pytest.raises(UserError, match="takes more memory than there is a device"):
        fit_memory(parts, WIDTH, limit=10**9, say=told.append)


def test_a_compiler_that_refuses_for_memory_is_a_choice_that_does_not_fit(home, monkeypatch):
    refused = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: XLA:TPU compile permanent error. Ran out of memory in hbm")

    class Lowered:
        def compile(self):
            raise refused

    monkeypatch.setattr(memory, "lower_step", lambda *_, **__: Lowered())
    assert step_bytes(parts_of(home, 1, "none"), WIDTH) == math.inf
    refused = jax.errors.JaxRuntimeError("INTERNAL: something else")
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        step_bytes(parts_of(home, 1, "none"), WIDTH)


def test_a_container_may_have_less_than_the_machine(tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "CONTAINER", tmp_path / "memory.max")
    machine = memory.host_memory()
    for text, want in (("max\n", machine), ("1048576\n", 2**20), (f"{2 * machine}\n", machine)):
        memory.CONTAINER.write_text(text)
        assert memory.host_memory() == want


def test_a_run_keeps_what_was_decided(home, tmp_path, monkeypatch):
    told = []
    auto = ("update.micro_batches=auto", "model.remat=auto", "rollout.max_tokens=6")
    list(train(load_config(home / "config.yaml", (*auto, "train.steps=1")), tmp_path / "run", say=told.append))
    assert chosen(read_config(tmp_path / "run")) == (1, "dots") and any("GiB a device" in line for line in told)
    monkeypatch.setattr("jaxselftrain.material.fit_memory", None)  # fails if it is asked again
    again = load_config(home / "config.yaml", (*auto, "train.steps=2"))
    assert [report.step for report in train(again, tmp_path / "run", say=told.append)] == [2]
    assert chosen(read_config(tmp_path / "run")) == (1, "dots")
