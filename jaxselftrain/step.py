"""Takes the state, the rollouts just voted on, the votes' feedback and the next prompts; learns, then samples.

    step(state, rollouts, feedback, prompts) -> (state, new rollouts, metrics)

This is the one compiled program of training: sampling always uses the weights that the update has just made, nothing is
copied to a second engine, and the host dispatches once per step. `feedback.learn` false skips the update by lax.cond and
gives the state back unchanged. `prompts.wanted_Q` says which questions are sampled: none in the last step, some where fresh
questions take the place of others; the rest of the rollouts come back as they were. A second program only samples, for
evaluation. Both are jitted here and nowhere else.
"""

from __future__ import annotations

from dataclasses import replace

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh

from jaxselftrain.confidence import Confidence
from jaxselftrain.config import Config
from jaxselftrain.model.architecture import Architecture
from jaxselftrain.model.kernels import Kernel, check_kernel
from jaxselftrain.model.policy import Remat, abstract_policy
from jaxselftrain.optimizer import adamw, init_moments
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import Prompts, Rollouts, Sampling, Taught
from jaxselftrain.sampler import rows_per_question, sample
from jaxselftrain.sharding import named, param_shardings, shards
from jaxselftrain.update import State, learn

jax.tree_util.register_dataclass(
    Feedback, data_fields=["reward_QN", "weight_QN", "kl_weight_Q", "chosen_QM", "learn", "rate"], meta_fields=[]
)


TEACHER = 3  # the noise stream of a teacher's samples; assembly has the others


def step(
    graph: nnx.GraphDef,
    transform: optax.GradientTransformation,
    config: Config,
    state: State,
    rollouts: Rollouts,
    feedback: Feedback,
    prompts: Prompts,
    *,
    W: int,
    parts: int,
) -> tuple[State, Rollouts, dict[str, jax.Array]]:
    """Learn from the rollouts just voted on, then sample the next questions with the new weights.

    A question's samples are split into parts over devices; each has W rows.
    """

    def update(state):
        return learn(graph, transform, config, state, rollouts, feedback)

    def skip(state):
        shapes = jax.eval_shape(update, state)[1]
        return state, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)

    with jax.named_scope("update"):  # the names that profiles and `jaxselftrain plan` show
        state, metrics = jax.lax.cond(feedback.learn, update, skip, state)
    N, T = config.vote.samples, config.rollout.max_tokens
    new = sample(graph, state.params, prompts, N=N, T=T, W=W, parts=parts, confidence=config.measures_confidence)
    if state.teacher is not None:  # with other noise: equal weights should not give equal samples
        asked = replace(prompts, noise=prompts.noise.at[1].set(TEACHER))
        answers = sample(graph, state.teacher, asked, N=N, T=T, W=W, parts=parts)
        new = replace(new, taught=Taught(answers.tokens_QNT, answers.length_QN))
    return state, _in_place(new, rollouts, prompts.wanted_Q), metrics


def _in_place(new: Rollouts, old: Rollouts, wanted_Q: jax.Array) -> Rollouts:
    """The new rollouts of the questions that were wanted, the old ones of the others."""

    def choose(new, old):
        return jnp.where(wanted_Q.reshape(-1, *(1 for _ in new.shape[1:])), new, old)

    chosen = jax.tree.map(choose, replace(new, temperature_N=None), replace(old, temperature_N=None))
    return replace(chosen, temperature_N=new.temperature_N)


def compile_step(graph: nnx.GraphDef, config: Config, architecture: Architecture, mesh: Mesh) -> jax.stages.Wrapped:
    """The training program, `step` with its first three arguments filled in; state and rollouts are donated."""
    transform = make_transform(config)
    parts = shards(mesh, "samples")
    W = rows_per_question(config.rollout, mesh, Q=config.rollout.questions, N=config.vote.samples, parts=parts)

    def train_step(state, rollouts, feedback, prompts):
        return step(graph, transform, config, state, rollouts, feedback, prompts, W=W, parts=parts)

    state_at = state_shardings(config, architecture, mesh)
    rollouts_at = rollout_shardings(mesh, confidence=config.measures_confidence, taught=config.keeps_teacher)
    whole = named(mesh)
    return jax.jit(
        train_step,
        donate_argnums=(0, 1),
        in_shardings=(state_at, rollouts_at, feedback_shardings(mesh), prompt_shardings(mesh)),
        out_shardings=(state_at, rollouts_at, whole),
    )


