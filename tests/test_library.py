"""The library: a run as an iterator that can be watched, stopped, told to label otherwise, and resumed."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from runs import final_weights, lines, make_home, without_times

import jaxselftrain
from jaxselftrain import UserError, load_config, override_config, train


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return make_home(
        tmp_path_factory.mktemp("library"),
        questions=16,
        held_out=4,
        first_held_out=20,
        rollout={"questions": 8},
        mesh={"data": 8},
        evaluate={"every": 0, "batch": 8},
        checkpoint={"every": 2},
        log={"tensorboard": False},
        train={"steps": 4},
    )


def quiet(text):
    pass


def test_it_yields_metrics_and_votes(home):
    reports = list(train(load_config(home / "config.yaml"), home / "whole", say=quiet))
    assert [report.step for report in reports] == [0, 1, 2, 3, 4]
    assert all(len(report.votes) == 8 for report in reports[:-1]) and reports[-1].votes == []
    assert reports[2].metrics["pseudo_reward"] == lines(home / "whole")[2]["pseudo_reward"]
    shares = [ballot.share for ballot in reports[1].votes]
    assert reports[2].metrics["majority_share"] == pytest.approx(np.mean(shares))


def test_a_callback_stops_it_and_the_same_call_goes_on(home):
    config = load_config(home / "config.yaml")
    seen = list(train(config, home / "parts", callback=lambda report: report.step < 3, say=quiet))
    assert [report.step for report in seen] == [0, 1, 2, 3]
    rest = list(train(config, home / "parts", say=quiet))
    assert [report.step for report in rest] == [4]
    assert without_times(lines(home / "parts")) == without_times(lines(home / "whole"))
    ours, theirs = final_weights(home / "parts", 4), final_weights(home / "whole", 4)
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_labels_may_change_while_it_runs(home):
    run = train(load_config(home / "config.yaml"), home / "gold", say=quiet)
    with pytest.raises(UserError, match="the run has not begun"):
        run.use_labels("gold")
    accuracies = {}
    for report in run:
        if report.step == 1:
            run.use_labels("gold")
        accuracies[report.step] = report.metrics.get("label_accuracy")
    assert accuracies[2] is not None and accuracies[3] == accuracies[4] == 1.0 and accuracies[1] < 1.0
    with pytest.raises(UserError, match=r"use_labels\('teacher'\): this run has labels from vote, gold, mixed, incorrect"):
        run.use_labels("teacher")


def test_left_early_it_frees_the_folder(home):
    config = override_config(load_config(home / "config.yaml"), ["checkpoint.every=1"])
    run = train(config, home / "left", say=quiet)
    assert next(run).step == 0 and next(run).step == 1
    run.close()
    assert [report.step for report in train(config, home / "left", say=quiet)][-1] == 4


def test_a_config_with_stages_is_refused(home):
    config = load_config(home / "config.yaml")
    with pytest.raises(UserError, match="without stages"):
        train(config.model_copy(update={"stages": ({"name": "a"},)}))


def test_every_public_name_is_there_and_none_needs_jax_before_it_is_used():
    code = (
        "import sys, jaxselftrain\n"
        "assert set(jaxselftrain.EXPORTS) <= set(dir(jaxselftrain))\n"
        "assert 'jax' not in sys.modules and 'numpy' not in sys.modules\n"
        "jaxselftrain.load_config, jaxselftrain.vote, jaxselftrain.answer_key, jaxselftrain.read_metrics\n"
        "assert 'jax' not in sys.modules\n"
        "assert all(getattr(jaxselftrain, name) is not None for name in jaxselftrain.EXPORTS)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        jaxselftrain.trian  # noqa: B018


def test_type_checkers_see_what_programs_get():
    """The package imports late, so that its public names stand there twice: for Python, and for type checkers."""
    tree = ast.parse(Path(jaxselftrain.__file__).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {alias.asname: node.module for node in block.body for alias in node.names}
    assert seen == {name: f"jaxselftrain.{module}" for name, module in jaxselftrain.EXPORTS.items()}
