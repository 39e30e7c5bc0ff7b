"""Takes a config, gives the seconds that its training step takes to compile at several depths of its model.

python benchmarks/compile.py [CONFIG] [--layers 4,12,30]

Only shapes are needed, so nothing is trained and nothing is cached. The bar: under 60 s on two cores, whatever the depth.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
from tables import show, told

from jaxselftrain.assembly import TRAINING, open_parts
from jaxselftrain.config import Config, load_config, override_config
from jaxselftrain.model.architecture import Architecture
from jaxselftrain.model.policy import abstract_policy
from jaxselftrain.prompts import prompt_width
from jaxselftrain.questions import load_questions
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import empty_rollouts
from jaxselftrain.step import abstract_state, compile_step

BAR = 60.0
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", type=Path, nargs="?", default=QUICKSTART)
    parser.add_argument("--layers", default="4,12,30")
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a setting; may be repeated")
    given = parser.parse_args()
    jax.config.update("jax_enable_compilation_cache", False)  # the environment may name one
    depths = [int(part) for part in given.layers.split(",")]
    config = load_config(given.config, given.set)
    if not config.is_decided:  # what is fitted to a memory compiles no slower
        config = override_config(config, ["model.remat=layers", "update.micro_batches=1"])
    parts = open_parts(config, cache=None)
    training = parts.encode(load_questions(config.questions), config.questions.too_long)
    settings = config.rollout
    sampling = parts.sampling(
        temperatures=[settings.temperature] * config.vote.samples, top_p=settings.top_p, top_k=settings.top_k
    )
    Q, width = settings.questions, prompt_width(training.longest)
    asked = parts.prompts(training.tokens, range(Q), [True] * Q, width, stream=TRAINING, draw=0, sampling=sampling)
    compile_seconds(config, replace(parts.architecture, L=1), parts.mesh, asked)  # the compiler's own first time
    rows = []
    for L in depths:
        lowered, compiled = compile_seconds(config, replace(parts.architecture, L=L), parts.mesh, asked)
        rows.append([str(L), f"{lowered:.1f}", f"{compiled:.1f}", f"{lowered + compiled:.1f}", f"at most {BAR:.0f}"])
    columns = ["layers", "traced and lowered, s", "compiled, s", "together", "bar"]
    show(f"compiling the training step of {given.config.name} ({jax.default_backend()})", columns, rows)


def compile_seconds(config: Config, architecture: Architecture, mesh, asked) -> tuple[float, float]:
    """Seconds to lower and seconds to compile the step of a model of this architecture."""
    model = config.model
    graph = abstract_policy(architecture, compute_dtype=model.compute_dtype, remat=model.remat, mesh=mesh)
    Q, N, M = config.rollout.questions, config.vote.samples, config.samples_trained
    shapes = dict(Q=Q, N=N, C=asked.tokens_QC.shape[1], T=config.rollout.max_tokens, confidence=False)
    whole, per_question = jax.ShapeDtypeStruct((Q, N), jnp.float32), jax.ShapeDtypeStruct((Q,), jnp.float32)
    chosen, learn = jax.ShapeDtypeStruct((Q, M), jnp.int32), jax.ShapeDtypeStruct((), bool)
    inputs = (
        abstract_state(config, architecture),
        jax.eval_shape(lambda: empty_rollouts(**shapes)),
        Feedback(whole, whole, per_question, chosen, learn),
        asked,
    )
    started = time.perf_counter()
    lowered = compile_step(graph, config, architecture, mesh).lower(*inputs)
    traced = time.perf_counter()
    lowered.compile()
    return traced - started, time.perf_counter() - traced


if __name__ == "__main__":
    told(main)
