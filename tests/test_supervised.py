"""Supervised steps: their gradient against that of the mean log-likelihood, and a small policy that learns by them."""

import json

import jax
import numpy as np
import pytest
import tiny
import yaml
from runs import command, lines, write_questions

from jaxselftrain.answer_key import load_answer_key
from jaxselftrain.assembly import open_parts
from jaxselftrain.config import load_config, parse_config
from jaxselftrain.errors import UserError
from jaxselftrain.model.policy import ready
from jaxselftrain.prompts import pad
from jaxselftrain.questions import load_questions
from jaxselftrain.rewards import Feedback
from jaxselftrain.scoring import score
from jaxselftrain.supervised import GoldResponses
from jaxselftrain.update import gradient, make_batch

SUPERVISED = {
    "supervised": {"response": "{answer}\n"},
    "vote": {"samples": 1},
    "update": {"estimator": "no_baseline"},
}


def test_the_gradient_is_that_of_the_mean_log_likelihood():
    config = tiny.tiny_config(**SUPERVISED)
    rollouts = tiny.rollouts(samples=1)
    ones = np.ones((tiny.Q, 1), np.float32)
    feedback = Feedback(ones, ones, ones[:, 0], np.zeros((tiny.Q, 1), np.int32), np.asarray(True))
    batch = make_batch(config, rollouts, feedback)
    state = tiny.state(config, tiny.mesh_of(config))
    found, sums = gradient(tiny.graph(), config, state, batch)

    def likelihood(params):
        logp, _ = score(ready(tiny.graph(), params), batch)
        return -(logp * batch.mask_QMT).sum() / batch.mask_QMT.sum()

    wanted = jax.grad(likelihood)(state.params)
    for name in wanted:
        np.testing.assert_allclose(found[name], wanted[name], rtol=1e-4, atol=1e-6, err_msg=name)
    assert float(sums["log_prob"]) == pytest.approx(-float(likelihood(state.params)), rel=1e-5)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    folder = tmp_path_factory.mktemp("supervised")
    write_questions(folder / "train.jsonl", 16)
    values = {
        "model": {"path": "new://layers=2,width=32,heads=2"},
        "questions": {"source": "jsonl", "path": str(folder / "train.jsonl")},
        "rollout": {"questions": 8, "max_tokens": 4, "stop": ["\n"]},
        "answer": {"format": "regex", "pattern": r"\A\s*([0-9]+)\s*\Z"},
        "optimizer": {"learning_rate": 1e-2},
        "mesh": {"data": 1},
        "evaluate": {
            "samples": 2,
            "batch": 8,
            "allow_overlap": True,
            "questions": {"source": "jsonl", "path": str(folder / "train.jsonl")},
        },
        "log": {"tensorboard": False},
        "train": {"steps": 120, "folder": str(folder / "run")},
        **SUPERVISED,
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(values))
    return folder


def test_a_policy_of_random_weights_learns_the_answers(home):
    code, _, err = command("train", str(home / "config.yaml"))
    assert code == 0, err
    found = lines(home / "run")
    assert found[0]["heldout/greedy"] == 0 and found[-1]["heldout/greedy"] >= 0.9
    assert found[-1]["log_prob"] > -0.2 > found[1]["log_prob"]
    assert "sampler_gap" not in found[-1] and "majority_share" not in found[-1]


def test_mistakes_are_other_questions_answers_drawn_anew_each_step(home):
    parts = open_parts(load_config(home / "config.yaml", ["supervised.mistakes=0.4", "mesh.data=-1"]), cache=None)
    questions = parts.config.questions
    gold = GoldResponses(parts, parts.encode(load_questions(questions), "drop"), load_answer_key(questions), 16)
    indices = list(range(16)) * 20
    first, again, other = (np.asarray(gold.rollouts(indices, draw=draw).tokens_QNT[:, 0]) for draw in (1, 1, 2))
    right, _ = pad([gold.response(i) for i in indices], first.shape[1])
    assert 0.3 < (first != right).any(1).mean() < 0.45  # some of the answers drawn are the same ones
    assert {tuple(row) for row in first} <= {tuple(row) for row in right}
    assert (first == again).all() and (first != other).any()


def test_supervised_then_votes_in_one_command(home):
    values = yaml.safe_load((home / "config.yaml").read_text())
    first = {name: values.pop(name) for name in SUPERVISED}
    values["vote"] = {"samples": 4}
    values["train"] = {"steps": 2, "folder": str(home / "stages")}
    values["stages"] = [{"name": "supervised", "settings": {**first, "train": {"steps": 30}}}, {"name": "votes"}]
    (home / "stages.yaml").write_text(yaml.safe_dump(values))
    code, _, err = command("train", str(home / "stages.yaml"))
    assert code == 0, err
    before, after = lines(home / "stages" / "1-supervised"), lines(home / "stages" / "2-votes")
    assert after[0]["heldout/greedy"] == before[-1]["heldout/greedy"] and after[-1]["step"] == 2
    config = json.loads((home / "stages" / "2-votes.model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize(
    ("sections", "says"),
    [
        ({"vote": {"samples": 4}}, "vote.samples must be = 1"),
        ({"update": {"estimator": "rloo"}}, "update.estimator must be = no_baseline"),
        ({"label": {"source": "gold"}}, "label must be left as it is"),
        ({"supervised": {"response": "42"}}, "response must hold {answer}"),
        ({"supervised": {"response": None, "mistakes": 0.4}}, "mistakes are made in supervised steps"),
    ],
)
def test_what_does_not_go_with_it_is_refused(sections, says):
    values = {"questions": {"source": "jsonl", "path": "x"}, **SUPERVISED} | sections
    with pytest.raises(UserError, match=says.replace("{", r"\{")):
        parse_config(values)


def test_a_question_without_an_answer_is_named(home, tmp_path):
    rows = (home / "train.jsonl").read_text().splitlines()
    rows[3] = json.dumps({"id": "q3", "question": "3 + 1 ="})
    (tmp_path / "some.jsonl").write_text("\n".join(rows) + "\n")
    code, _, err = command("train", str(home / "config.yaml"), f"questions.path={tmp_path / 'some.jsonl'}",
                           f"train.folder={tmp_path / 'run'}")  # fmt: skip
    assert code == 2 and "question q3 has no gold answer, which supervised.response needs" in err and "Traceback" not in err


def test_an_answer_that_does_not_fit_is_named(home, tmp_path):
    code, _, err = command("train", str(home / "config.yaml"), "rollout.max_tokens=2", f"train.folder={tmp_path / 'run'}")
    assert code == 2 and "takes 3 tokens; raise rollout.max_tokens (now 2)" in err
