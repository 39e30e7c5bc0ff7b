"""The update: its gradient against the written-out objective, micro-batches, inner steps, storage and bad numbers."""

import math
import re
from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import TINY, N, Q, T, equal_bits, graph, mesh_of, params, rollouts, state, tiny_config, votes

from jaxselftrain import scoring
from jaxselftrain.advantages import ESTIMATORS
from jaxselftrain.model.policy import ready
from jaxselftrain.scoring import score, token_scores
from jaxselftrain.step import make_transform
from jaxselftrain.update import State, gradient, learn, make_batch, micro_parts, most_covarying

CLIPS = {"clip_low": 0.1, "clip_high": 0.2}


def plain_scores(logits, tokens):
    """Log-prob of each token and entropy of its distribution, by the definitions."""
    logp = jax.nn.log_softmax(logits)
    return jnp.take_along_axis(logp, tokens[..., None], -1)[..., 0], -(jnp.exp(logp) * logp).sum(-1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("spread", [0.1, 30.0], ids=["flat", "peaked"])
@pytest.mark.parametrize("most", [1, 5, 99])
def test_scores_and_their_gradients_are_those_of_the_definitions(tied, spread, most):
    """13 tokens one by one, in three parts of which the last is filled up, and at once."""
    with jax.enable_x64(True):
        keys = jax.random.split(jax.random.key(0), 5)
        hidden, matrix = jax.random.normal(keys[0], (2, 13, 8)), spread * jax.random.normal(keys[1], (8, 50))
        tokens = jax.random.randint(keys[2], (2, 13), 0, 50)
        weight, temperature = jax.random.normal(keys[3], (2, 2, 13)), jax.random.uniform(keys[4], (2, 13), minval=0.5, maxval=2.0)

        def ours(hidden, matrix):
            logp, entropy = token_scores(tied, most, hidden, matrix.T if tied else matrix, temperature, tokens)
            return (weight[0] * logp + weight[1] * entropy).sum(), (logp, entropy)

        def plain(hidden, matrix):
            logp, entropy = plain_scores(hidden @ matrix / temperature[..., None], tokens)
            return (weight[0] * logp + weight[1] * entropy).sum(), (logp, entropy)

        got, want = (jax.value_and_grad(f, (0, 1), has_aux=True)(hidden, matrix) for f in (ours, plain))
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9 * float(jnp.abs(b).max()))


def entries(*inputs):
    """The sizes of all float32 arrays of the compiled update."""
    config, mesh = tiny_config(), mesh_of(tiny_config())
    run = jax.jit(partial(learn, graph(mesh), make_transform(config), config))
    text = run.lower(state(config, mesh), *inputs).compile().as_text()
    return {math.prod(map(int, shape.split(","))) for shape in re.findall(r"f32\[([\d,]+)\]", text)}


def test_the_logits_of_all_tokens_never_exist_at_once(monkeypatch):
    whole = Q * N * T * TINY.V
    assert whole in entries(rollouts(), votes())  # they are few enough
    monkeypatch.setattr(scoring, "LOGIT_BYTES", 4 * Q * TINY.V * 7)  # seven tokens of a question
    parts, size = scoring.chunks(N * T, most=7)
    found = entries(rollouts(), votes())
    assert whole not in found and (parts, size) == (6, 7) and Q * size * TINY.V in found


def test_a_prompt_goes_through_the_update_once_for_all_its_samples():
    """With prompts of a width that no other axis has: their hidden states exist once a question, not once a sample."""
    once, repeated = Q * 13 * TINY.D, Q * N * 13 * TINY.D
    found = entries(rollouts(width=13), votes())
    assert once in found and repeated not in found
    assert repeated in entries(rollouts(width=13, rows=Q * N, samples=1), votes(rows=Q * N, samples=1))  # as others do


@given(st.integers(1, 10**6), st.integers(0, 10**6))
def test_chunks_hold_everything_and_are_as_equal_as_can_be(count, most):
    parts, size = scoring.chunks(count, most=most)
    assert size <= max(most, 1) and parts * size - parts < count <= parts * size


