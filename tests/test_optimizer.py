"""Schedules by hand, and storage in bfloat16 against float32."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxselftrain.optimizer import adamw, apply, init_moments, round_stochastically, schedule
from jaxselftrain.sections import Optimizer


@pytest.mark.parametrize(
    ("kind", "want"),
    [
        ("constant", [1, 2, 3, 3, 3, 3, 3]),
        ("linear", [1, 2, 3, 2.25, 1.5, 0.75, 0]),
        ("cosine", [1, 2, 3, 2.56066, 1.5, 0.43934, 0]),
    ],
)
def test_schedules_warm_up_and_then_follow_their_curve(kind, want):
    rate = schedule(Optimizer(learning_rate=3.0, schedule=kind, warmup_steps=2), steps=6)
    np.testing.assert_allclose([rate(i) for i in range(7)], want, rtol=1e-5, atol=1e-6)


def test_stochastic_rounding_is_right_on_average_and_only_to_neighbours():
    x = jnp.asarray(np.random.default_rng(0).normal(size=500), jnp.float32)
    rounded = jax.vmap(lambda k: round_stochastically(x, k))(jax.random.split(jax.random.key(0), 4000)).astype(jnp.float32)
    unit = 2.0 ** (np.floor(np.log2(np.abs(x))) - 7)
    assert (np.abs(rounded - x) < unit).all()
    np.testing.assert_allclose(rounded.mean(0), x, atol=float((unit * 0.05).max()))
    special = jnp.asarray([jnp.inf, -jnp.inf, jnp.nan, 0.0])
    np.testing.assert_array_equal(round_stochastically(special, jax.random.key(1)).astype(jnp.float32), special)


def movement(weights_dtype, state_dtype, *, plain=False):
    """Mean |weight after 50 steps at lr 1e-6 - weight before| for gradients of constant sign with noise."""
    settings = Optimizer(learning_rate=1e-6, state_dtype=state_dtype)
    transform = adamw(settings, steps=50)
    rng = np.random.default_rng(0)
    start = jnp.asarray(rng.normal(size=20_000) * 0.02, jnp.bfloat16)
    params = {"w": start.astype(weights_dtype)}
    moments = init_moments(transform, params, dtype=state_dtype)

    @jax.jit
    def step(params, moments, grads, count):
        if plain:
            import optax

            updates, moments = transform.update(grads, moments, params)
            return optax.apply_updates(params, updates), moments
        return apply(transform, grads, moments, params, rate=jnp.float32(1), seed=jnp.uint32(0), count=count)

    drift = rng.choice([-1.0, 1.0], 20_000)
    for count in range(50):
        grads = {"w": jnp.asarray(drift + rng.normal(size=20_000), weights_dtype)}
        params, moments = step(params, moments, grads, count)
    moved = np.asarray(params["w"], np.float64) - np.asarray(start, np.float64)
    return (moved * -drift).mean()


def test_lean_storage_moves_as_far_as_float32_and_plain_bfloat16_does_not():
    full = movement("float32", "float32")
    assert full > 2e-5
    assert movement("bfloat16", "float32") == pytest.approx(full, rel=0.05)
    assert movement("bfloat16", "bfloat16") == pytest.approx(full, rel=0.05)
    assert movement("bfloat16", "bfloat16", plain=True) < 0.3 * full
