"""Every estimator against a slow loop, and the KL estimates against the KL itself."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxselftrain.advantages import dr_grpo, grpo, kl_estimate, reinforce, rloo

R_QM = np.random.default_rng(0).random((5, 4)).astype(np.float32)


def test_rloo_is_reward_minus_mean_of_the_others():
    want = [[r[i] - np.delete(r, i).mean() for i in range(4)] for r in R_QM]
    np.testing.assert_allclose(rloo(R_QM), want, rtol=1e-5, atol=1e-6)


def test_grpo_divides_by_the_sample_deviation():
    want = [[(x - r.mean()) / (np.sqrt(((r - r.mean()) ** 2).sum() / 3) + 1e-6) for x in r] for r in R_QM]
    np.testing.assert_allclose(grpo(R_QM), want, rtol=1e-4)


@pytest.mark.parametrize("estimator", [dr_grpo, reinforce])
def test_mean_baselines_do_not_divide(estimator):
    np.testing.assert_allclose(estimator(R_QM), [[x - sum(r) / 4 for x in r] for r in R_QM], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("estimator", [rloo, grpo, dr_grpo, reinforce])
def test_equal_rewards_give_no_advantage(estimator):
    np.testing.assert_allclose(estimator(jnp.ones((2, 3))), 0.0, atol=1e-6)


def test_kl_estimates_against_the_exact_divergence():
    rng = np.random.default_rng(1)
    p, q = (np.exp(z) / np.exp(z).sum() for z in (rng.normal(size=6), rng.normal(size=6)))
    exact = (p * np.log(p / q)).sum()
    tokens = rng.choice(6, 400_000, p=p)
    mean = {kind: float(kl_estimate(np.log(p)[tokens], np.log(q)[tokens], kind=kind).mean()) for kind in ("k1", "k2", "k3")}
    assert mean["k1"] == pytest.approx(exact, rel=0.02)
    assert mean["k3"] == pytest.approx(exact, rel=0.02)
    assert mean["k2"] == pytest.approx((p * np.log(p / q) ** 2).sum() / 2, rel=0.02)
    assert (kl_estimate(np.log(p)[tokens], np.log(q)[tokens], kind="k3") >= 0).all()
