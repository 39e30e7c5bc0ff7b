"""Takes a workload, gives what share of this machine's limits sampling and the update reach, idle time and memory.

python benchmarks/roofline.py [--workload W1 W2 W3] [--set FIELD=VALUE] [--random SHAPE] [--dtype bfloat16] [--counts]
python benchmarks/roofline.py --run FOLDER

The limits are measured first. Sampling and the update are timed apart, by calls of the one compiled training step that only
sample, or only learn; between them the host votes as in a run, and that is the device's idle time. --random takes random
weights of a model's shape, so that no model file is needed; --counts prints operations and bytes and measures nothing; --run
reads the idle share of a finished run from its metrics.
"""

import argparse
import statistics
import time
from pathlib import Path

import jax
import machine
import numpy as np
from ours import Run, initial_params, make_config, open_model
from shapes import SHAPES
from tables import show, si, told
from turns import MODEL, at_least_one
from workloads import WORKLOADS, Workload, questions, workload

from jaxselftrain.config import Config
from jaxselftrain.counts import Work, decode, layer_weights, memory, parameters, prefill, tokens, update
from jaxselftrain.huge_pages import restart_with_huge_pages
from jaxselftrain.metrics import read_metrics
from jaxselftrain.model.architecture import Architecture
from jaxselftrain.model.loading import open_weights
from jaxselftrain.model.paths import local_model
from jaxselftrain.resources import peak_memory_gib
from jaxselftrain.sampler import rows_per_question


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", type=workload, nargs="+", default=list(WORKLOADS.values()))
    parser.add_argument("--model", default=MODEL)
    parser.add_argument("--random", choices=sorted(SHAPES), metavar="SHAPE", help=f"random weights: {', '.join(SHAPES)}")
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16"], help="of compute and caches")
    parser.add_argument("--repetitions", type=at_least_one, default=3)
    parser.add_argument("--set", action="append", default=[], metavar="FIELD=VALUE", help="a setting; may be repeated")
    parser.add_argument("--counts", action="store_true", help="only count")
    parser.add_argument("--run", type=Path, metavar="FOLDER", help="only read a run's idle share")
    given = parser.parse_args()
    if given.run is not None:
        show_run(given.run)
        return
    if given.counts:
        architecture = SHAPES[given.random] if given.random else open_weights(local_model(given.model, None)).architecture
        show_counts(architecture, given)
        return
    limits = measured_limits(given.dtype)
    for found in given.workload:
        measure(given, found, limits)


def measured_limits(dtype: str) -> tuple[float, float]:
    side, megabytes = machine.sizes()
    rate, moved = machine.matmul_rate(dtype, side), machine.bandwidth(megabytes)
    rows = [[f"matrix product of {side} x {side}, {dtype}", si(rate, "FLOP/s")], ["memory", si(moved, "B/s")]]
    show(f"{jax.devices()[0].device_kind}: measured limits", ["limit", "rate"], rows)
    return rate, moved


def measure(given: argparse.Namespace, found: Workload, limits: tuple[float, float]) -> None:
    fastest = ["model.remat=auto", "update.micro_batches=auto"]  # as step.py measures it
    config = make_config(model=given.model, dtype=given.dtype, workload=found, settings=[*fastest, *given.set])
    parts = open_model(config, given.random)
    if given.random:
        rng = np.random.default_rng(0)
        prompts = rng.integers(0, parts.architecture.V, (2 * found.Q, found.C)).tolist()
    else:
        prompts = questions(parts.tokenizer, count=2 * found.Q, C=found.C)[1]
    run = Run(parts, initial_params(parts, given.random), prompts)
    config = run.config  # what it left to auto is decided
    try:
        started = time.perf_counter()
        compiled = run.program.lower(*run.inputs(learn=False, wanted=False)).compile()
        compile_seconds = time.perf_counter() - started
        analysis = compiled.memory_analysis()
        run.program = compiled  # the same program; jit would compile it once more
        run.call(learn=False, wanted=False)
        sampling, voting, learning = [], [], []
        for _ in range(given.repetitions + 1):
            sampling.append(run.call(learn=False, wanted=True))
            voting.append(run.vote())
            learning.append(run.call(learn=True, wanted=False))
    finally:
        run.voter.close()
    seconds = [statistics.median(taken[1:]) for taken in (sampling, voting, learning)]  # the first calls warm up
    W = rows_per_question(config.rollout, parts.mesh, Q=found.Q, N=found.N)
    show_shares(config, parts.architecture, found, limits, seconds, compile_seconds, W=W)
    show_memory(config, parts.architecture, found, analysis, W=W)


def counted(config: Config, a: Architecture, found: Workload, *, W: int) -> tuple[list[Work], Work]:
    """([prefill, decode], update)."""
    Q, N, C, T = found
    itemsize = {"float32": 4, "bfloat16": 2}[config.model.compute_dtype]
    phases = [prefill(a, Q=Q, C=C, itemsize=itemsize)]
    phases.append(decode(a, Q=Q, N=N, C=C, T=T, W=W, itemsize=itemsize))
    return phases, update(a, Q=Q, M=config.samples_trained, C=C, T=T, config=config)


