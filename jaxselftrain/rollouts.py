"""Takes parameters and prompts, gives rollouts: N responses to each question, with their behaviour log-probs.

The prompt is prefilled once per question and its keys and values are shared by the question's samples. The loop has
static shapes and stops as soon as every response has ended. A question has W rows to sample its N responses with: a row
whose response has ended takes the next one at once. The noise of a token depends on (seed, stream, draw, question
slot, sample, position) and on nothing else: not on the batch, its width or the mesh.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxselftrain.confidence import Confidence, no_confidence, token_confidence
from jaxselftrain.config import Rollout
from jaxselftrain.draw import draw
from jaxselftrain.model.policy import Cache, Policy, ready
from jaxselftrain.sharding import constrain
from jaxselftrain.stopping import STOPPED

SMALLEST_CACHE = 32  # slots of a row's cache: fewer save nothing
SLOTS = 8  # a row's cache has a multiple of this: odd sizes leave vector lanes idle

BUSY_CPU = 64  # rows from which on a CPU's matrix products run at their full rate
BUSY_ACCELERATOR = 256  # about where the multiplications of a row for each weight take as long as reading it, on a GPU or TPU

SHORT = 32  # tokens of responses that need not take turns

Leaf = Any  # a jax.Array; in the trees that describe where arrays lie, its sharding or ShapeDtypeStruct


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Sampling:
    """How to sample; all are arrays, so changing them never recompiles."""

    temperature_N: Leaf  # float32, one for each sample of a question; 0 is greedy
    top_p: Leaf  # float32; 1 is off
    top_k: Leaf  # int32; 0 is off
    stop_SV: Leaf  # int16, see stopping.stop_table


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Prompts:
    """One batch of questions, ready to sample."""

    tokens_QC: Leaf  # int32, padded on the right
    length_Q: Leaf  # int32, at least 1
    slot_Q: Leaf  # int32, the question's place in the whole batch: keys its noise
    noise: Leaf  # uint32 [3]: seed, stream (training, evaluation, ...), draw counter
    wanted: Leaf  # bool; false: no sampling at all, for a call that only learns
    sampling: Sampling


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Rollouts:
    """N responses a question, and the prompts they answer."""

    prompt_QC: Leaf  # int32
    prompt_length_Q: Leaf  # int32
    tokens_QNT: Leaf  # int32, 0 after the end
    length_QN: Leaf  # int32, the token that ended the response included
    ended_QN: Leaf  # bool; false: cut at T tokens
    logp_QNT: Leaf  # float32 behaviour log-probs at the temperature, before truncation; 0 after the end
    temperature_N: Leaf  # float32
    confidence: Leaf = None  # a Confidence where the rewards ask for it


def empty_rollouts(*, Q: int, N: int, C: int, T: int, confidence: bool) -> Rollouts:
    """Rollouts of the right shapes with nothing in them, for the first step."""
    return Rollouts(
        prompt_QC=jnp.zeros((Q, C), jnp.int32),
        prompt_length_Q=jnp.ones(Q, jnp.int32),
        tokens_QNT=jnp.zeros((Q, N, T), jnp.int32),
        length_QN=jnp.ones((Q, N), jnp.int32),
        ended_QN=jnp.zeros((Q, N), bool),
        logp_QNT=jnp.zeros((Q, N, T), jnp.float32),
        temperature_N=jnp.ones(N, jnp.float32),
        confidence=no_confidence(Q, N) if confidence else None,
    )


def token_noise(noise: jax.Array, slot_Q: jax.Array, sample_QW: jax.Array, position_QW: jax.Array) -> jax.Array:
    """One uniform number in [0, 1) a row, uniform_QW: for a position of the response that is the row's sample."""
    seed, stream, counter = noise
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), counter)

    def one(slot, sample, position):
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, slot), sample), position))

    return jax.vmap(jax.vmap(one, (None, 0, 0)))(slot_Q, sample_QW, position_QW)


