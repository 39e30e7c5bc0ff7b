"""Takes numbers of rows, gives tokens per second of sampling with rows that take turns and without, and whether tokens differ.

python benchmarks/refill.py [--questions 8] [--samples 32] [--mean 16] [--tail 10] [--rows 64,128] [--model PATH]

Weights are random, of SmolLM2's shape, and nearly all tokens equally likely, so that a share 1 / mean of the vocabulary, made end
tokens, gives lengths by a geometric law; they are cut at tail x mean tokens. --tail 1 makes all lengths equal: no token ends a
response. With --model a real model's weights take their place, and lengths follow no law. All settings of --rows draw the same
responses, in turns within one process; figures are medians.
"""

import argparse
import statistics
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from shapes import SHAPES
from tables import told
from turns import at_least_one
from workloads import questions

from jaxselftrain.errors import UserError
from jaxselftrain.huge_pages import restart_with_huge_pages
from jaxselftrain.model.loading import load_params, open_weights
from jaxselftrain.model.paths import local_model
from jaxselftrain.model.policy import abstract_policy
from jaxselftrain.model.tokenizer import load_tokenizer
from jaxselftrain.rollouts import Prompts, Sampling
from jaxselftrain.sampler import sample
from jaxselftrain.sections import Mesh
from jaxselftrain.sharding import make_mesh, param_shardings
from jaxselftrain.stopping import stop_table

SMOLLM2 = SHAPES["smollm2-135m"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"questions": 8, "samples": 32, "prompt": 48, "mean": 16, "tail": 10, "repetitions": 3}.items():
        parser.add_argument(f"--{name}", type=at_least_one, default=default)
    parser.add_argument("--model", help="take this model's weights, and questions of words; random ones when it is not given")
    parser.add_argument("--rows", default="32,64,128", help="numbers of rows to compare with all questions x samples")
    given = parser.parse_args()
    Q, N = given.questions, given.samples
    rows = [Q * N, *(int(part) for part in given.rows.split(","))]
    if wrong := [count for count in rows if not 0 < count <= Q * N or count % Q or N % (count // Q)]:
        raise UserError(f"--rows {wrong[0]} must be a multiple of {Q} questions that splits their {N} samples each evenly")
    if given.model is None:
        rng = np.random.default_rng(0)
        architecture, weights = SMOLLM2, random_weights()
        tokens = rng.integers(0, SMOLLM2.V, (Q, given.prompt))
    else:
        opened = open_weights(local_model(given.model, None))
        architecture = opened.architecture
        one = make_mesh(Mesh(data=1), jax.devices()[:1])
        weights = load_params(opened, shardings=param_shardings(one, architecture), dtype="float32")
        tokens = questions(load_tokenizer(given.model, revision=None), count=Q, C=given.prompt)[1]
    asked = prompts(given, tokens, V=architecture.V)
    graph = abstract_policy(architecture, compute_dtype="float32", remat="none")
    T = given.mean * given.tail
    programs = [jax.jit(partial(sample, graph, N=N, T=T, W=count // Q)) for count in rows]
    results = [jax.block_until_ready(program(weights, asked)) for program in programs]  # compiles and warms up
    seconds: list[list[float]] = [[] for _ in rows]
    for _ in range(given.repetitions):
        for program, taken in zip(programs, seconds, strict=True):
            started = time.perf_counter()
            jax.block_until_ready(program(weights, asked))
            taken.append(time.perf_counter() - started)
    show(given, rows, results, seconds)


def prompts(given: argparse.Namespace, tokens, *, V: int) -> Prompts:
    ends = [] if given.tail == 1 else np.random.default_rng(1).choice(V, V // given.mean, replace=False).tolist()
    Q = given.questions
    return Prompts(
        tokens_QC=jnp.asarray(tokens, jnp.int32),
        length_Q=jnp.full(Q, given.prompt, jnp.int32),
        slot_Q=jnp.arange(Q, dtype=jnp.int32),
        noise=jnp.zeros(3, jnp.uint32),
        wanted_Q=jnp.ones(Q, bool),
        sampling=Sampling(
            temperature_N=jnp.ones(given.samples),
            top_p=jnp.float32(1),
            top_k=jnp.int32(0),
            stop_SV=jnp.asarray(stop_table([], [b""] * V, ends)),
        ),
    )


def random_weights() -> dict[str, jax.Array]:
    rng = np.random.default_rng(0)
    return {
        name: jnp.ones(shape) if "norm" in name else jnp.asarray(rng.normal(size=shape) * 0.02, jnp.float32)
        for name, shape in SMOLLM2.shapes().items()
    }


def show(given: argparse.Namespace, rows: list[int], results: list, seconds: list[list[float]]) -> None:
    lengths = np.asarray(results[0].length_QN)
    spread = f"{lengths.min()} to {lengths.max()} tokens, {lengths.mean():.1f} on average"
    table = Table(title=f"{given.questions} x {given.samples} responses of {spread}", caption="the first line takes no turns")
    for name in ("rows", "seconds", "least to most", "tokens/s", "ratio", "responses that differ"):
        table.add_column(name, justify="right")
    medians = [statistics.median(taken) for taken in seconds]
    for count, found, taken, times in zip(rows, results, medians, seconds, strict=True):
        differ = (np.asarray(found.tokens_QNT) != np.asarray(results[0].tokens_QNT)).any(-1).mean()
        tokens = int(np.asarray(found.length_QN).sum())
        spread = f"{min(times):.2f} to {max(times):.2f}"
        table.add_row(str(count), f"{taken:.2f}", spread, f"{tokens / taken:.0f}", f"{medians[0] / taken:.2f}", f"{differ:.1%}")
    Console().print(table)


if __name__ == "__main__":
    restart_with_huge_pages()  # as the command jaxselftrain does
    told(main)
