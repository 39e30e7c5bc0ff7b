"""Takes the state, rollouts and the host's feedback on them, gives the state after one policy-gradient update.

The objective, for sample i of a question with advantage A_i and ratio r_t = pi(y_t) / pi_old(y_t):

    J = sum_{i,t} c_it [ w_it min(r_t A_i, clip(r_t, 1 - clip_low, 1 + clip_high) A_i) - beta KL_t + alpha H_t ]

(PPO's clipped objective, arXiv 1707.06347 eq. 7; GRPO's form, arXiv 2402.03300 eq. 3.) The coefficients c_it say how
tokens are averaged and sum over the whole batch before it is split, so micro-batches add up to the full gradient.
With one inner step pi_old is the policy itself: the ratio is exactly 1 and only its gradient counts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from jaxselftrain import optimizer
from jaxselftrain.advantages import ESTIMATORS, kl_estimate
from jaxselftrain.config import Config
from jaxselftrain.model.attention import widen
from jaxselftrain.model.policy import ready
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import Rollouts
from jaxselftrain.scoring import score
from jaxselftrain.sharding import shards


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class State:
    """What training changes."""

    params: dict[str, jax.Array]
    moments: Any  # the optimizer's own state
    count: jax.Array  # int32: optimizer steps applied
    seed: jax.Array  # uint32: keys stochastic rounding
    reference: dict[str, jax.Array] | None  # the initial policy, frozen; None where it is not kept
    teacher: dict[str, jax.Array] | None = None  # float32 mean of the policy over time, where it makes the labels


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Batch:
    """The samples an update trains on; every array leads with Q, so it splits into minibatches and micro-batches."""

    prompt_QC: jax.Array
    prompt_length_Q: jax.Array
    tokens_QMT: jax.Array
    mask_QMT: jax.Array  # float32: 1 on response tokens, the one that ended it included
    coefficient_QMT: jax.Array  # c_it of the objective
    share_QMT: jax.Array  # weight of each token in metrics: token mean
    behaviour_QMT: jax.Array  # the sampler's own log-probs
    reward_QM: jax.Array
    kl_weight_Q: jax.Array
    temperature_QM: jax.Array
    old_QMT: jax.Array | None = None  # log-probs before the first inner step; None: they are the current ones
    reference_QMT: jax.Array | None = None
    covaries_QMT: jax.Array | None = None  # bool: the tokens of KL-Cov
    advantage_QM: jax.Array | None = None


PER_QUESTION = ("prompt_QC", "prompt_length_Q", "kl_weight_Q")  # the arrays of a Batch without a samples axis


def learn(
    graph: nnx.GraphDef,
    transform: optax.GradientTransformation,
    config: Config,
    state: State,
    rollouts: Rollouts,
    feedback: Feedback,
) -> tuple[State, dict[str, jax.Array]]:
    """One update: epochs x minibatches optimizer steps over the chosen samples; metrics are means over those steps."""
    settings = config.update
    batch = make_batch(config, rollouts, feedback)
    per_step = batch.prompt_length_Q.shape[0] // settings.minibatches
    pieces = _parts_of(graph, config, state, batch, Q=per_step, micro=config.micro_batches)[1]
    splits_questions = pieces > 1 or config.mesh.samples > 1
    if settings.epochs * settings.minibatches > 1 or (splits_questions and config.charges_kl_in_reward):
        with jax.named_scope("scoring"):
            batch = _score_first(graph, config, state, batch)
    elif not config.charges_kl_in_reward:  # before a question's samples are split
        batch = replace(batch, advantage_QM=ESTIMATORS[settings.estimator](batch.reward_QM))
    if settings.kl_cov_fraction > 0:
        batch = replace(batch, covaries_QMT=most_covarying(batch, settings))
    minibatches = _split(batch, settings.minibatches, 1)

    def optimizer_step(state, index):
        minibatch = jax.tree.map(lambda x: jax.lax.dynamic_index_in_dim(x, index, keepdims=False), minibatches)
        with jax.named_scope("gradient"):
            grads, sums = gradient(graph, config, state, minibatch)
        norm = optax.tree.norm(jax.tree.map(widen, grads))
        good = jnp.isfinite(norm) & jnp.isfinite(sums["loss"])
        rate = jnp.asarray(learning_rate(state.count), jnp.float32) * feedback.rate
        state = jax.lax.cond(good, lambda s: _apply(transform, s, grads, feedback.rate), lambda s: s, state)
        return state, sums | {"grad_norm": norm, "learning_rate": rate, "bad_update": 1.0 - good}

    learning_rate = optimizer.schedule(config.optimizer, steps=config.optimizer_steps)
    order = jnp.tile(jnp.arange(settings.minibatches), settings.epochs)
    state, metrics = jax.lax.scan(optimizer_step, state, order)
    if state.teacher is not None:
        decay = config.label.decay
        follow = partial(jax.tree.map, lambda old, new: decay * old + (1 - decay) * new.astype(old.dtype))
        state = replace(state, teacher=follow(state.teacher, state.params))
    return state, jax.tree.map(lambda x: x.mean(0), metrics)


def make_batch(config: Config, rollouts: Rollouts, feedback: Feedback) -> Batch:
    """The chosen samples of every question, with the weight of each token in the objective."""
    chosen_QM = feedback.chosen_QM

    def chosen(x_QN):
        return jnp.take_along_axis(x_QN, chosen_QM.reshape(chosen_QM.shape + (1,) * (x_QN.ndim - 2)), 1)

    tokens_QMT, length_QM = chosen(rollouts.tokens_QNT), chosen(rollouts.length_QN)
    T = tokens_QMT.shape[-1]
    mask_QMT = (jnp.arange(T) < length_QM[..., None]).astype(jnp.float32)
    weight_QMT = mask_QMT * chosen(feedback.weight_QN)[..., None]
    return Batch(
        prompt_QC=rollouts.prompt_QC,
        prompt_length_Q=rollouts.prompt_length_Q,
        tokens_QMT=tokens_QMT,
        mask_QMT=mask_QMT,
        coefficient_QMT=_coefficients(config.update.aggregation, weight_QMT, length_QM, config.update.minibatches),
        share_QMT=_coefficients("token_mean", mask_QMT, length_QM, config.update.minibatches),
        behaviour_QMT=chosen(rollouts.logp_QNT),
        reward_QM=chosen(feedback.reward_QN),
        kl_weight_Q=feedback.kl_weight_Q,
        temperature_QM=rollouts.temperature_N[chosen_QM],
    )


def _coefficients(aggregation: str, weight_QMT, length_QM, parts: int):
    """c_it, normalised over each optimizer step's questions: minibatch j of `parts` holds every parts-th question from j on."""
    T = weight_QMT.shape[-1]
    any_QM = weight_QMT.max(-1)
    per_token_QMT, amount_QM = {
        "token_mean": (weight_QMT, weight_QMT.sum(-1)),  # every token of the batch counts the same
        "sequence_mean": (weight_QMT / jnp.maximum(length_QM, 1)[..., None], any_QM),  # every response counts the same
        "constant": (weight_QMT, any_QM * T),  # a token counts 1 / (responses x T) whatever the lengths (Dr. GRPO)
    }[aggregation]
    total_P = amount_QM.sum(-1).reshape(-1, parts).sum(0)
    total_Q = jnp.tile(total_P, amount_QM.shape[0] // parts)
    return per_token_QMT / jnp.where(total_Q > 0, total_Q, 1.0)[:, None, None]


def micro_parts(*, Q: int, M: int, micro: int, devices: int) -> tuple[int, int]:
    """(groups of whole questions, pieces of each question's samples) that the micro-batches of Q questions are made of.

    As many groups as leave each of the `devices` that split questions one of its own, the rest in pieces of its M samples: a part
    with fewer questions than devices would leave some idle. Where the pieces do not divide the samples, that is how it is.
    """
    groups = math.gcd(micro, max(Q // devices, 1))
    if M % (micro // groups):
        return min(micro, Q), max(micro // Q, 1)
    return groups, micro // groups


def _parts_of(graph: nnx.GraphDef, config: Config, state: State, batch: Batch, *, Q: int, micro: int) -> tuple[int, int]:
    devices = shards(nnx.merge(graph, state.params).mesh, "questions")
    return micro_parts(Q=Q, M=batch.mask_QMT.shape[1] // config.mesh.samples, micro=micro, devices=devices)


def gradient(graph: nnx.GraphDef, config: Config, state: State, batch: Batch):
    """(gradient, sums of metrics) of the loss over one optimizer step's questions, in micro-batches.

    The gradients of several micro-batches are added up in float32. That of a single one has the weights' dtype, as each of
    them has, and needs no sum beside it.
    """
    groups, pieces = _parts_of(graph, config, state, batch, Q=batch.prompt_length_Q.shape[0], micro=config.micro_batches)
    parts = _split(batch, groups, pieces, devices=config.mesh.samples)
    value_and_grad = jax.value_and_grad(_loss, argnums=2, has_aux=True)
    first = jax.tree.map(lambda x: x[0], parts)
    if groups * pieces == 1:
        (_, sums), grads = value_and_grad(graph, config, state.params, state.reference, first)
        return grads, sums

    def add(total, part):
        (_, sums), grads = value_and_grad(graph, config, state.params, state.reference, part)
        return jax.tree.map(lambda a, b: a + b.astype(a.dtype), total, (grads, sums)), None

    wide = jnp.promote_types(jnp.float32, batch.reward_QM.dtype)
    shapes = jax.eval_shape(lambda p: _loss(graph, config, state.params, state.reference, p)[1], first)
    zeros = (
        jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.promote_types(x.dtype, wide)), state.params),
        jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes),
    )
    (grads, sums), _ = jax.lax.scan(add, zeros, parts)
    return grads, sums


def _loss(graph, config, params, reference, batch):
    """(-J, sums of metrics) of one micro-batch."""
    settings = config.update
    logp_QMT, entropy_QMT = score(ready(graph, params), batch)
    current_QMT = jax.lax.stop_gradient(logp_QMT)
    old_QMT = current_QMT if batch.old_QMT is None else batch.old_QMT
    reference_QMT = batch.reference_QMT
    if reference is not None and reference_QMT is None:
        reference_QMT = jax.lax.stop_gradient(score(ready(graph, reference), batch)[0])
    advantage_QM = batch.advantage_QM
    if advantage_QM is None:
        advantage_QM = _advantage(config, batch, old_QMT, reference_QMT)
    A_QM1 = advantage_QM[..., None]
    ratio_QMT = jnp.exp(logp_QMT - old_QMT)
    clipped_QMT = jnp.clip(ratio_QMT, 1 - settings.clip_low, 1 + settings.clip_high)
    gain_QMT = jnp.minimum(ratio_QMT * A_QM1, clipped_QMT * A_QM1)
    if settings.importance_cap is not None:  # truncated importance weights, trainer over sampler
        gain_QMT *= jnp.minimum(jnp.exp(old_QMT - batch.behaviour_QMT), settings.importance_cap)
    if settings.kl_coefficient > 0 and settings.kl_in == "loss":
        kl_QMT = kl_estimate(logp_QMT, reference_QMT, kind=settings.kl_estimator)
        gain_QMT -= settings.kl_coefficient * batch.kl_weight_Q[:, None, None] * kl_QMT
    if batch.covaries_QMT is not None:
        kl_QMT = kl_estimate(logp_QMT, old_QMT, kind="k2")
        gain_QMT -= settings.kl_cov_coefficient * jnp.where(batch.covaries_QMT, kl_QMT, 0.0)
    if settings.entropy_bonus:
        gain_QMT += settings.entropy_bonus * entropy_QMT
    loss = -(batch.coefficient_QMT * jnp.where(batch.mask_QMT > 0, gain_QMT, 0.0)).sum()

    def mean(x_QMT):
        return (batch.share_QMT * jnp.where(batch.mask_QMT > 0, jax.lax.stop_gradient(x_QMT), 0.0)).sum()

    sums = {
        "loss": jax.lax.stop_gradient(loss),
        "entropy": mean(entropy_QMT),
        "log_prob": mean(current_QMT),
        "ratio_mean": mean(ratio_QMT),
        "clip_fraction": mean((clipped_QMT * A_QM1 < ratio_QMT * A_QM1).astype(jnp.float32)),
        "sampler_gap": mean(jnp.abs(current_QMT - batch.behaviour_QMT)),
    }
    if reference_QMT is not None:
        sums["kl"] = mean(kl_estimate(current_QMT, reference_QMT, kind="k3"))
        sums["kl_k1"] = mean(kl_estimate(current_QMT, reference_QMT, kind="k1"))
    return loss, sums


def _advantage(config, batch, old_QMT, reference_QMT):
    """Advantages of whole questions; a KL in the reward is the sum over the response, without gradient."""
    settings = config.update
    reward_QM = batch.reward_QM
    if config.charges_kl_in_reward:
        kl_QMT = kl_estimate(old_QMT, reference_QMT, kind=settings.kl_estimator)
        kl_QM = jnp.where(batch.mask_QMT > 0, kl_QMT, 0.0).sum(-1)
        reward_QM = reward_QM - settings.kl_coefficient * batch.kl_weight_Q[:, None] * kl_QM
    return ESTIMATORS[settings.estimator](reward_QM)


def most_covarying(batch: Batch, settings) -> jax.Array:
    """The part of each optimizer step's tokens where log-prob and advantage vary together most (KL-Cov, arXiv 2505.22617).

    These have the largest (log p_t - mean log p)(A_t - mean A), with means over the step's response tokens, by the policy before
    any inner step.
    """
    count = settings.minibatches

    def per_step(x_QMT):  # minibatch j holds every count-th question from j on
        return x_QMT.reshape(-1, count, *x_QMT.shape[1:]).swapaxes(0, 1).reshape(count, -1)

    inside_PX = per_step(batch.mask_QMT) > 0
    tokens_P1 = inside_PX.sum(-1, keepdims=True)

    def centred(x_QMT):
        x_PX = per_step(x_QMT)
        mean_P1 = jnp.where(inside_PX, x_PX, 0.0).sum(-1, keepdims=True) / jnp.maximum(tokens_P1, 1)
        return x_PX - mean_P1

    assert batch.advantage_QM is not None  # several inner steps: everything has been scored
    advantage_QMT = jnp.broadcast_to(batch.advantage_QM[..., None], batch.mask_QMT.shape)
    covariance_PX = jnp.where(inside_PX, centred(batch.old_QMT) * centred(advantage_QMT), -jnp.inf)
    wanted_P1 = jnp.ceil(settings.kl_cov_fraction * tokens_P1).astype(jnp.int32)
    sorted_PX = -jnp.sort(-covariance_PX, -1)
    least_P1 = jnp.take_along_axis(sorted_PX, jnp.maximum(wanted_P1 - 1, 0), -1)
    found_PX = inside_PX & (covariance_PX >= least_P1) & (wanted_P1 > 0)
    Q, M, T = batch.mask_QMT.shape
    return found_PX.reshape(count, Q // count, M, T).swapaxes(0, 1).reshape(Q, M, T)


def _score_first(graph, config, state, batch):
    """Log-probs before any inner step, and advantages from them: for several inner steps, or a KL in the rewards of questions
    that are split."""
    Q = batch.prompt_length_Q.shape[0]
    groups, pieces = _parts_of(graph, config, state, batch, Q=Q, micro=config.micro_batches * config.update.minibatches)

    def one(part):
        old_QMT, _ = score(ready(graph, state.params), part)
        if state.reference is None:
            return old_QMT, None
        return old_QMT, score(ready(graph, state.reference), part)[0]

    devices = config.mesh.samples
    scores = jax.lax.map(one, _split(batch, groups, pieces, devices=devices))
    old_QMT, reference_QMT = _join(scores, groups, pieces, devices=devices)
    advantage_QM = _advantage(config, batch, old_QMT, reference_QMT)
    return replace(batch, old_QMT=old_QMT, reference_QMT=reference_QMT, advantage_QM=advantage_QM)


def _split(batch: Batch, groups: int, pieces: int, *, devices: int = 1) -> Batch:
    """[Q, M, ...] arrays -> [groups * pieces, Q / groups * devices, M / pieces / devices, ...].

    Group j holds every groups-th question from j on: on a mesh each device then splits its own questions. Where devices split the
    samples of a question, what each of them has is a question of its own.
    """

    def split_questions(x):  # no samples axis: each piece brings its prompts along
        x = x.reshape(x.shape[0] // groups, groups, *x.shape[1:]).swapaxes(0, 1)
        return jnp.repeat(jnp.repeat(x, pieces, 0), devices, 1)

    def split_samples(x):
        Q, M, *rest = x.shape
        x = x.reshape(Q // groups, groups, pieces, M // pieces, *rest)
        x = x.transpose(1, 2, 0, 3, *range(4, x.ndim))
        return x.reshape(groups * pieces, Q // groups * devices, M // pieces // devices, *rest)

    arrays = {field.name: getattr(batch, field.name) for field in fields(batch)}
    parts = {
        name: split_questions(x) if name in PER_QUESTION else split_samples(x) for name, x in arrays.items() if x is not None
    }
    return replace(batch, **parts)


def _join(parts, groups: int, pieces: int, *, devices: int):
    """The inverse of _split for arrays with a samples axis."""

    def join(x):
        q, m, rest = x.shape[1] // devices, x.shape[2] * devices, x.shape[3:]
        x = x.reshape(groups, pieces, q, m, *rest).transpose(2, 0, 1, 3, *range(4, x.ndim + 1))
        return x.reshape(q * groups, m * pieces, *rest)

    return jax.tree.map(join, parts)


def _apply(transform, state, grads, rate):
    params, moments = optimizer.apply(
        transform, grads, state.moments, state.params, rate=rate, seed=state.seed, count=state.count
    )
    return replace(state, params=params, moments=moments, count=state.count + 1)