def compile_sample(graph: nnx.GraphDef, architecture: Architecture, mesh: Mesh, *, N: int, T: int, W: int) -> jax.stages.Wrapped:
    """The sampling program of evaluation: N samples a question, W of them at a time."""

    def sample_only(params, prompts):
        return sample(graph, params, prompts, N=N, T=T, W=W)

    return jax.jit(
        sample_only,
        in_shardings=(param_shardings(mesh, architecture), prompt_shardings(mesh)),
        out_shardings=rollout_shardings(mesh, split_samples=False),
    )


def policy_graph(config: Config, architecture: Architecture, mesh: Mesh) -> nnx.GraphDef:
    """The policy as a config has it computed. Raises UserError where its kernel does not run on these devices."""
    model = config.model
    remat: Remat = "layers" if model.remat == "auto" else model.remat  # only updates know it: sampling may leave it at auto
    kernel: Kernel | None = None if model.attention == "plain" else model.attention
    if kernel is not None:
        check_kernel(kernel, model.compute_dtype, architecture.K, mesh.devices.flat[0].platform)
    return abstract_policy(
        architecture,
        compute_dtype=model.compute_dtype,
        remat=remat,
        mesh=mesh,
        kernel=kernel,
        gather=config.rollout.gather_weights,
    )


def make_transform(config: Config) -> optax.GradientTransformation:
    """The optimizer of a run, with its schedule over all of the run's optimizer steps."""
    return adamw(config.optimizer, steps=config.optimizer_steps)


def abstract_state(config: Config, architecture: Architecture) -> State:
    """Shapes and dtypes of the state, without memory."""

    def make():
        params = {name: jnp.zeros(shape, config.model.weights_dtype) for name, shape in architecture.shapes().items()}
        return new_state(config, params, params if config.keeps_reference else None)

    return jax.eval_shape(make)


def new_state(config: Config, params: dict[str, jax.Array], reference: dict[str, jax.Array] | None) -> State:
    """The state before the first update; `reference` must be another copy of the arrays, since the state is donated."""
    moments = init_moments(make_transform(config), params, dtype=config.optimizer.state_dtype)
    teacher = new_teacher(params) if config.keeps_teacher else None
    return State(params, moments, jnp.zeros((), jnp.int32), jnp.asarray(config.train.seed, jnp.uint32), reference, teacher)


def new_teacher(params: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The policy itself, in float32: steps of a hundredth would be lost in bfloat16."""
    return {name: x.astype(jnp.float32) for name, x in params.items()}


def state_shardings(config: Config, architecture: Architecture, mesh: Mesh) -> State:
    """Where every leaf of the state lies: moments as their parameters, counters everywhere."""
    at = param_shardings(mesh, architecture)

    def place(path, _):
        names = [key.key for key in path if isinstance(key, jax.tree_util.DictKey)]
        return at[names[-1]] if names else named(mesh)

    return jax.tree_util.tree_map_with_path(place, abstract_state(config, architecture))


def rollout_shardings(mesh: Mesh, *, confidence: bool = False, taught: bool = False, split_samples: bool = True) -> Rollouts:
    """Where rollouts lie: samples split as well, as in training, or whole questions on every device, as in evaluation."""
    by_question, by_sample = named(mesh, "questions"), named(mesh, "questions", "samples")
    if not split_samples:
        by_question = by_sample = named(mesh, "rows")
    return Rollouts(
        prompt_QC=by_question,
        prompt_length_Q=by_question,
        tokens_QNT=by_sample,
        length_QN=by_sample,
        ended_QN=by_sample,
        logp_QNT=by_sample,
        temperature_N=named(mesh),
        confidence=Confidence(by_sample, by_sample, by_sample) if confidence else None,
        taught=Taught(by_sample, by_sample) if taught else None,
    )


def prompt_shardings(mesh: Mesh) -> Prompts:
    by_question, whole = named(mesh, "questions"), named(mesh)
    return Prompts(
        tokens_QC=by_question,
        length_Q=by_question,
        slot_Q=by_question,
        noise=whole,
        wanted_Q=by_question,
        sampling=Sampling(whole, whole, whole, whole),
    )


def feedback_shardings(mesh: Mesh) -> Feedback:
    by_question, whole = named(mesh, "questions"), named(mesh)
    return Feedback(by_question, by_question, by_question, by_question, learn=whole, rate=whole)
