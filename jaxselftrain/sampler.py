"""Takes parameters and prompts, gives rollouts: N responses to each question, with their behaviour log-probs.

The prompt is prefilled once per question and its keys and values are shared by the question's samples. The loop has
static shapes and stops as soon as every response has ended. A question has W rows to sample its N responses with: a row
whose response has ended takes another one at once (lanes.py). The noise of a token depends on (seed, stream, draw,
question slot, sample, position) and on nothing else: not on the batch, its width or the mesh.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from jaxselftrain.confidence import Confidence, no_confidence, token_confidence
from jaxselftrain.draw import draw
from jaxselftrain.lanes import Lanes, first_lanes, may_move, move, on_each_device, take
from jaxselftrain.model.policy import Cache, Policy, ready_to_sample
from jaxselftrain.rollouts import Prompts, Rollouts, empty_rollouts
from jaxselftrain.sections import Rollout
from jaxselftrain.sharding import constrain, shards
from jaxselftrain.stopping import STOPPED

SMALLEST_CACHE = 32  # slots of a row's cache: fewer save nothing
SLOTS = 8  # a row's cache has a multiple of this: odd sizes leave vector lanes idle

BUSY_CPU = 64  # rows from which on a CPU's matrix products nearly hide the reading of the weights
BUSY_ACCELERATOR = 256  # about where the multiplications of a row for each weight take as long as reading it, on a GPU or TPU

SHORT = 32  # tokens of responses that need not take turns


def token_noise(noise: jax.Array, slot_Q: jax.Array, sample_QW: jax.Array, position_QW: jax.Array) -> jax.Array:
    """One uniform number in [0, 1) a row, uniform_QW: for a position of the response that is the row's sample."""
    seed, stream, counter = noise
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(seed), stream), counter)

    def one(slot, sample, position):
        return jax.random.uniform(jax.random.fold_in(jax.random.fold_in(jax.random.fold_in(key, slot), sample), position))

    return jax.vmap(jax.vmap(one, (None, 0, 0)))(slot_Q, sample_QW, position_QW)


