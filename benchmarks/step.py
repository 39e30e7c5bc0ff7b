"""Takes a workload, gives seconds of whole steps (sample, reward, update): ours, TRL's GRPOTrainer and Tunix's GRPOLearner.

python benchmarks/step.py [--workload W1 W2] [--trl PYTHON] [--tunix PYTHON] [--model FOLDER] [--set update.micro_batches=4]

The sides take turns and train on the same questions, all samples forced to full length, no KL, float32 AdamW. Figures are
medians; the ratio says how many times faster ours is. All sides stay in memory together: where that is too much, compare
with one peer at a time.
"""

from tables import number, seconds, show, told
from turns import OURS, job, options, ours, peers, remarks, take_turns
from workloads import WORKLOADS, name_of

BARS = {"W1": {"TRL": 4.5, "Tunix": 4.5}, "W2": {"TRL": 1.2, "Tunix": 1.5}}
RIVALS = {"TRL": ("trl", "trl_grpo.py"), "Tunix": ("tunix", "tunix_grpo.py")}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--micro", type=int, default=32, help="sequences in a forward and backward pass of TRL and Tunix")
    given = parser.parse_args()
    sides = ours(given) + peers(given, RIVALS)
    for workload in given.workload or (WORKLOADS["W1"], WORKLOADS["W2"]):
        steps = given.repetitions + 1
        found = take_turns(
            sides, job(given, workload, what="step", steps=steps, micro=given.micro), repetitions=given.repetitions
        )
        rows = []
        for name, measured in found.items():
            bar = BARS.get(name_of(workload), {}).get(name)
            rows.append(
                [
                    name,
                    seconds(measured.median),
                    measured.spread,
                    "" if name == OURS else number(measured.median / found[OURS].median, 2),
                    "" if bar is None or given.dtype != "float32" else f"at least {bar}",
                    number(measured.first, 1),
                    number(measured.peak_mib / 1024, 1),
                ]
            )
        columns = ["whole step", "seconds", "range", "ratio", "bar", "first step, s", "peak GiB"]
        show(f"{workload}, {given.dtype}", columns, rows, notes=remarks(found))


if __name__ == "__main__":
    told(main)