def plain_gradient(config, weights, old_weights, reference, got, decided, *, dtype="float32"):
    """The objective written out sample by sample, each prompt repeated for every sample, and jax.grad of that."""
    settings = config.update
    policy_graph = graph(compute_dtype=dtype)
    B, long = Q * N, got.prompt_QC.shape[1] + T
    whole = np.zeros((B, long), np.int32)
    lengths = np.repeat(np.asarray(got.prompt_length_Q), N)
    for row in range(B):  # each row is a prompt followed at once by its response, as if nothing were shared
        prompt = np.asarray(got.prompt_QC[row // N, : lengths[row]])
        whole[row, : lengths[row] + T] = [*prompt, *np.asarray(got.tokens_QNT[row // N, row % N])]
    sizes = np.asarray(got.length_QN).reshape(-1)

    def scores(weights):
        policy = ready(policy_graph, weights)
        hidden = policy.responses(whole[:, :1], jnp.ones(B, jnp.int32), whole[:, None, 1:])[:, 0]
        at = lengths[:, None] - 1 + np.arange(T)
        logits = policy.logits(jnp.take_along_axis(hidden, at[..., None], 1))
        return plain_scores(logits, got.tokens_QNT.reshape(B, T))

    def objective(weights):
        (new, entropies), (olds, _), (refs, _) = scores(weights), scores(old_weights), scores(reference)
        terms, counted = [], []
        for q in range(Q):
            rewards, kept = [], []
            for n in decided.chosen_QM[q]:
                row = q * N + int(n)
                logp, entropy, old, ref = (x[row, : sizes[row]] for x in (new, entropies, olds, refs))
                old, ref = jax.lax.stop_gradient((old, ref))
                reward = decided.reward_QN[q, int(n)]
                if settings.kl_in == "reward":
                    d = ref - old
                    reward = reward - settings.kl_coefficient * decided.kl_weight_Q[q] * (jnp.exp(d) - 1 - d).sum()
                rewards.append(reward)
                kept.append((logp, entropy, old, ref, got.logp_QNT[q, int(n), : sizes[row]]))
            advantages = ESTIMATORS[settings.estimator](jnp.stack(rewards)[None])[0]
            for a, (logp, entropy, old, ref, behaviour) in zip(advantages, kept, strict=True):
                ratio = jnp.exp(logp - old)
                gain = jnp.minimum(ratio * a, jnp.clip(ratio, 1 - settings.clip_low, 1 + settings.clip_high) * a)
                if settings.importance_cap is not None:
                    gain = gain * jnp.minimum(jnp.exp(old - behaviour), settings.importance_cap)
                if settings.kl_in == "loss":
                    d = ref - logp
                    gain = gain - settings.kl_coefficient * decided.kl_weight_Q[q] * (jnp.exp(d) - 1 - d)
                terms.append((gain + settings.entropy_bonus * entropy).sum())
                counted.append(len(logp))
        if settings.aggregation == "token_mean":
            return -sum(terms) / sum(counted)
        if settings.aggregation == "sequence_mean":
            return -sum(t / s for t, s in zip(terms, counted, strict=True)) / len(terms)
        return -sum(terms) / (len(terms) * T)

    return jax.grad(objective)(weights)


def distance(a, b):
    """Norm of the difference over the norm, of two gradients."""
    pairs = [(np.asarray(a[name], np.float64), np.asarray(b[name], np.float64)) for name in a]
    return np.sqrt(sum(((x - y) ** 2).sum() for x, y in pairs) / sum((y**2).sum() for _, y in pairs))


def a_state(weights, reference=None):
    return State(weights, None, jnp.int32(0), jnp.uint32(0), reference)


@pytest.mark.parametrize(
    "update",
    [
        {"estimator": "rloo", "aggregation": "token_mean", "kl_coefficient": 0.1, "kl_in": "reward"},
        {"estimator": "grpo", "aggregation": "sequence_mean", "kl_coefficient": 0.1, "kl_in": "loss", "entropy_bonus": 0.01},
        {"estimator": "dr_grpo", "aggregation": "constant", "importance_cap": 1.5, "samples": 3},
    ],
    ids=["rloo", "grpo", "dr_grpo"],
)
def test_the_fused_gradient_is_that_of_the_written_out_objective(update):
    config = tiny_config(update=update, reference={"keep": "always"})
    weights, reference = params(seed=0), params(seed=5)
    got, decided = rollouts(), votes(chosen=[[2, 0, 3]] * Q if update.get("samples") else None)
    batch = make_batch(config, got, decided)
    ours, _ = jax.jit(partial(gradient, graph(), config))(a_state(weights, reference), batch)
    assert distance(ours, plain_gradient(config, weights, weights, reference, got, decided)) < 2e-5


def test_clipping_against_older_weights_is_the_written_out_objective():
    config = tiny_config(update=CLIPS, reference={"keep": "always"})
    weights, older = params(seed=0), jax.tree.map(lambda a, b: a + 0.1 * b, params(seed=0), params(seed=9))
    got, decided = rollouts(), votes()
    batch = make_batch(config, got, decided)
    policy = graph()

    @jax.jit
    def ours(weights, older):
        old_QMT, _ = score(ready(policy, older), batch)
        return gradient(policy, config, a_state(weights, params(seed=5)), replace(batch, old_QMT=old_QMT))

    grads, sums = ours(weights, older)
    assert 0.02 < float(sums["clip_fraction"]) < 0.9
    assert distance(grads, plain_gradient(config, weights, older, params(seed=5), got, decided)) < 2e-5


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean", "constant"])
@pytest.mark.parametrize(("micro", "dtype", "limit"), [(2, "float32", 1e-5), (32, "float64", 1e-6)])
def test_micro_batches_add_up_to_the_full_gradient(aggregation, micro, dtype, limit):
    with jax.enable_x64(dtype == "float64"):
        update = {"aggregation": aggregation, "kl_coefficient": 0.1, "kl_in": "reward" if micro <= Q else "loss"}
        one = tiny_config(update=update)
        many = tiny_config(update=update | {"micro_batches": micro})
        weights, reference = params(dtype=dtype), params(seed=5, dtype=dtype)
        policy = graph(compute_dtype=dtype)

        def of(config):
            batch = make_batch(config, rollouts(), votes())
            if micro > Q:  # a question's samples are split: its advantages come from outside
                batch = replace(batch, advantage_QM=ESTIMATORS["rloo"](batch.reward_QM))
            return jax.jit(partial(gradient, policy, config))(a_state(weights, reference), batch)

        (full, full_sums), (parts, part_sums) = of(one), of(many)
        assert distance(parts, full) < limit
        for name, value in full_sums.items():
            np.testing.assert_allclose(part_sums[name], value, rtol=1e-4, atol=1e-6)


def updated(config, *, weights=None, got=None, reference=None):
    mesh = mesh_of(config, config.mesh.samples * config.mesh.fsdp)
    start = state(config, mesh, weights=weights, reference=reference)
    run = jax.jit(partial(learn, graph(mesh, compute_dtype=config.model.compute_dtype), make_transform(config), config))
    return start, *run(start, rollouts() if got is None else got, votes())


@pytest.mark.parametrize("kl_in", ["reward", "loss"])
def test_split_samples_and_separate_scoring_make_the_same_update(kl_in):
    update = {"kl_coefficient": 0.2, "kl_in": kl_in}
    reference = params(seed=5)
    _, whole, _ = updated(tiny_config(update=update), reference=reference)
    _, split, _ = updated(tiny_config(update=update | {"micro_batches": 2 * Q}), reference=reference)
    for name in whole.params:
        np.testing.assert_allclose(whole.params[name], split.params[name], atol=2e-4)
    np.testing.assert_allclose(whole.moments[1][0].mu["w_q_LDHK"], split.moments[1][0].mu["w_q_LDHK"], atol=1e-6)


@pytest.mark.parametrize(
    "update",
    [
        {},
        {"kl_coefficient": 0.2, "kl_in": "reward"},
        {"kl_coefficient": 0.2, "kl_in": "reward", "minibatches": 2, "micro_batches": Q},
    ],
    ids=["plain", "kl in reward", "kl in reward, minibatches of split samples"],
)
def test_samples_split_over_devices_make_the_same_update(update):
    reference = params(seed=5) if update else None
    _, whole, sums = updated(tiny_config(update=update), reference=reference)
    _, split, split_sums = updated(tiny_config(update=update, mesh={"samples": 2}), reference=reference)
    for name in whole.params:
        np.testing.assert_allclose(whole.params[name], split.params[name], atol=2e-4)
    np.testing.assert_allclose(whole.moments[1][0].mu["w_q_LDHK"], split.moments[1][0].mu["w_q_LDHK"], atol=1e-6)
    for name, value in sums.items():
        np.testing.assert_allclose(split_sums[name], value, rtol=1e-4, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(
    ("micro", "parts"), [(1, (1, 1)), (2, (2, 1)), (Q, (Q // 2, 2)), (2 * Q, (Q // 2, 4))], ids=["1", "2", "Q", "2Q"]
)
def test_no_device_is_idle_in_a_micro_batch(micro, parts):
    update, reference = {"kl_coefficient": 0.2, "kl_in": "reward"}, params(seed=5)
    _, whole, sums = updated(tiny_config(update=update), reference=reference)
    config = tiny_config(update=update | {"micro_batches": micro}, mesh={"fsdp": 2})
    assert micro_parts(Q=Q, M=N, micro=micro, devices=2) == parts
    _, split, split_sums = updated(config, reference=reference)
    np.testing.assert_allclose(whole.moments[1][0].mu["w_q_LDHK"], split.moments[1][0].mu["w_q_LDHK"], atol=1e-6)
    np.testing.assert_allclose(split_sums["kl"], sums["kl"], rtol=1e-4)


def test_inner_epochs_and_minibatches_clip_and_count():
    config = tiny_config(update={"epochs": 2, "minibatches": 4}, optimizer={"learning_rate": 3e-2})
    start, end, metrics = updated(config)
    assert int(end.count) == 8 and int(start.count) == 0
    assert float(metrics["clip_fraction"]) > 0 and abs(float(metrics["ratio_mean"]) - 1) > 1e-3
    once = updated(tiny_config())[2]
    assert float(once["ratio_mean"]) == pytest.approx(1, abs=1e-6) and float(once["clip_fraction"]) == 0


def test_an_update_with_nan_leaves_the_state_as_it_was():
    weights = params()
    weights["final_norm_D"] = weights["final_norm_D"].at[0].set(jnp.nan)
    start, end, metrics = updated(tiny_config(), weights=weights)
    assert float(metrics["bad_update"]) == 1
    assert equal_bits(start, end)
    _, moved, metrics = updated(tiny_config())
    assert float(metrics["bad_update"]) == 0 and int(moved.count) == 1


def test_the_reference_is_only_measured_where_it_is_kept():
    reference = params(seed=5)
    with_it = updated(tiny_config(reference={"keep": "always"}), reference=reference)
    without = updated(tiny_config())
    assert float(with_it[2]["kl"]) > 0 and "kl" not in without[2]
    assert equal_bits(with_it[1].params, without[1].params)
    assert equal_bits(with_it[1].reference, reference)


def test_the_update_prefers_rewarded_responses():
    config = tiny_config(optimizer={"learning_rate": 1e-3})
    start, end, _ = updated(config)
    batch = make_batch(config, rollouts(), votes())
    better = score(ready(graph(), end.params), batch)[0] - score(ready(graph(), start.params), batch)[0]
    gain_QM = (better * batch.mask_QMT).sum(-1)
    assert float(gain_QM[batch.reward_QM == 1].mean()) > float(gain_QM[batch.reward_QM == 0].mean())


def test_compute_in_bfloat16_keeps_float32_masters():
    config = tiny_config(model={"compute_dtype": "bfloat16"})
    _, end, metrics = updated(config)
    assert {x.dtype for x in end.params.values()} == {jnp.dtype("float32")}
    exact = updated(tiny_config())[2]
    assert float(metrics["loss"]) == pytest.approx(float(exact["loss"]), abs=0.05)
    assert TINY.shapes().keys() == end.params.keys() and N == 4


def test_kl_cov_charges_the_tokens_that_vary_together():
    config = tiny_config(update={"epochs": 3, "minibatches": 2, "kl_cov_fraction": 0.05})
    rng = np.random.default_rng(0)
    batch = make_batch(config, rollouts(), votes())
    old, advantage = rng.normal(size=batch.mask_QMT.shape), rng.normal(size=batch.reward_QM.shape)
    batch = replace(batch, old_QMT=jnp.asarray(old), advantage_QM=jnp.asarray(advantage))
    got = np.asarray(most_covarying(batch, config.update))
    inside = np.asarray(batch.mask_QMT) > 0
    for part in range(2):  # each optimizer step has every second question
        own, a = inside[part::2], np.broadcast_to(advantage[part::2, :, None], inside[part::2].shape)
        covariance = (old[part::2] - old[part::2][own].mean()) * (a - a[own].mean())
        count = int(np.ceil(0.05 * own.sum()))
        least = np.sort(covariance[own])[-count]
        assert (got[part::2] == (own & (covariance >= least))).all() and got[part::2].sum() == count
    moved = {}
    for coefficient in (1e-9, 1e3):
        update = {"epochs": 3, "minibatches": 2, "kl_cov_fraction": 0.3, "kl_cov_coefficient": coefficient}
        start, end, _ = updated(tiny_config(update=update))
        batch = make_batch(config, rollouts(), votes())
        before, after = (score(ready(graph(), s.params), batch)[0] for s in (start, end))
        chosen = most_covarying(
            replace(batch, old_QMT=before, advantage_QM=ESTIMATORS["rloo"](batch.reward_QM)), tiny_config(update=update).update
        )
        moved[coefficient] = float(jnp.abs(after - before)[np.asarray(chosen)].mean())
    assert moved[1e3] < moved[1e-9]
