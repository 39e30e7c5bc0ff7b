"""Takes a workload, gives the peak memory of whole steps: ours, TRL's GRPOTrainer and Tunix's GRPOLearner, one after the other.

python benchmarks/memory.py [--workload W1 W2] [--trl PYTHON] [--tunix PYTHON] [--model FOLDER] [--set update.micro_batches=4]

Peak resident memory of a fresh process that loads, compiles and makes a few steps, and of its children; ratios are ours over
the peer's. TRL is measured without gradient checkpointing, as its speed is, and with it, as it comes.
"""

from dataclasses import replace

from step import RIVALS
from tables import number, show, told
from turns import OURS, Measured, job, options, ours, peers, remarks, take_turns
from workloads import WORKLOADS

BARS = {"TRL": 2 / 3, "TRL, checkpointing": 2 / 3, "Tunix": 1 / 2}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--micro", type=int, default=32, help="sequences in a forward and backward pass of TRL and Tunix")
    parser.set_defaults(repetitions=1)
    given = parser.parse_args()
    sides = ours(given)
    for side in peers(given, RIVALS):
        sides.append(side)
        if side.name == "TRL":  # its default, which is slower
            sides.append(replace(side, name="TRL, checkpointing", settings=("gradient_checkpointing",)))
    for workload in given.workload or (WORKLOADS["W1"], WORKLOADS["W2"]):
        steps = given.repetitions + 1
        asked = job(given, workload, what="step", steps=steps, micro=given.micro)
        found: dict[str, Measured] = {}
        for side in sides:  # one process at a time
            found |= take_turns([side], asked, repetitions=given.repetitions)
        rows = []
        for name, measured in found.items():
            bar = BARS.get(name) if workload in (WORKLOADS["W1"], WORKLOADS["W2"]) and given.dtype == "float32" else None
            ratio = "" if name == OURS else number(found[OURS].peak_mib / measured.peak_mib, 2)
            limit = "" if bar is None else f"at most {bar:.2f}"
            rows.append([name, number(measured.peak_mib / 1024, 2), ratio, limit])
        columns = [f"peak memory of {steps} steps", "GiB", "ours / this", "bar"]
        show(f"{workload}, {given.dtype}", columns, rows, notes=remarks(found))


if __name__ == "__main__":
    told(main)