def rows_per_question(config: Rollout, mesh: Mesh, *, Q: int, N: int) -> int:
    """W, the rows that take turns at a question's N samples: as `rollout.rows` has it, or the fewest that keep the devices busy.

    Fewer rows hold fewer caches and wait less for the longest responses. But every decode step reads all weights, so there must
    be enough rows to make their multiplications, not this reading, what takes the time. All rows have equally many samples,
    so that none is idle when lengths are equal. Responses too short to differ much in length are sampled all at once.
    """
    if config.rows is not None:
        return min(config.rows // config.questions, N)
    if config.max_tokens <= SHORT:
        return N
    devices = list(mesh.devices.flat)
    splits = len(devices) // mesh.shape["tensor"]  # the devices of one tensor group work on the same rows
    least = splits * (BUSY_CPU if devices[0].platform == "cpu" else BUSY_ACCELERATOR)
    return next(W for W in range(1, N + 1) if N % W == 0 and (Q * W >= least or W == N))


def sample(
    graph: nnx.GraphDef, params: dict[str, jax.Array], prompts: Prompts, *, N: int, T: int, W: int, confidence: bool = False
) -> Rollouts:
    """Samples N responses of at most T tokens to each prompt, W <= N of a question's at a time.

    With `confidence` each token's distribution is measured as well, which is one more pass over the logits.
    """
    Q, C = prompts.tokens_QC.shape

    def go(params):
        return _sample(graph, params, prompts, N=N, T=T, W=W, confidence=confidence)

    return jax.lax.cond(prompts.wanted, go, lambda _: empty_rollouts(Q=Q, N=N, C=C, T=T, confidence=confidence), params)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lanes:
    """What the rows are doing. Every question is a lane of W rows, which share its N samples among them.

    A row whose sample has ended takes the lane's next one at once: the prompt's keys and values and its last hidden state
    are there, so the first token costs no prefill, and no row waits while its lane has samples left.
    """

    sample_QW: jax.Array  # the sample that the row works on; N: none is left, the row is idle
    age_QW: jax.Array  # tokens drawn for it so far
    token_QW: jax.Array  # the newest of them
    state_QW: jax.Array  # where it stands in the stop table
    next_Q: jax.Array  # the first sample that no row has taken
    tokens_QNT: jax.Array
    logp_QNT: jax.Array
    length_QN: jax.Array
    ended_QN: jax.Array
    confidence: Confidence | None  # sums over the tokens drawn


def _sample(graph, params, prompts, *, N, T, W, confidence):
    policy: Policy = ready(graph, params)
    Q = prompts.tokens_QC.shape[0]
    first_QD, prompt_cache = policy.prefill(prompts.tokens_QC, prompts.length_Q)
    lanes = _empty_lanes(policy, Q=Q, N=N, T=T, W=W, confidence=confidence)
    # One row a question is enough for the first tokens: its samples all start from the same logits.
    lanes = _draw(policy, prompts, lanes, first_QD[:, None])

    def busy(lanes):
        return (lanes.sample_QW < N).any()

    def one_more(carry):
        t, lanes, cache = carry
        hidden_QWD, cache = policy.decode(lanes.token_QW, lanes.age_QW, t, cache, prompt_cache, prompts.length_Q)
        hidden_QWD = jnp.where((lanes.age_QW == 0)[..., None], first_QD[:, None], hidden_QWD)
        return t + 1, _draw(policy, prompts, lanes, hidden_QWD), cache

    def go_on(t, lanes, cache, sizes):
        """With caches of sizes[0] slots until a row needs more; larger ones are made only if there is such a row."""

        def fits(carry):
            _, lanes, _ = carry
            oldest = jnp.where(lanes.sample_QW < N, lanes.age_QW, 0).max()
            return busy(lanes) & (oldest <= sizes[0])

        t, lanes, cache = jax.lax.while_loop(fits, one_more, (t, lanes, cache))
        if len(sizes) == 1:
            return lanes
        return jax.lax.cond(
            busy(lanes),
            lambda t, lanes, cache: go_on(t, lanes, _grown(cache, t, sizes[1]), sizes[1:]),
            lambda t, lanes, cache: lanes,
            t,
            lanes,
            cache,
        )

    sizes = segments(T)
    lanes = go_on(jnp.int32(0), lanes, policy.empty_cache(Q, W, sizes[0]), sizes)
    mean = jax.tree.map(lambda sum_QN: sum_QN / jnp.maximum(lanes.length_QN, 1), lanes.confidence)
    return Rollouts(
        prompt_QC=prompts.tokens_QC,
        prompt_length_Q=prompts.length_Q,
        tokens_QNT=lanes.tokens_QNT,
        length_QN=lanes.length_QN,
        ended_QN=lanes.ended_QN,
        logp_QNT=lanes.logp_QNT,
        temperature_N=prompts.sampling.temperature_N,
        confidence=mean,
    )


def segments(T: int) -> list[int]:
    """The sizes that the rows' caches grow through, so that short responses do not pay for long ones; the last has T - 1."""
    whole = -(-max(T - 1, 1) // SLOTS) * SLOTS
    return sorted({min(max(SMALLEST_CACHE, -(-T // part // SLOTS) * SLOTS), whole) for part in (8, 4, 2, 1)})


def _empty_lanes(policy: Policy, *, Q: int, N: int, T: int, W: int, confidence: bool) -> Lanes:
    zeros_QW = jnp.zeros((Q, W), jnp.int32)
    lanes = Lanes(
        sample_QW=jnp.broadcast_to(jnp.arange(W), (Q, W)),
        age_QW=zeros_QW,
        token_QW=zeros_QW,
        state_QW=zeros_QW,
        next_Q=jnp.full(Q, W, jnp.int32),
        tokens_QNT=jnp.zeros((Q, N, T), jnp.int32),
        logp_QNT=jnp.zeros((Q, N, T), jnp.float32),
        length_QN=jnp.zeros((Q, N), jnp.int32),
        ended_QN=jnp.zeros((Q, N), bool),
        confidence=no_confidence(Q, N) if confidence else None,
    )
    return jax.tree.map(lambda x: constrain(x, policy.mesh, "rows"), lanes)


def _draw(policy: Policy, prompts: Prompts, lanes: Lanes, hidden_QWD: jax.Array) -> Lanes:
    """Draws the next token of every row (hidden states [Q, W or 1, D]), and gives rows that finished their next sample."""
    settings, (Q, N, T), W = prompts.sampling, lanes.tokens_QNT.shape, lanes.age_QW.shape[1]
    sample_QW, age_QW, busy_QW = lanes.sample_QW, lanes.age_QW, lanes.sample_QW < N
    logits_QWV = policy.logits(hidden_QWD)
    V = logits_QWV.shape[-1]
    temperature_QW = settings.temperature_N[jnp.minimum(sample_QW, N - 1)]
    token_X, logp_X = draw(
        jnp.broadcast_to(logits_QWV, (Q, W, V)).reshape(Q * W, V),
        token_noise(prompts.noise, prompts.slot_Q, sample_QW, age_QW).reshape(Q * W),
        temperature_X=temperature_QW.reshape(Q * W),
        top_p=settings.top_p,
        top_k=settings.top_k,
    )
    token_QW = token_X.reshape(Q, W)
    state_QW = settings.stop_SV[lanes.state_QW, token_QW].astype(jnp.int32)
    ended_QW = busy_QW & (state_QW == STOPPED)
    done_QW = ended_QW | (busy_QW & (age_QW + 1 == T))
    new_QW = jnp.minimum(lanes.next_Q[:, None] + jnp.cumsum(done_QW, 1) - 1, N)
    # idle rows write to sample N, which is outside and dropped
    put = jax.vmap(lambda x_NT, sample_W, age_W, value_W: x_NT.at[sample_W, age_W].set(value_W, mode="drop"))
    note = jax.vmap(lambda x_N, sample_W, value_W: x_N.at[sample_W].set(value_W, mode="drop"))
    confidence = lanes.confidence
    if confidence is not None:
        entropy_QW, certainty_QW = token_confidence(logits_QWV, temperature_QW[:, : logits_QWV.shape[1]])
        drawn = Confidence(logp_X.reshape(Q, W), *(jnp.broadcast_to(x, (Q, W)) for x in (entropy_QW, certainty_QW)))
        add = jax.vmap(lambda x_N, sample_W, value_W: x_N.at[sample_W].add(value_W, mode="drop"))
        confidence = jax.tree.map(lambda sum_QN, x_QW: add(sum_QN, sample_QW, x_QW), confidence, drawn)
    return Lanes(
        sample_QW=jnp.where(done_QW, new_QW, sample_QW),
        age_QW=jnp.where(done_QW, 0, age_QW + busy_QW),
        token_QW=jnp.where(done_QW, 0, token_QW),
        state_QW=jnp.where(done_QW, 0, jnp.where(busy_QW, state_QW, 0)),
        next_Q=jnp.minimum(lanes.next_Q + done_QW.sum(1), N),
        tokens_QNT=put(lanes.tokens_QNT, sample_QW, age_QW, token_QW),
        logp_QNT=put(lanes.logp_QNT, sample_QW, age_QW, logp_X.reshape(Q, W)),
        length_QN=note(lanes.length_QN, sample_QW, age_QW + 1),
        ended_QN=note(lanes.ended_QN, sample_QW, ended_QW),
        confidence=confidence,
    )


def _grown(cache: Cache, t: jax.Array, S: int) -> Cache:
    """The caches with S slots instead of fewer. Slot s holds the newest time that is s modulo S; so each finds its new place."""
    time_S = t - 1 - (t - 1 - jnp.arange(S)) % S
    old_S = time_S % cache.k.shape[5]  # what is too old to be there, a row's mask hides
    return Cache(jnp.take(cache.k, old_S, axis=5), jnp.take(cache.v, old_S, axis=4))