def rows_per_question(config: Rollout, mesh: Mesh, *, Q: int, N: int, parts: int = 1) -> int:
    """W, the rows that take turns at a question's N samples: as `rollout.rows` has it, or the fewest that keep the devices busy.

    Where a question's samples are split into parts, W is of each part, a divisor of N / parts.

    Fewer rows hold fewer caches and wait less for the longest responses. But every decode step reads all weights, so there must
    be enough rows to make their multiplications, not this reading, what takes the time. All rows have equally many samples,
    so that none is idle when lengths are equal: where N is a prime number there are no turns. All at once are sampled: twice as
    many rows as must be and fewer, where turns would cost more when lengths are equal than they win when they differ; and
    responses too short to differ much.
    """
    Q, N = Q * parts, N // parts
    if config.rows is not None:
        return min(max(config.rows // (config.questions * parts), 1), N)
    if config.max_tokens <= SHORT:
        return N
    devices = list(mesh.devices.flat)
    splits = len(devices) // mesh.shape["tensor"]  # the devices of one tensor group work on the same rows
    least = splits * (BUSY_CPU if devices[0].platform == "cpu" else BUSY_ACCELERATOR)
    if Q * N <= 2 * least:
        return N
    return next(W for W in range(1, N + 1) if N % W == 0 and Q * W >= least)


def sample(
    graph: nnx.GraphDef,
    params: dict[str, jax.Array],
    prompts: Prompts,
    *,
    N: int,
    T: int,
    W: int,
    parts: int = 1,
    confidence: bool = False,
) -> Rollouts:
    """Samples N responses of at most T tokens to each prompt that is wanted; the others have none.

    A question's samples are split into parts, one for each device of the mesh's axis `samples` or 1, each of which computes
    the prompt and samples W <= N / parts at a time. With `confidence` each token's distribution is measured as well, which is
    one more pass over the logits.
    """
    Q, C = prompts.tokens_QC.shape

    def go(params):
        return _sample(graph, params, prompts, N=N, T=T, W=W, parts=parts, confidence=confidence)

    return jax.lax.cond(prompts.wanted_Q.any(), go, lambda _: empty_rollouts(Q=Q, N=N, C=C, T=T, confidence=confidence), params)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Asked:
    """What a lane's rows read of the question that the lane works on."""

    slot_Q: jax.Array
    start_Q: jax.Array  # the number, among all of the question's, of the first sample of the lane's part
    length_Q: jax.Array
    first_QD: jax.Array  # the prompt's last hidden state, from which first tokens are drawn without a prefill
    cache: Cache

    def of_lanes(self, source_Q: jax.Array, devices: int) -> Asked:
        """The same, after each lane has copied what the lane source_Q of its device reads."""

        def copy(x, axis=0):
            x = on_each_device(lambda x, source_Q: x[source_Q], devices, x.swapaxes(0, axis), source_Q)
            return x.swapaxes(0, axis)

        return Asked(
            slot_Q=copy(self.slot_Q),
            start_Q=copy(self.start_Q),
            length_Q=copy(self.length_Q),
            first_QD=copy(self.first_QD),
            cache=Cache(copy(self.cache.k, 1), copy(self.cache.v, 1)),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Drawn:
    """The responses so far, as in Rollouts."""

    tokens_QNT: jax.Array
    logp_QNT: jax.Array
    length_QN: jax.Array
    ended_QN: jax.Array
    confidence: Confidence | None  # sums over the tokens

    def with_tokens(self, question_Q, sample_QW, age_QW, token_QW, logp_QW, ended_QW, confidence) -> Drawn:
        """One more token of every row. Idle rows write to sample N, which is outside and dropped."""
        at = question_Q[:, None], sample_QW
        return Drawn(
            tokens_QNT=self.tokens_QNT.at[*at, age_QW].set(token_QW, mode="drop"),
            logp_QNT=self.logp_QNT.at[*at, age_QW].set(logp_QW, mode="drop"),
            length_QN=self.length_QN.at[at].set(age_QW + 1, mode="drop"),
            ended_QN=self.ended_QN.at[at].set(ended_QW, mode="drop"),
            confidence=jax.tree.map(lambda sum_QN, x_QW: sum_QN.at[at].add(x_QW, mode="drop"), self.confidence, confidence),
        )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Work:
    """Everything that changes from token to token, but for the rows' own caches."""

    lanes: Lanes
    asked: Asked
    drawn: Drawn
    age_QW: jax.Array  # tokens of the row's sample drawn so far
    token_QW: jax.Array  # the newest of them
    state_QW: jax.Array  # where it stands in the stop table


def _sample(graph, params, prompts, *, N, T, W, parts, confidence):
    """In here a part of a question is a question of its own: Q counts them all, N the samples of each."""
    policy: Policy = ready_to_sample(graph, params)
    questions, Q, N = len(prompts.slot_Q), len(prompts.slot_Q) * parts, N // parts
    devices = shards(policy.mesh, "rows")
    start_Q = jnp.tile(jnp.arange(parts) * N, questions)
    per_question = prompts.tokens_QC, prompts.length_Q, prompts.slot_Q, prompts.wanted_Q
    per_part = *(jnp.repeat(x, parts, 0) for x in per_question), start_Q
    tokens_QC, length_Q, slot_Q, wanted_Q, start_Q = (constrain(x, policy.mesh, "rows") for x in per_part)
    with jax.named_scope("prefill"):
        first_QD, prompt_cache = policy.prefill(tokens_QC, length_Q)
    asked = Asked(slot_Q, start_Q, length_Q, first_QD, prompt_cache)
    work = _first_work(policy, asked, wanted_Q, N=N, T=T, W=W, confidence=confidence)
    # One row a question is enough for the first tokens: its samples all start from the same logits.
    work = _draw(policy, prompts, work, first_QD[:, None])

    def busy(work):
        return (work.lanes.sample_QW < N).any()

    def oldest(work):
        return jnp.where(work.lanes.sample_QW < N, work.age_QW, 0).max()

    def one_more(carry):
        t, work, cache = carry
        hidden_QWD, cache = policy.decode(work.token_QW, work.age_QW, t, cache, work.asked.cache, work.asked.length_Q)
        hidden_QWD = jnp.where((work.age_QW == 0)[..., None], work.asked.first_QD[:, None], hidden_QWD)
        return t + 1, _draw(policy, prompts, work, hidden_QWD), cache

    def move_on(carry):
        t, work, cache = carry
        lanes, source_Q = move(work.lanes, N=N, shards=devices)
        return t, replace(work, lanes=lanes, asked=work.asked.of_lanes(source_Q, devices)), cache

    def fits(carry):
        _, work, cache = carry
        return busy(work) & (oldest(work) <= cache.k.shape[5])

    def until_a_lane_moves(carry):  # moving copies all prompts' keys and values, so it stands outside the loop over tokens
        def settled(carry):
            return fits(carry) & ~may_move(carry[1].lanes, N=N, shards=devices)

        return move_on(jax.lax.while_loop(settled, one_more, carry))

    smallest, *larger = segments(T)
    loop = partial(jax.lax.while_loop, fits, until_a_lane_moves if W < N and Q > devices else one_more)
    t, work, cache = loop((jnp.int32(0), work, policy.empty_cache(Q, W, smallest)))
    for S in larger:  # not under a condition, whose operands and results would stay side by side: caches of all sizes at once
        t, work, cache = loop(_with_room(t, work, cache, S))
    drawn = jax.tree.map(lambda x: x.reshape(questions, N * parts, *x.shape[2:]), work.drawn)
    return Rollouts(
        prompt_QC=prompts.tokens_QC,
        prompt_length_Q=prompts.length_Q,
        tokens_QNT=drawn.tokens_QNT,
        length_QN=drawn.length_QN,
        ended_QN=drawn.ended_QN,
        logp_QNT=drawn.logp_QNT,
        temperature_N=prompts.sampling.temperature_N,
        confidence=jax.tree.map(lambda sum_QN: sum_QN / jnp.maximum(drawn.length_QN, 1), drawn.confidence),
    )


def segments(T: int) -> list[int]:
    """The sizes that the rows' caches grow through, so that short responses do not pay for long ones; the last has T - 1 or more.

    Each is at least twice the one before it, so that all but the last two together take no more than half of the last.
    """
    whole = -(-max(T - 1, 1) // SLOTS) * SLOTS
    smaller = (whole // part // SLOTS * SLOTS for part in (4, 2))
    return [*(S for S in smaller if S >= SMALLEST_CACHE), whole]


def _first_work(policy: Policy, asked: Asked, wanted_Q: jax.Array, *, N: int, T: int, W: int, confidence: bool) -> Work:
    Q = len(wanted_Q)
    zeros_QW = jnp.zeros((Q, W), jnp.int32)
    drawn = Drawn(
        tokens_QNT=jnp.zeros((Q, N, T), jnp.int32),
        logp_QNT=jnp.zeros((Q, N, T), jnp.float32),
        length_QN=jnp.zeros((Q, N), jnp.int32),
        ended_QN=jnp.zeros((Q, N), bool),
        confidence=no_confidence(Q, N) if confidence else None,
    )
    lanes = first_lanes(wanted_Q, N=N, W=W, shards=shards(policy.mesh, "rows"))
    lanes, drawn, zeros_QW = jax.tree.map(lambda x: constrain(x, policy.mesh, "rows"), (lanes, drawn, zeros_QW))
    return Work(lanes, asked, drawn, age_QW=zeros_QW, token_QW=zeros_QW, state_QW=zeros_QW)


def _draw(policy: Policy, prompts: Prompts, work: Work, hidden_QWD: jax.Array) -> Work:
    """Draws the next token of every row (hidden states [Q, W or 1, D]), and gives rows that finished their next sample."""
    settings, lanes, (Q, N, T) = prompts.sampling, work.lanes, work.drawn.tokens_QNT.shape
    sample_QW, age_QW, W, devices = lanes.sample_QW, work.age_QW, work.age_QW.shape[1], shards(policy.mesh, "rows")
    number_QW = work.asked.start_Q[:, None] + jnp.minimum(sample_QW, N - 1)
    logits_QWV = policy.logits(hidden_QWD)
    V = logits_QWV.shape[-1]
    temperature_QW = settings.temperature_N[number_QW]
    token_X, logp_X = draw(
        jnp.broadcast_to(logits_QWV, (Q, W, V)).reshape(Q * W, V),
        token_noise(prompts.noise, work.asked.slot_Q, number_QW, age_QW).reshape(Q * W),
        temperature_X=temperature_QW.reshape(Q * W),
        top_p=settings.top_p,
        top_k=settings.top_k,
    )
    token_QW, logp_QW = token_X.reshape(Q, W), logp_X.reshape(Q, W)
    confidence = None
    if work.drawn.confidence is not None:
        entropy_QW, certainty_QW = token_confidence(logits_QWV, temperature_QW[:, : logits_QWV.shape[1]])
        confidence = Confidence(logp_QW, *(jnp.broadcast_to(x, (Q, W)) for x in (entropy_QW, certainty_QW)))
    state_QW = settings.stop_SV[work.state_QW, token_QW].astype(jnp.int32)
    ended_QW = state_QW == STOPPED
    new = (lanes.question_Q, sample_QW, age_QW, token_QW, logp_QW, ended_QW, confidence)
    going_QW = (sample_QW < N) & ~ended_QW & (age_QW + 1 < T)
    return Work(
        lanes=take(lanes, ~going_QW, N=N, shards=devices),
        asked=work.asked,
        drawn=on_each_device(Drawn.with_tokens, devices, work.drawn, *new),
        age_QW=jnp.where(going_QW, age_QW + 1, 0),
        token_QW=jnp.where(going_QW, token_QW, 0),
        state_QW=jnp.where(going_QW, state_QW, 0),
    )


def _with_room(t: jax.Array, work: Work, cache: Cache, S: int) -> tuple[jax.Array, Work, Cache]:
    """The loop's carry with caches of S slots, at least twice as many.

    The ring is written twice in a row: from the slot of its oldest token on, one turn of it is in the order of time. There the
    new ring goes on, and nothing was moved by a number that only the device knows, which would take room of its own.
    """
    old = cache.k.shape[5]

    def larger(cache, axis):
        rest = (*cache.shape[:axis], S - 2 * old, *cache.shape[axis + 1 :])
        return jnp.concatenate([cache, cache, jnp.zeros(rest, cache.dtype)], axis)

    return old + t % old, work, Cache(larger(cache.k, 5), larger(cache.v, 4))
