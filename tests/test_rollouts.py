"""The sampler: noise, neighbours, padding, stopping, and its log-probs against the training forward."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare
from tiny import PIECES, TINY, N, Q, T, equal_bits, graph, params, prompts, rollouts, tiny_config, votes

from jaxselftrain.model.policy import ready
from jaxselftrain.sampler import rows_per_question, sample, segments, token_noise
from jaxselftrain.scoring import score
from jaxselftrain.sections import Rollout
from jaxselftrain.update import make_batch

GRAPH, PARAMS = graph(), params()
sample_tiny = jax.jit(partial(sample, GRAPH, N=N, T=T, W=N))


def forward_logp(got, config):
    batch = make_batch(config, got, votes(rows=got.length_QN.shape[0]))
    return jax.jit(lambda p, b: score(ready(GRAPH, p), b)[0])(PARAMS, batch), batch.mask_QMT


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_recorded_log_probs_equal_the_training_forward(temperature):
    got = sample_tiny(PARAMS, prompts(temperatures=[temperature] * N))
    logp_QNT, mask_QNT = forward_logp(got, tiny_config())
    np.testing.assert_allclose(np.where(mask_QNT, logp_QNT, 0), got.logp_QNT, atol=1e-4)
    assert (np.asarray(got.logp_QNT)[np.asarray(mask_QNT) > 0] < 0).all()


@pytest.mark.parametrize("W", [1, N])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_confidence_is_that_of_the_whole_distributions(temperature, W):
    asked = prompts(temperatures=[temperature] * N)
    got = jax.jit(partial(sample, GRAPH, N=N, T=T, W=W, confidence=True))(PARAMS, asked)
    policy = ready(GRAPH, PARAMS)
    logits = policy.logits(policy.responses(got.prompt_QC, got.prompt_length_Q, got.tokens_QNT)) / temperature
    logp_QNTV = np.asarray(jax.nn.log_softmax(logits), float)
    inside_QNT = np.arange(T) < np.asarray(got.length_QN)[..., None]
    assert inside_QNT.sum(-1).min() < T  # some responses end early
    chosen_QNT = np.take_along_axis(logp_QNTV, np.asarray(got.tokens_QNT)[..., None], -1)[..., 0]
    found = {
        "log_prob": chosen_QNT,
        "entropy": -(np.exp(logp_QNTV) * logp_QNTV).sum(-1),
        "self_certainty": -np.log(TINY.V) - logp_QNTV.mean(-1),  # KL(U || p)
    }
    for kind, value_QNT in found.items():
        want_QN = np.where(inside_QNT, value_QNT, 0).sum(-1) / inside_QNT.sum(-1)
        np.testing.assert_allclose(got.confidence.by_kind()[kind], want_QN, rtol=1e-4, atol=1e-5)
    without = jax.jit(partial(sample, GRAPH, N=N, T=T, W=W))(PARAMS, asked)
    assert without.confidence is None and equal_bits(without.tokens_QNT, got.tokens_QNT)


def test_a_row_does_not_see_its_neighbours():
    one, other = prompts(seed=0), prompts(seed=7)
    mixed = jax.tree.map(lambda a, b: jnp.concatenate([a[:3], b[3:]]) if a.ndim and a.shape[0] == Q else a, one, other)
    whole, part = sample_tiny(PARAMS, one), sample_tiny(PARAMS, mixed)
    assert equal_bits(jax.tree.map(lambda x: x[:3], whole.logp_QNT), jax.tree.map(lambda x: x[:3], part.logp_QNT))
    assert equal_bits(whole.tokens_QNT[:3], part.tokens_QNT[:3])
    assert not equal_bits(whole.tokens_QNT[3:], part.tokens_QNT[3:])


def test_padding_changes_log_probs_by_rounding_alone():
    lengths = np.arange(5, 5 + Q)
    narrow = sample_tiny(PARAMS, prompts(lengths=lengths))
    base = prompts(lengths=lengths)
    wide_tokens = jnp.pad(base.tokens_QC, ((0, 0), (0, 20)), constant_values=9)
    wide = sample_tiny(PARAMS, replace(base, tokens_QC=wide_tokens))
    assert equal_bits(narrow.tokens_QNT, wide.tokens_QNT)
    np.testing.assert_allclose(narrow.logp_QNT, wide.logp_QNT, atol=1e-5)


def test_noise_depends_on_its_keys_and_not_on_the_batch():
    def noise(keys=(5, 0, 2), *, slots=range(8), samples=range(4), position=3):
        shape = len(slots), len(samples)
        sample_QW = jnp.broadcast_to(jnp.asarray(samples), shape)
        return np.asarray(token_noise(jnp.asarray(keys, jnp.uint32), jnp.asarray(slots), sample_QW, jnp.full(shape, position)))

    whole = noise()
    assert equal_bits(whole[2:5, :2], noise(slots=range(2, 5), samples=range(2)))
    assert equal_bits(whole[:, [3, 1]], noise(samples=[3, 1]))
    for other in (noise((6, 0, 2)), noise((5, 1, 2)), noise((5, 0, 3)), noise(position=4), noise(samples=range(4, 8))):
        assert not np.isin(whole, other).any()


def test_first_tokens_follow_the_models_distribution():
    many = jax.jit(partial(sample, GRAPH, N=4000, T=1, W=4000))
    got = many(PARAMS, prompts(rows=1, lengths=[6], temperatures=[0.8] * 4000))
    policy = ready(GRAPH, PARAMS)
    asked = prompts(rows=1, lengths=[6])
    hidden, _ = policy.prefill(asked.tokens_QC, asked.length_Q)
    want = np.asarray(jax.nn.softmax(policy.logits(hidden)[0] / 0.8), np.float64) * 4000
    seen = np.bincount(np.asarray(got.tokens_QNT).ravel(), minlength=TINY.V)
    small = want < 5
    if small.any():
        seen, want = np.append(seen[~small], seen[small].sum()), np.append(want[~small], want[small].sum())
    assert len(want) > 5 and chisquare(seen, want * seen.sum() / want.sum()).pvalue > 1e-4


def test_responses_end_at_stop_strings_over_token_boundaries_and_are_padded_after():
    likely = "".join(PIECES[int(t)].decode() for t in np.asarray(sample_tiny(PARAMS, prompts()).tokens_QNT[0, 0, 2:4]))
    got = sample_tiny(PARAMS, prompts(stop=(likely,), end_ids=()))
    rows = np.asarray(got.tokens_QNT), np.asarray(got.length_QN)
    texts = [
        [b"".join(PIECES[t] for t in row[:n]).decode() for row, n in zip(*pair, strict=True)] for pair in zip(*rows, strict=True)
    ]
    assert texts[0][0].endswith(likely) and int(got.length_QN[0, 0]) <= 4
    for q in range(Q):
        for n in range(N):
            ended = bool(got.ended_QN[q, n])
            assert ended == (likely in texts[q][n])
            assert ended or int(got.length_QN[q, n]) == T
            assert likely not in texts[q][n][:-1]
            assert not np.asarray(got.tokens_QNT[q, n, int(got.length_QN[q, n]) :]).any()


def test_one_batch_holds_greedy_and_sampled_rows_and_settings_do_not_recompile():
    step = jax.jit(partial(sample, GRAPH, N=N, T=T, W=N))
    greedy = step(PARAMS, prompts(temperatures=[0.0] * N, stop=("ab",)))
    mixed = step(PARAMS, prompts(temperatures=[1.0] * (N - 1) + [0.0], stop=("ab",), top_p=0.9, top_k=7))
    assert equal_bits(greedy.tokens_QNT[:, -1], mixed.tokens_QNT[:, -1])
    assert equal_bits(greedy.tokens_QNT[:, 0], greedy.tokens_QNT[:, 1])
    assert not equal_bits(greedy.tokens_QNT[:, 0], mixed.tokens_QNT[:, 0])
    assert step._cache_size() == 1


ENDINGS = {"tokens": {"end_ids": range(40, 45)}, "strings": {"end_ids": (), "stop": ("0?", "@@1", "J", "K2", "ab")}}


@pytest.mark.parametrize(("W", "ending"), [(1, "tokens"), (2, "strings"), (3, "tokens")])
def test_fewer_rows_that_take_turns_give_the_same_responses(W, ending):
    """Samples of unequal lengths, some cut at T, one of them greedy: each row goes through several, in caches that grow."""
    asked = prompts(temperatures=[1.0] * 8 + [0.0], **ENDINGS[ending])
    with jax.default_matmul_precision("highest"):
        together = jax.jit(partial(sample, GRAPH, N=9, T=70, W=9))(PARAMS, asked)
        in_turn = jax.jit(partial(sample, GRAPH, N=9, T=70, W=W))(PARAMS, asked)
    lengths = np.asarray(together.length_QN)
    assert lengths.min() < 5 and lengths.max() > 40 and len(segments(70)) > 1
    for name in ("tokens_QNT", "length_QN", "ended_QN"):
        assert equal_bits(getattr(together, name), getattr(in_turn, name)), name
    np.testing.assert_allclose(together.logp_QNT, in_turn.logp_QNT, atol=1e-5)


def test_nothing_is_sampled_when_nothing_is_wanted():
    asked = prompts()
    got = sample_tiny(PARAMS, replace(asked, wanted_Q=jnp.zeros(Q, bool)))
    assert not np.asarray(got.tokens_QNT).any() and not np.asarray(got.ended_QN).any()
    assert jax.tree.map(lambda x: (x.shape, x.dtype), got) == jax.tree.map(lambda x: (x.shape, x.dtype), rollouts())


@pytest.mark.parametrize(
    ("platform", "Q", "N", "axes", "W"),
    [
        ("cpu", 8, 32, {}, 8),  # 64 rows
        ("cpu", 8, 6, {}, 6),  # 48 at most
        ("cpu", 8, 16, {}, 16),  # half of the rows would do, and win little
        ("cpu", 1, 256, {}, 64),
        ("cpu", 8, 17, {}, 17),  # 17 is the only divisor of 17 from 8 on
        ("cpu", 5, 64, {}, 16),  # 13 would leave rows idle
        ("cpu", 8, 64, {"data": 2}, 16),
        ("gpu", 64, 16, {}, 4),
        ("gpu", 32, 16, {}, 16),
        ("tpu", 64, 64, {"data": 2, "fsdp": 2}, 16),
        ("tpu", 64, 16, {"tensor": 4}, 4),  # one tensor group has the same rows on all its devices
    ],
)
def test_rows_are_the_fewest_that_keep_the_devices_busy(platform, Q, N, axes, W):
    shape = {"data": 1, "fsdp": 1, "tensor": 1} | axes
    devices = np.full(tuple(shape.values()), SimpleNamespace(platform=platform), object)
    mesh = SimpleNamespace(shape=shape, devices=devices)
    assert rows_per_question(Rollout(questions=Q), mesh, Q=Q, N=N) == W
    assert rows_per_question(Rollout(questions=Q, max_tokens=32), mesh, Q=Q, N=N) == N  # lengths cannot differ much
    assert rows_per_question(Rollout(questions=Q, rows=3 * Q), mesh, Q=Q, N=N) == 3
    assert rows_per_question(Rollout(questions=Q, rows=4 * Q), mesh, Q=Q, N=N, parts=2) == 2
    apart = rows_per_question(Rollout(questions=Q), mesh, Q=Q, N=N, parts=2)
    assert apart == rows_per_question(Rollout(questions=2 * Q), mesh, Q=2 * Q, N=N // 2)
    assert rows_per_question(Rollout(questions=Q, rows=N * Q), mesh, Q=Q, N=N - 1) == N - 1  # an evaluation of fewer samples
