"""Drawn tokens against the distribution worked out in float64 NumPy."""

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chisquare

from jaxselftrain.draw import draw

CASES = [(1.0, 1.0, 0), (0.7, 0.9, 0), (1.3, 1.0, 5), (1.0, 0.8, 12), (2.0, 0.99, 3), (1.0, 1e-6, 0)]


def distribution(logits_V, temperature, top_p, top_k):
    """(truncated, full) probabilities by sorting."""
    full = np.exp(np.float64(logits_V) / temperature - (np.float64(logits_V) / temperature).max())
    full /= full.sum()
    order = np.argsort(-full)[: top_k or None]
    within = full[order] / full[order].sum()
    kept = order[: np.searchsorted(np.cumsum(within), top_p - 1e-12) + 1]
    cut = np.zeros_like(full)
    cut[kept] = full[kept]
    return cut / cut.sum(), full


@pytest.mark.parametrize(("temperature", "top_p", "top_k"), CASES)
@pytest.mark.parametrize("V", [20, 600])
def test_frequencies_match_the_truncated_distribution(temperature, top_p, top_k, V):
    rng = np.random.default_rng(V)
    logits_V = (rng.normal(size=V) * 2).astype(np.float32)
    X = 40_000
    token_X, logp_X = draw(
        jnp.broadcast_to(jnp.asarray(logits_V), (X, V)),
        jnp.asarray(rng.random(X), jnp.float32),
        temperature_X=jnp.full(X, temperature),
        top_p=top_p,
        top_k=top_k,
    )
    want_V, full_V = distribution(logits_V, temperature, top_p, top_k)
    seen_V = np.bincount(np.asarray(token_X), minlength=V)
    assert not seen_V[want_V == 0].any()
    big = want_V * X > 5
    grouped = np.append(seen_V[big], seen_V[~big].sum()), np.append(want_V[big], want_V[~big].sum()) * X
    if big.sum() > 1:
        keep = grouped[1] > 0
        assert chisquare(grouped[0][keep], grouped[1][keep]).pvalue > 1e-4
    np.testing.assert_allclose(logp_X, np.log(full_V)[np.asarray(token_X)], atol=2e-5)


def test_temperature_0_is_greedy_row_by_row():
    logits_XV = jnp.asarray(np.random.default_rng(0).normal(size=(50, 300)), jnp.float32)
    temperature_X = jnp.where(jnp.arange(50) % 2, 0.0, 1.0)
    token_X, _ = draw(logits_XV, jnp.full(50, 0.999), temperature_X=temperature_X, top_p=1.0, top_k=0)
    greedy_X = jnp.argmax(logits_XV, -1)
    assert (token_X[1::2] == greedy_X[1::2]).all()
    assert (token_X[::2] != greedy_X[::2]).any()


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-24])
def test_a_token_without_probability_is_never_drawn(uniform):
    logits_V = jnp.where(jnp.isin(jnp.arange(1000), jnp.asarray([3, 700])), 0.0, -jnp.inf)
    token_X, _ = draw(logits_V[None], jnp.asarray([uniform]), temperature_X=jnp.ones(1), top_p=1.0, top_k=0)
    assert int(token_X[0]) in (3, 700)
