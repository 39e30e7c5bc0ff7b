"""A teacher that follows the policy: its weights, its samples, the labels they make, and a run that is continued."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from runs import lines, make_home, without_times
from tiny import TINY, N, Q, T, equal_bits, graph, mesh_of, params, place, prompts, rollouts, state, tiny_config, votes

from jaxselftrain.answer_key import AnswerKey
from jaxselftrain.config import load_config
from jaxselftrain.errors import UserError
from jaxselftrain.judge import judge
from jaxselftrain.metrics import vote_metrics
from jaxselftrain.questions import Question
from jaxselftrain.rollouts import Taught
from jaxselftrain.sharding import param_shardings
from jaxselftrain.step import TEACHER, compile_sample, compile_step, rollout_shardings
from jaxselftrain.training import train
from jaxselftrain.voter import Voter

EMA = {"source": "ema", "decay": 0.9}


@pytest.mark.parametrize("shape", [{}, {"data": 2, "fsdp": 2, "tensor": 2}])
def test_the_teacher_follows_and_answers_with_noise_of_its_own(shape):
    config = tiny_config(label=EMA, mesh=shape)
    mesh = mesh_of(config, 8 if shape else 1)
    program = compile_step(graph(mesh), config, TINY, mesh)

    def call(learn):
        before = jax.device_put(params(seed=7), param_shardings(mesh, TINY))
        start = replace(state(config, mesh), teacher=before)
        given = replace(rollouts(), taught=Taught(jnp.zeros((Q, N, T), jnp.int32), jnp.ones((Q, N), jnp.int32)))
        _, decided, asked = place(mesh, rollouts(), votes(learn=learn), prompts())
        return program(start, jax.device_put(given, rollout_shardings(mesh, taught=True)), decided, asked)

    end, new, _ = call(learn=True)
    for name, old in params(seed=7).items():
        np.testing.assert_allclose(end.teacher[name], 0.9 * old + 0.1 * np.asarray(end.params[name]), rtol=1e-5, atol=1e-6)
    sample = compile_sample(graph(mesh), TINY, mesh, N=N, T=T, W=N)
    (_, _, asked) = place(mesh, rollouts(), votes(), prompts())
    again = sample(end.teacher, replace(asked, noise=asked.noise.at[1].set(TEACHER)))
    assert equal_bits(new.taught, Taught(again.tokens_QNT, again.length_QN))
    assert equal_bits(new.tokens_QNT, sample(end.params, asked).tokens_QNT)
    assert not equal_bits(new.taught.tokens_QNT, sample(end.teacher, asked).tokens_QNT)
    still, _, _ = call(learn=False)
    assert equal_bits(still.teacher, params(seed=7))


def test_the_teachers_majority_is_the_label():
    config = tiny_config(label=EMA, answer={"format": "regex", "pattern": "(.)"})
    own, taught = ["1", "1", "1", "2", "3", "", "4", "4"], ["2", "2", "1", "9", "5", "5", "4", "5"]
    asked = [Question("a", "a"), Question("b", "b")]
    length_QN, ended_QN = np.ones((2, 4), int), np.ones((2, 4), bool)
    with Voter(config.answer, config.vote) as voter:
        said = {"voter": voter, "answer_key": AnswerKey({}), "teacher": {}, "step": 0}
        verdict = judge(config, asked, own, length_QN, ended_QN, {}, taught=taught, **said)
    assert verdict.tally.reward_QN.tolist() == [[0, 0, 0, 1], [0, 0, 0, 0]]  # nobody says 5
    assert [ballot.majority for ballot in verdict.votes] == ["n:1", "n:4"]  # what is watched are the policy's own votes
    assert vote_metrics(verdict.tally)["pseudo_reward"] == 1 / 8 and len(verdict.responses[0]["samples"]) == 4


def test_a_run_with_a_teacher_is_continued(tmp_path):
    mesh = {"data": 2, "fsdp": 2, "tensor": 2}
    home = make_home(tmp_path, questions=8, held_out=4, first_held_out=20, mesh=mesh, evaluate={"questions": None}, label=EMA)
    for name, stops in {"whole": [3], "twice": [1, 3]}.items():
        for steps in stops:
            list(train(load_config(home / "config.yaml", (f"train.steps={steps}",)), tmp_path / name, say=lambda text: None))
    assert without_times(lines(tmp_path / "whole")) == without_times(lines(tmp_path / "twice"))
    assert len(lines(tmp_path / "whole")) == 3
    with pytest.raises(UserError, match="label: decay is read by source ema alone and source is vote"):
        load_config(home / "config.yaml", ("label.source=vote",))
