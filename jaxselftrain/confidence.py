"""Takes logits, gives how sure the policy is of what it says: of these statistics of the sampler intrinsic rewards are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Confidence:
    """Means over the tokens of each response, float32 in nats; of the distribution at its temperature, before truncation."""

    log_prob_QN: Any  # mean_t log p(y_t)
    entropy_QN: Any  # mean_t H(p_t) (RENT, arXiv 2505.22660, rewards its negative)
    self_certainty_QN: Any  # mean_t KL(U || p_t) (INTUITOR, arXiv 2505.19590)

    def by_kind(self) -> dict[str, Any]:
        """By the names of the rewards that are made of them."""
        return {"log_prob": self.log_prob_QN, "entropy": self.entropy_QN, "self_certainty": self.self_certainty_QN}


def no_confidence(Q: int, N: int) -> Confidence:
    """Zeros: of no token yet."""
    return Confidence(*(jnp.zeros((Q, N), jnp.float32) for _ in range(3)))


def token_confidence(logits_XV: jax.Array, temperature_X: jax.Array) -> tuple[jax.Array, jax.Array]:
    """(entropy_X, self_certainty_X) of one token's distribution; V counts every entry of the output matrix."""
    logits_XV = logits_XV.astype(jnp.float32) / temperature_X[..., None]
    below_XV = logits_XV - logits_XV.max(-1, keepdims=True)
    weight_XV = jnp.exp(below_XV)
    total_X = weight_XV.sum(-1)
    log_total_X = jnp.log(total_X)
    entropy_X = log_total_X - (weight_XV * below_XV).sum(-1) / total_X
    return entropy_X, log_total_X - below_XV.mean(-1) - jnp.log(logits_XV.shape[-1])
