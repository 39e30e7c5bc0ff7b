"""The compiled step: fused against separate, sharded against one device, and what it may never do."""

import math
from dataclasses import replace
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny import (
    TINY,
    N,
    Q,
    T,
    equal_bits,
    graph,
    mesh_of,
    not_learning,
    params,
    place,
    prompts,
    rollouts,
    state,
    tiny_config,
    votes,
)

from jaxselftrain.plan.collectives import collectives
from jaxselftrain.sampler import sample, token_noise
from jaxselftrain.sharding import named, param_shardings
from jaxselftrain.step import compile_sample, compile_step, make_transform, prompt_shardings
from jaxselftrain.update import learn

AXES = ("data", "fsdp", "samples", "tensor")
ONE = (1, 1, 1, 1)
MESHES = [(data, fsdp, 1, 8 // data // fsdp) for data in (1, 2, 4, 8) for fsdp in (1, 2, 4, 8) if 8 % (data * fsdp) == 0]
MESHES += [(1, 1, 2, 4), (2, 1, 4, 1), (2, 2, 2, 1)]  # a question's samples on several devices
UPDATE = {"kl_coefficient": 0.1, "kl_in": "loss"}


@cache
def program_of(mesh_shape):
    config = tiny_config(update=UPDATE, mesh=dict(zip(AXES, mesh_shape, strict=True)))
    mesh = mesh_of(config, math.prod(mesh_shape))
    return config, mesh, compile_step(graph(mesh), config, TINY, mesh)


def run_once(mesh_shape=ONE, *, learning=True):
    config, mesh, program = program_of(mesh_shape)
    decided = votes() if learning else not_learning(votes())
    return program(state(config, mesh, reference=params(seed=5)), *place(mesh, rollouts(), decided, prompts()))


def test_fused_is_update_then_sample_bit_for_bit():
    config, mesh, _ = program_of(ONE)
    policy = graph(mesh)
    end, new, metrics = run_once()
    start = state(config, mesh, reference=params(seed=5))
    apart, apart_metrics = jax.jit(partial(learn, policy, make_transform(config), config))(start, rollouts(), votes())
    again = compile_sample(policy, TINY, mesh, N=N, T=T, W=N)(apart.params, prompts())
    assert equal_bits(end, apart) and equal_bits(new, again) and equal_bits(metrics, apart_metrics)


def test_without_learning_the_state_comes_back_unchanged():
    config, mesh, _ = program_of(ONE)
    end, new, metrics = run_once(learning=False)
    assert equal_bits(end, state(config, mesh, reference=params(seed=5)))
    assert not any(np.asarray(x).any() for x in metrics.values())
    assert np.asarray(new.length_QN).min() >= 1


@pytest.mark.parametrize("mesh_shape", MESHES, ids=str)
def test_eight_devices_make_the_same_step_as_one(mesh_shape):
    whole_state, _, whole_metrics = run_once()
    many_state, _, many_metrics = run_once(mesh_shape)
    for name, value in whole_metrics.items():
        np.testing.assert_allclose(many_metrics[name], value, rtol=1e-5, atol=1e-5, err_msg=name)
    moment = whole_state.moments[1][0].mu["w_down_LFD"]
    np.testing.assert_allclose(many_state.moments[1][0].mu["w_down_LFD"], moment, atol=1e-6)
    sampled, again = run_once(learning=False)[1], run_once(mesh_shape, learning=False)[1]
    assert equal_bits(sampled.tokens_QNT, again.tokens_QNT)
    np.testing.assert_allclose(sampled.logp_QNT, again.logp_QNT, atol=1e-5)


def test_weights_and_moments_are_spread_over_fsdp_and_tensor():
    end, _, _ = run_once((2, 2, 1, 2))
    for tree in (end.params, end.moments[1][0].nu):
        shard = tree["w_gate_LDF"].addressable_shards[0].data.shape
        assert shard == (TINY.L, TINY.D // 2, TINY.F // 2)


@pytest.mark.parametrize("mesh_shape", [(8, 1, 1, 1), (2, 2, 1, 2), (1, 1, 1, 8), (2, 2, 2, 1)])
def test_rows_that_take_turns_sample_the_same_on_any_mesh(mesh_shape):
    config = tiny_config(mesh=dict(zip(AXES, mesh_shape, strict=True)))
    mesh = mesh_of(config, 8)
    asked = prompts(end_ids=range(40, 50))
    with jax.default_matmul_precision("highest"):
        turns = compile_sample(graph(mesh), TINY, mesh, N=N, T=T, W=2)(
            jax.device_put(params(), param_shardings(mesh, TINY)), jax.device_put(asked, prompt_shardings(mesh))
        )
        alone = jax.jit(partial(sample, graph(), N=N, T=T, W=N))(params(), asked)
    assert len(set(np.asarray(alone.length_QN).ravel().tolist())) > 3
    assert equal_bits((turns.tokens_QNT, turns.length_QN, turns.ended_QN), (alone.tokens_QNT, alone.length_QN, alone.ended_QN))


@pytest.mark.parametrize(("mesh_shape", "W"), [((1, 1, 2, 1), 1), ((2, 1, 2, 2), 2), ((1, 2, 4, 1), 1)])
def test_parts_of_a_question_on_several_devices_sample_the_same(mesh_shape, W):
    """Each with other temperatures, so that a sample that took another's number would be seen."""
    mesh = mesh_of(tiny_config(mesh=dict(zip(AXES, mesh_shape, strict=True))), math.prod(mesh_shape))
    asked = prompts(end_ids=range(40, 50), temperatures=[1.0, 0.5, 0.0, 2.0])

    def sampled(asked, **confidence):
        given = jax.device_put(params(), param_shardings(mesh, TINY)), jax.device_put(asked, prompt_shardings(mesh))
        with jax.default_matmul_precision("highest"):
            apart = jax.jit(partial(sample, graph(mesh), N=N, T=T, W=W, parts=mesh_shape[2], **confidence))(*given)
            return apart, jax.jit(partial(sample, graph(), N=N, T=T, W=N, **confidence))(params(), asked)

    apart, alone = sampled(asked)
    assert equal_bits((apart.tokens_QNT, apart.length_QN, apart.ended_QN), (alone.tokens_QNT, alone.length_QN, alone.ended_QN))
    np.testing.assert_allclose(apart.logp_QNT, alone.logp_QNT, atol=1e-5)
    apart, alone = sampled(prompts(end_ids=range(40, 50)), confidence=True)
    np.testing.assert_allclose(apart.confidence.entropy_QN, alone.confidence.entropy_QN, atol=1e-5)


@pytest.mark.parametrize("mesh_shape", [(1, 8, 1, 1), (2, 2, 1, 2)])
def test_weights_are_put_together_once_for_all_tokens(mesh_shape):
    mesh = mesh_of(tiny_config(mesh=dict(zip(AXES, mesh_shape, strict=True))), 8)
    given = jax.device_put(params(), param_shardings(mesh, TINY)), jax.device_put(prompts(), prompt_shardings(mesh))
    tokens, passed = {}, {}
    for gather in (True, False):
        program = compile_sample(graph(mesh, gather=gather), TINY, mesh, N=N, T=T, W=N).lower(*given).compile()
        with jax.default_matmul_precision("highest"):
            tokens[gather] = program(*given).tokens_QNT
        found = [one for one in collectives(program.as_text()) if one.kind == "all-gather"]
        passed[gather] = [sum(one.bytes for one in found if (one.loop is None) is once) for once in (True, False)]
    missing = (1 - 1 / mesh.shape["fsdp"]) * 4 / mesh.shape["tensor"]  # bytes of a weight that are elsewhere
    sizes = {name: math.prod(shape) for name, shape in TINY.shapes().items() if "norm" not in name}
    layer = sum(size for name, size in sizes.items() if "_L" in name) / TINY.L  # the loop over layers stands there once
    assert passed[True][0] >= 0.9 * missing * sum(sizes.values())
    assert passed[False][1] - passed[True][1] >= 0.9 * missing * layer
    assert equal_bits(tokens[True], tokens[False])


@pytest.mark.parametrize("mesh_shape", [(8, 1, 1, 1), (2, 2, 2, 1)])
def test_noise_is_bit_identical_on_any_mesh(mesh_shape):
    config = tiny_config(mesh=dict(zip(AXES, mesh_shape, strict=True)))
    rows = named(mesh_of(config, 8), "rows")

    def noise(slots):
        sample_QW = jnp.broadcast_to(jnp.arange(N), (Q, N))
        return token_noise(jnp.asarray([1, 0, 3], jnp.uint32), slots, sample_QW, jnp.full((Q, N), 5))

    assert equal_bits(jax.jit(noise, in_shardings=rows, out_shardings=rows)(jnp.arange(Q)), noise(jnp.arange(Q)))


def test_the_last_call_learns_and_samples_nothing():
    config, mesh, program = program_of(ONE)
    asked = replace(prompts(), wanted_Q=jnp.zeros(Q, bool))
    end, same, _ = program(state(config, mesh, reference=params(seed=5)), *place(mesh, rollouts(), votes(), asked))
    assert int(end.count) == 1 and equal_bits(same, rollouts())


@pytest.mark.parametrize("mesh_shape", [ONE, (2, 1, 2, 1)])
@pytest.mark.parametrize("rows", [None, 2 * Q])
def test_some_places_are_sampled_again_and_the_others_stay(mesh_shape, rows):
    """The rows of the others help, or are idle; responses are the same as if all had been sampled."""
    config = tiny_config(rollout={"rows": rows}, mesh=dict(zip(AXES, mesh_shape, strict=True)))
    mesh = mesh_of(config, math.prod(mesh_shape))
    program = compile_step(graph(mesh), config, TINY, mesh)
    asked, wanted = prompts(end_ids=range(40, 50)), np.asarray([True, False, False, True, False, False, False, True])

    def sampled(asked):
        with jax.default_matmul_precision("highest"):
            return program(state(config, mesh), *place(mesh, rollouts(), not_learning(votes()), asked))

    start, whole, _ = sampled(asked)
    end, some, _ = sampled(replace(asked, wanted_Q=jnp.asarray(wanted)))
    assert equal_bits(start, end)
    for name in ("prompt_QC", "prompt_length_Q", "tokens_QNT", "length_QN", "ended_QN"):
        new, got, old = (np.asarray(getattr(found, name)) for found in (whole, some, rollouts()))
        assert equal_bits(got[wanted], new[wanted]) and equal_bits(got[~wanted], old[~wanted]), name


def test_rollouts_and_state_are_donated():
    config, mesh, program = program_of(ONE)
    start, inputs = state(config, mesh, reference=params(seed=5)), place(mesh, rollouts(), votes(), prompts())
    program(start, *inputs)
    assert start.params["w_q_LDHK"].is_deleted() and inputs[0].tokens_QNT.is_deleted()
    assert not inputs[2].tokens_QC.is_deleted()


def test_compiled_step_has_no_host_callback_and_one_program_serves_all_flags():
    config = tiny_config()
    mesh = mesh_of(config)
    program = compile_step(graph(mesh), config, TINY, mesh)
    current, new = state(config, mesh), place(mesh, rollouts(), votes(), prompts())[0]
    for index, (learning, wanted, top_k) in enumerate([(False, True, 0), (True, True, 5), (True, False, 0)]):
        decided = votes() if learning else not_learning(votes())
        asked = replace(prompts(draw=index, top_k=top_k), wanted_Q=jnp.full(Q, wanted))
        current, new, _ = program(current, new, *place(mesh, rollouts(), decided, asked)[1:])
    assert program._cache_size() == 1
    lowered = program.lower(current, new, *place(mesh, rollouts(), votes(), prompts())[1:]).as_text()
    assert "callback" not in lowered and "infeed" not in lowered


def test_the_program_does_not_grow_with_depth():
    def operations(L):
        deep, config = replace(TINY, L=L), tiny_config()
        mesh = mesh_of(config)
        current = state(config, mesh, architecture=deep)
        program = compile_step(graph(mesh, architecture=deep), config, deep, mesh)
        return program.lower(current, *place(mesh, rollouts(), votes(), prompts())).as_text().count(" = ")

    assert operations(2) == operations(9) > 1000


def moved(weights_dtype, start):
    """How far 50 steps of the whole program at lr 1e-6 carry every weight from `start`, which bfloat16 holds exactly."""
    wide = replace(TINY, D=64, F=256, H=8, G=8, K=8, L=3)
    config = tiny_config(
        model={"weights_dtype": weights_dtype},
        optimizer={"learning_rate": 1e-6, "state_dtype": weights_dtype, "weight_decay": 0.0},
    )
    mesh = mesh_of(config, 1)
    program = compile_step(graph(mesh, architecture=wide), config, wide, mesh)
    now = state(config, mesh, architecture=wide, weights={k: x.astype(weights_dtype) for k, x in start(wide).items()})
    first = jax.tree.map(np.asarray, now.params)
    for _ in range(50):
        now, _, _ = program(now, *place(mesh, rollouts(), votes(), prompts()))
    return {name: np.asarray(now.params[name], np.float64) - np.asarray(first[name], np.float64) for name in first}


def test_lean_storage_learns_as_much_as_float32_through_the_whole_step():
    def start(architecture):
        return {k: x.astype(jnp.bfloat16) for k, x in params(architecture, scale=0.02).items()}

    full, lean = moved("float32", start), moved("bfloat16", start)
    size = sum(x.size for x in full.values())
    far = sum(np.abs(x).sum() for x in full.values()) / size
    # along float32's own movement, so that the noise of stochastic rounding averages out
    along = sum((np.sign(full[name]) * lean[name]).sum() for name in full) / size
    assert size > 200_000 and 1e-5 < far < 5e-5
    assert along == pytest.approx(far, rel=0.05)
