"""Takes numbers of questions, samples and rows, gives how many decode steps rows need whose lanes move on, and whose lanes stay.

python benchmarks/lanes.py [--questions 64] [--samples 16] [--mean 100] [--tail 10] [--rows 64,256] [--repetitions 5]

No model takes part: jaxselftrain's own rules for rows and lanes play with given lengths. These follow a log-normal law
(standard deviation 1), cut at tail x mean tokens, of which a question's samples share a part: at 0 a question says nothing of the
length of its responses, at 0.9 nearly all. Figures are steps relative to all tokens / rows, which no schedule can beat; medians.
"""

import argparse
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table
from tables import told
from turns import at_least_one

from jaxselftrain.errors import UserError
from jaxselftrain.lanes import first_lanes, move, take

SHARED = (0.0, 0.3, 0.6, 0.9)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in {"questions": 64, "samples": 16, "mean": 100, "tail": 10, "repetitions": 5}.items():
        parser.add_argument(f"--{name}", type=at_least_one, default=default)
    parser.add_argument("--rows", default="64,256", help="numbers of rows, each a multiple of the questions")
    given = parser.parse_args()
    if wrong := [rows for rows in given.rows.split(",") if not rows.isdecimal() or not int(rows) or int(rows) % given.questions]:
        raise UserError(f"--rows {wrong[0]} must be a multiple of the {given.questions} questions, such as {2 * given.questions}")
    table = Table(title=f"decode steps, {given.questions} x {given.samples} responses; 1 is never idle")
    for name in ("rows", "shared part of lengths", "longest response alone", "lanes stay", "lanes move on", "ratio"):
        table.add_column(name, justify="right")
    for rows in (int(part) for part in given.rows.split(",")):
        for shared in SHARED:
            found = np.median([measure(given, rows, shared, seed) for seed in range(given.repetitions)], 0)
            table.add_row(str(rows), f"{shared:.1f}", *(f"{x:.2f}" for x in found), f"{found[1] / found[2]:.2f}")
    Console().print(table)


def measure(given: argparse.Namespace, rows: int, shared: float, seed: int) -> tuple[float, float, float]:
    """(longest response, steps where lanes stay, steps where they move on), all relative to tokens / rows."""
    rng = np.random.default_rng(seed)
    common = rng.normal(size=(given.questions, 1)) * shared**0.5
    length = np.exp(common + rng.normal(size=(given.questions, given.samples)) * (1 - shared) ** 0.5)
    length_QN = np.clip(length / length.mean() * given.mean, 1, given.tail * given.mean).astype(np.int32)
    ideal = length_QN.sum() / rows
    stay, go = (steps(length_QN, W=rows // given.questions, moving=moving) for moving in (False, True))
    return length_QN.max() / ideal, stay / ideal, go / ideal


@partial(jax.jit, static_argnames=("W", "moving"))
def steps(length_QN: jax.Array, *, W: int, moving: bool) -> jax.Array:
    """Decode steps until all samples have their lengths."""
    Q, N = length_QN.shape

    def busy(carry):
        return (carry[1].sample_QW < N).any()

    def one_more(carry):
        t, lanes, age_QW = carry
        if moving:
            lanes, _ = move(lanes, N=N, shards=1)
        busy_QW = lanes.sample_QW < N
        length_QW = length_QN[lanes.question_Q[:, None], jnp.minimum(lanes.sample_QW, N - 1)]
        going_QW = busy_QW & (age_QW + 1 < length_QW)
        return t + 1, take(lanes, ~going_QW, N=N, shards=1), jnp.where(going_QW, age_QW + 1, 0)

    return jax.lax.while_loop(
        busy, one_more, (0, first_lanes(jnp.ones(Q, bool), N=N, W=W, shards=1), jnp.zeros((Q, W), jnp.int32))
    )[0]


if __name__ == "__main__":
    told(main)
