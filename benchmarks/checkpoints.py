"""Takes a model's shape, gives what a checkpoint costs: seconds that the loop waits, seconds until it is on disk, bytes.

python benchmarks/checkpoints.py [--shape smollm2-135m] [--repetitions 3] [--folder FOLDER]

Weights are random and float32, moments too, as after a few updates. Work that stands for a step, products of matrices, is timed
alone and again while a save goes on in the background: that is the price of overlapping. Figures are medians.
"""

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from peers.worker import machine_seconds, own_seconds
from shapes import SHAPES
from tables import seconds, show, si, told
from turns import QUIET, at_least_one

from jaxselftrain import sections
from jaxselftrain.checkpoints import Checkpoints, Saved
from jaxselftrain.config import parse_config
from jaxselftrain.digests import digests
from jaxselftrain.model.architecture import Architecture
from jaxselftrain.rewards import Feedback
from jaxselftrain.rollouts import empty_rollouts
from jaxselftrain.sharding import make_mesh
from jaxselftrain.step import abstract_state, rollout_shardings, state_shardings

Q, N, C, T = 8, 16, 64, 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--repetitions", type=at_least_one, default=3)
    parser.add_argument("--folder", type=Path, help="where to write, on the disk to measure; a temporary folder there")
    given = parser.parse_args()
    architecture, mesh = SHAPES[given.shape], make_mesh(sections.Mesh())
    config = parse_config({"questions": {"source": "jsonl", "path": "unused"}})
    saved = made(config, architecture, mesh)
    work, size = products(), sum(x.nbytes for x in jax.tree.leaves((saved.state, saved.rollouts, saved.feedback)))
    work()
    digests(saved.state)  # compiles, where it does
    began, busy, own = time.perf_counter(), machine_seconds(), own_seconds(os.getpid())
    timed: dict[str, list[float]] = {name: [] for name in ("digests", "waits", "on disk", "alone", "beside", "restored")}
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        checkpoints = Checkpoints(Path(folder) / "checkpoints", sections.Checkpoint(keep=1))
        for step in range(1, given.repetitions + 1):
            timed["alone"].append(took(work))
            timed["digests"].append(took(lambda: digests(saved.state)))
            started = time.perf_counter()
            checkpoints.save(step, saved, metrics={})
            timed["waits"].append(time.perf_counter() - started)
            timed["beside"].append(took(work))
            checkpoints.wait()
            timed["on disk"].append(time.perf_counter() - started)
        on_disk = sum(
            path.stat().st_size for path in Path(checkpoints.folder / str(given.repetitions)).rglob("*") if path.is_file()
        )
        like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), (saved.state, saved.rollouts))
        timed["restored"].append(took(lambda: checkpoints.restore(given.repetitions, *like, saved.feedback).state))
        checkpoints.close()
    others = (machine_seconds() - busy - (own_seconds(os.getpid()) - own)) / (time.perf_counter() - began)
    told_as = {
        "the loop waits for a save": "waits",
        "of these, for the digests": "digests",
        "until it is on disk, from the start": "on disk",
        "restored and compared": "restored",
        "other work, alone": "alone",
        "the same beside a save": "beside",
    }
    rows = [[text, f"{seconds(statistics.median(timed[name]))} s"] for text, name in told_as.items()]
    rows += [["in memory", si(size, "B")], ["on disk", si(on_disk, "B")]]
    weights = sum(int(np.prod(shape)) for shape in architecture.shapes().values())
    title = f"a checkpoint of {si(weights, '')} parameters with both moments ({jax.devices()[0].device_kind})"
    loud = [f"Other processes used {others:.1f} cores meanwhile: do not trust these times."] if others > QUIET else []
    show(title, ["", "median"], rows, notes=loud)


def made(config, architecture: Architecture, mesh) -> Saved:
    """What a run of this model saves, every array random."""
    like, at = abstract_state(config, architecture), state_shardings(config, architecture, mesh)

    def drawn(key):
        leaves, tree = jax.tree.flatten(like)
        keys = jax.random.split(key, len(leaves))
        values = [
            jax.random.normal(k, x.shape, x.dtype) if jnp.issubdtype(x.dtype, jnp.floating) else jnp.ones(x.shape, x.dtype)
            for k, x in zip(keys, leaves, strict=True)
        ]
        return jax.tree.unflatten(tree, values)

    rollouts_at = rollout_shardings(mesh)
    rollouts = jax.jit(lambda: empty_rollouts(Q=Q, N=N, C=C, T=T, confidence=False), out_shardings=rollouts_at)()
    ones = np.ones((Q, N), np.float32)
    feedback = Feedback(ones, ones, np.ones(Q, np.float32), np.tile(np.arange(N, dtype=np.int32), (Q, 1)), np.asarray(True))
    state = jax.jit(drawn, out_shardings=at)(jax.random.key(0))
    return Saved(jax.block_until_ready(state), jax.block_until_ready(rollouts), feedback, {"step": 1})


def products():
    """A second or more of matrix products on one CPU core."""
    x = jax.random.normal(jax.random.key(1), (1024, 1024))

    @jax.jit
    def chain(x):
        return jax.lax.fori_loop(0, 60, lambda _, y: (y @ x) / 32, x)

    return lambda: chain(x)


def took(work) -> float:
    started = time.perf_counter()
    jax.block_until_ready(work())
    return time.perf_counter() - started


if __name__ == "__main__":
    told(main)
