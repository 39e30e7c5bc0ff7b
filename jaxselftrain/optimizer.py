"""Takes the optimizer section, gives AdamW over weights and moments that may be stored in bfloat16.

Plain bfloat16 storage loses almost every update at the learning rates of this field: a step of 1e-6 is far below half a
unit in the last place of a weight near 0.02. So whatever is stored in bfloat16 is computed in float32 and rounded
*stochastically*: up or down with the probability that makes the expected value exact.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from jaxselftrain import sections
from jaxselftrain.model.attention import widen

ROUNDING_STREAM = 0xB16  # apart from the streams of sampling noise


def schedule(settings: sections.Optimizer, *, steps: int) -> optax.Schedule:
    """Learning rate by optimizer step: linear warm-up, then constant, or linearly or as a cosine to 0 at `steps`."""
    peak, warmup = settings.learning_rate, settings.warmup_steps
    rest = max(steps - warmup, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, rest),
        "cosine": optax.cosine_decay_schedule(peak, rest),
    }[settings.schedule]
    if warmup == 0:
        return after
    # the first step already moves: step i of w has (i + 1) / (w + 1) of the peak
    return optax.join_schedules([lambda count: peak * (count + 1) / (warmup + 1), after], [warmup])


def adamw(settings: sections.Optimizer, *, steps: int) -> optax.GradientTransformation:
    """Global-norm clipping, then AdamW with decoupled weight decay (arXiv 1711.05101)."""
    return optax.chain(
        optax.clip_by_global_norm(settings.clip_norm),
        optax.adamw(
            schedule(settings, steps=steps),
            b1=settings.b1,
            b2=settings.b2,
            eps=settings.eps,
            weight_decay=settings.weight_decay,
        ),
    )


def init_moments(transform: optax.GradientTransformation, params: dict[str, jax.Array], *, dtype: str):
    """The optimizer's state, its float leaves stored in `dtype`."""
    return jax.tree.map(lambda x: x.astype(dtype) if _is_float(x) else x, transform.init(params))


def apply(transform: optax.GradientTransformation, grads, moments, params, *, rate: jax.Array, seed: jax.Array, count: jax.Array):
    """(new params, new moments): computed in float32, stored in the dtypes they came in. `rate` scales the step."""
    wide_params, wide_moments = _widen(params), _widen(moments)
    updates, new_moments = transform.update(_widen(grads), wide_moments, wide_params)
    new_params = optax.apply_updates(wide_params, jax.tree.map(lambda x: x * rate.astype(x.dtype), updates))
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), ROUNDING_STREAM), count)
    return _store(new_params, params, jax.random.fold_in(key, 0)), _store(new_moments, moments, jax.random.fold_in(key, 1))


def round_stochastically(x: jax.Array, key: jax.Array) -> jax.Array:
    """float32 -> bfloat16, up or down at random so that the expected value is x; Inf and NaN stay what they are."""
    bits = jax.lax.bitcast_convert_type(x, jnp.uint32)
    noise = jax.random.bits(key, x.shape, jnp.uint16).astype(jnp.uint32)
    rounded = jax.lax.bitcast_convert_type((bits + noise) & jnp.uint32(0xFFFF0000), jnp.float32)
    return jnp.where(jnp.isfinite(x), rounded, x).astype(jnp.bfloat16)


def _store(wide, like, key):
    leaves, tree = jax.tree.flatten(wide)
    out = []
    for index, (x, old) in enumerate(zip(leaves, jax.tree.leaves(like), strict=True)):
        is_lean = x.dtype == jnp.float32 and old.dtype == jnp.bfloat16
        out.append(round_stochastically(x, jax.random.fold_in(key, index)) if is_lean else x.astype(old.dtype))
    return jax.tree.unflatten(tree, out)


def _widen(tree):
    return jax.tree.map(lambda x: widen(x) if _is_float(x) else x, tree)


def _is_float(x) -> bool:
    return jnp.issubdtype(x.dtype, jnp.floating)
