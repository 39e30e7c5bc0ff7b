"""Takes the rewards of each question's samples, gives their advantages; each estimator states its own normalisation.

All are per question (along M) and in float32; none looks across questions.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp


def rloo(reward_QM: jax.Array) -> jax.Array:
    """Reward minus the mean of the *other* samples' rewards; no division by a deviation.

    REINFORCE leave-one-out, arXiv 2402.14740, section 3.3; the estimator of SRT (arXiv 2505.21444).
    """
    M = reward_QM.shape[-1]
    return (reward_QM - reward_QM.mean(-1, keepdims=True)) * M / (M - 1)


def grpo(reward_QM: jax.Array) -> jax.Array:
    """(Reward - group mean) / (group standard deviation + 1e-6), the deviation with ddof 1.

    arXiv 2402.03300, section 4.1.2; ddof is not given there, 1 is what the released trainers use.
    """
    centred_QM = reward_QM - reward_QM.mean(-1, keepdims=True)
    return centred_QM / (reward_QM.std(-1, keepdims=True, ddof=1) + 1e-6)


def dr_grpo(reward_QM: jax.Array) -> jax.Array:
    """Reward minus group mean, no division: GRPO without its difficulty bias, arXiv 2503.20783, section 3.2.

    The paper also drops the division by each response's length: use it with update.aggregation=constant.
    """
    return reward_QM - reward_QM.mean(-1, keepdims=True)


def reinforce(reward_QM: jax.Array) -> jax.Array:
    """REINFORCE (Williams 1992) with the group mean as baseline, the sample itself included: reward - mean.

    The same numbers as dr_grpo; it goes with token_mean, the plain policy-gradient loss.
    """
    return reward_QM - reward_QM.mean(-1, keepdims=True)


def no_baseline(reward_QM: jax.Array) -> jax.Array:
    """The reward itself, for supervised steps: rewards of 0 and 1 select what is imitated (REINFORCE without a baseline)."""
    return reward_QM.astype(jnp.float32)


ESTIMATORS = {"rloo": rloo, "grpo": grpo, "dr_grpo": dr_grpo, "reinforce": reinforce, "no_baseline": no_baseline}


def kl_estimate(logp: jax.Array, reference_logp: jax.Array, *, kind: str) -> jax.Array:
    """Per-token estimate of KL(policy || reference) from a token drawn by the policy.

    With d = reference_logp - logp: k1 = -d (unbiased, may be negative), k2 = d^2 / 2, k3 = exp(d) - 1 - d (unbiased and
    never negative, the "low-variance" one). Schulman, "Approximating KL divergence", 2020.
    """
    d = reference_logp - logp
    if kind == "k1":
        return -d
    if kind == "k2":
        return d * d / 2
    return jnp.expm1(d) - d