def show_shares(config, a, found, limits, seconds, compile_seconds, *, W: int) -> None:
    rate, moved = limits
    sampled, voted, learned = seconds
    phases, learning = counted(config, a, found, W=W)
    sampling = phases[0] + phases[1]
    floors = {"sampling": sum(work.least_seconds(*limits) for work in phases), "update": learning.least_seconds(*limits)}
    rows = []
    for name, work, taken in (("sampling", sampling, sampled), ("update", learning, learned)):
        rows.append(
            [
                name,
                f"{taken:.3f}",
                si(work.operations, "FLOP"),
                f"{work.operations / rate / taken:.0%}",
                si(work.bytes, "B"),
                f"{work.bytes / moved / taken:.0%}",
                f"{floors[name]:.3f}",
                f"{floors[name] / taken:.0%}",
            ]
        )
    columns = ["phase", "seconds", "operations", "of matmul rate", "bytes", "of bandwidth", "least seconds", "of the limit"]
    idle = voted / (sampled + voted + learned)
    notes = [
        f"Sampling: {found.Q * found.N * found.T / sampled:,.0f} tokens/s. The step compiled in {compile_seconds:.1f} s.",
        f"The device waits {idle:.1%} of a step for votes and decoding: {voted:.3f} s beside {sampled + learned:.3f} s of work. "
        "What a run's log files cost as well, --run FOLDER tells.",
        "The update's share of the matmul rate is its model FLOP utilisation against the rate measured here; activations "
        "computed again are not counted.",
    ]
    sheet = machine.data_sheet(jax.devices()[0].device_kind)
    if sheet is not None and config.model.compute_dtype == "bfloat16":
        notes.append(
            f"Of the data sheet's {si(sheet[0], 'FLOP/s')} and {si(sheet[1], 'B/s')}: the update reaches "
            f"{learning.operations / sheet[0] / learned:.0%} of the operations, "
            f"sampling {sampling.bytes / sheet[1] / sampled:.0%} of the bandwidth."
        )
    show(f"{found}: {a.name}, {parameters(a) / 1e6:,.0f} M parameters, {config.model.compute_dtype}", columns, rows, notes=notes)


def show_memory(config: Config, a: Architecture, found: Workload, analysis, *, W: int) -> None:
    """What must be there beside what the compiler asks for, and the device's own peak where it tells."""
    Q, N, C, T = found
    need = memory(a, Q=Q, N=N, M=config.samples_trained, C=C, T=T, W=W, config=config)
    rows = [[f"{name} ({when})", si(size, "B")] for when, part in need.items() for name, size in part.items()]
    total = {when: sum(part.values()) for when, part in need.items()}
    least = total["always"] + max(total["sampling"], total["update"])
    rows.append(["must be there: always + the larger of sampling and update", si(least, "B")])
    if analysis is not None:
        asked = analysis.argument_size_in_bytes + analysis.output_size_in_bytes + analysis.temp_size_in_bytes
        asked -= analysis.alias_size_in_bytes
        rows.append([f"the compiled step's own account ({asked / least:.2f} x)", si(asked, "B")])
    rows += [[f"peak, {where}", si(size * 2**30, "B")] for where, size in peak_memory_gib().items()]
    show(f"{found}: memory", ["what", "size"], rows)


def show_counts(a: Architecture, given: argparse.Namespace) -> None:
    rows = []
    for found in given.workload:
        config = make_config(model=given.model, dtype=given.dtype, workload=found, settings=given.set)
        phases, learning = counted(config, a, found, W=found.N)  # W changes bytes, and these are operations
        shared, repeated = (tokens(Q=found.Q, N=found.N, C=found.C, T=found.T, shared=shared) for shared in (True, False))
        work = [si(phase.operations, "FLOP") for phase in (*phases, learning)]
        rows.append([str(found), f"{repeated:,}", f"{shared:,}", f"{repeated / shared:.1f}", *work])
    columns = ["workload", "tokens, prompts repeated", "shared", "ratio", "prefill", "decode", "update"]
    show(f"{a.name}, {layer_weights(a) / 1e6:.0f} M weights in layers, {a.V * a.D / 1e6:.0f} M in the output", columns, rows)


def show_run(folder: Path) -> None:
    """The device's idle share over all steps of a run but the first, whose time is compilation."""
    lines = [line for line in read_metrics(folder) if "device_seconds" in line][1:]
    if not lines:
        raise SystemExit(f"{folder} has no metrics of two steps or more")
    busy = sum(line["device_seconds"] for line in lines)
    idle = {name: sum(line.get(name, 0.0) for line in lines) for name in ("voter_seconds", "host_seconds")}
    wall = busy + sum(idle.values())
    rows = [["device_seconds", f"{busy:.3f}", f"{busy / wall:.1%}"]]
    rows += [[name, f"{taken:.3f}", f"{taken / wall:.1%}"] for name, taken in idle.items()]
    rows.append(["idle", f"{sum(idle.values()):.3f}", f"{sum(idle.values()) / wall:.1%}"])
    show(f"{folder}: {len(lines)} steps after the first", ["time", "seconds", "share"], rows)


if __name__ == "__main__":
    restart_with_huge_pages()  # as the command jaxselftrain does
    told(main)
