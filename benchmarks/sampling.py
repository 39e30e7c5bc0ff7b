"""Takes a workload, gives seconds of sampling: ours, transformers' generate and Tunix's sampler, in turns, on the same questions.

python benchmarks/sampling.py [--workload W1 W2 W3] [--trl PYTHON] [--tunix PYTHON] [--model FOLDER] [--variant rollout.rows=64]

All responses are forced to their full length. Figures are medians; the ratio says how many times faster ours is.
"""

from tables import number, seconds, show, told
from turns import OURS, job, options, ours, peers, remarks, take_turns
from workloads import WORKLOADS, name_of

BARS = {
    "W1": {"transformers": 3.5, "Tunix": 4.5},
    "W2": {"transformers": 1.8, "Tunix": 2.0},
    "W3": {"transformers": 2.7, "Tunix": 3.2},
}


def main() -> None:
    given = options(__doc__).parse_args()
    rivals = {"transformers": ("trl", "transformers_generate.py"), "Tunix": ("tunix", "tunix_sampler.py")}
    sides = ours(given) + peers(given, rivals)
    for workload in given.workload or WORKLOADS.values():
        found = take_turns(sides, job(given, workload, what="sampling", steps=1), repetitions=given.repetitions)
        rows = []
        for name, measured in found.items():
            bar = BARS.get(name_of(workload), {}).get(name)
            rows.append(
                [
                    name,
                    seconds(measured.median),
                    measured.spread,
                    number(workload.Q * workload.N * workload.T / measured.median, 0),
                    "" if name == OURS else number(measured.median / found[OURS].median, 2),
                    "" if bar is None or given.dtype != "float32" else f"at least {bar}",
                    number(measured.first, 1),
                    number(measured.peak_mib / 1024, 1),
                ]
            )
        columns = ["sampling", "seconds", "range", "tokens/s", "ratio", "bar", "first call, s", "peak GiB"]
        show(f"{workload}, {given.dtype}", columns, rows, notes=remarks(found))


if __name__ == "__main__":
    told(main)
