"""Takes the configs for TPUs and single GPUs, plans each one, gives the tables of docs/scaling.md.

python benchmarks/scaling.py [--plans FOLDER] [--write]

A plan takes minutes for a TPU; those that FOLDER already holds (as `jaxselftrain plan --json` writes them) are not made again.
--write puts the tables into docs/scaling.md, between its marks; otherwise they are printed.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import jax

from jaxselftrain.config import load_config
from jaxselftrain.lowering import need_of, step_inputs
from jaxselftrain.plan.account import device_bytes
from jaxselftrain.plan.command import find_architecture
from jaxselftrain.plan.topologies import GIB, parse_topology, planned_devices
from jaxselftrain.sharding import make_mesh

ROOT = Path(__file__).parents[1]
CONFIGS, PAGE = ROOT / "configs", ROOT / "docs" / "scaling.md"
PLANNED = {
    "qwen2.5_1.5b_v5e-8": "v5e:2x4",
    "qwen2.5_math_7b_v5e-64": "v5e:8x8",
    "qwen2.5_math_7b_v5p-16": "v5p:2x2x2",
    "qwen2.5_math_7b_v6e-32": "v6e:4x8",
    "qwen2.5_32b_v5p-128": "v5p:4x4x4",
    "qwen2.5_math_7b_h200": "gpu:h200x1",
    "qwen2.5_7b_80gb": "gpu:h100x1",
    "qwen2.5_1.5b_80gb": "gpu:h100x1",
    "qwen2.5_1.5b_24gb": "gpu:l4x1",
}
SCALED = "qwen2.5_math_7b_v5e-64"
MESHES = (  # slice, fsdp, tensor
    ("v5e-8", 2, 4),
    ("v5e-16", 4, 4),
    ("v5e-32", 8, 4),
    ("v5e-64", 16, 4),
    ("v5e-128", 32, 4),
    ("v5e-256", 64, 4),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--plans", type=Path, help="folder of plans as JSON; made where they are missing")
    parser.add_argument("--write", action="store_true", help="into docs/scaling.md")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as fresh:
        folder = options.plans or Path(fresh)
        folder.mkdir(parents=True, exist_ok=True)
        plans = {name: plan(name, topology, folder) for name, topology in PLANNED.items()}
    compiled = {name: found for name, found in plans.items() if found["compiled"]}
    analysed = {name: found for name, found in plans.items() if not found["compiled"]}
    sections = {
        "compiled": summary(compiled),
        "analysis": summary(analysed),
        "memory": memory(compiled),
        "gpu-memory": memory(analysed),
        "phases": phases(plans),
        "received": received(compiled),
        "states": states(),
    }
    for name, table in sections.items():
        print(f"\n{name}\n\n{table}")
    if options.write:
        PAGE.write_text(filled(PAGE.read_text(), sections))


def plan(name: str, topology: str, folder: Path) -> dict:
    """The plan of a config, from the folder or made now."""
    file = folder / f"{name}.json"
    if not file.exists():
        print(f"planning {name} for {topology}", file=sys.stderr)
        command = [sys.executable, "-m", "jaxselftrain.cli", "plan", str(CONFIGS / f"{name}.yaml"), "--topology", topology]
        subprocess.run([*command, "--no-search", "--json", str(file)], check=True, stdout=subprocess.DEVNULL)
    return json.loads(file.read_text())


def summary(plans: dict[str, dict]) -> str:
    rows = []
    for name, found in plans.items():
        mesh = " x ".join(f"{axis} {size}" for axis, size in found["mesh"].items() if size > 1) or "one device"
        rows.append(
            [
                f"[{name}](../configs/{name}.yaml)",
                f"{found['chips']} x {found['chip']}",
                mesh,
                f"{found['peak'] / GIB:.1f}",
                f"{found['device_memory'] / GIB:.0f}",
                f"{found['peak'] / found['device_memory']:.0%}",
                f"{found['least_step_seconds']:.0f}"
                if found["least_step_seconds"] >= 10
                else f"{found['least_step_seconds']:.1f}",
            ]
        )
    return markdown(["config", "devices", "mesh", "peak GiB", "of GiB", "share", "least seconds a step"], rows)


def memory(plans: dict[str, dict]) -> str:
    lines = list(dict.fromkeys(line for found in plans.values() for line in found["memory"]))
    kept = ("program", "other")
    lines = [line for line in lines if line not in kept] + [line for line in kept if line in lines]
    cell = lambda found, line: f"{found['memory'][line] / GIB:.2f}" if line in found["memory"] else ""  # noqa: E731
    rows = [[line, *(cell(found, line) for found in plans.values())] for line in lines]
    rows.append(["**peak**", *(f"**{found['peak'] / GIB:.2f}**" for found in plans.values())])
    return markdown(["GiB of one device", *(short(name) for name in plans)], rows)


def phases(plans: dict[str, dict]) -> str:
    rows = []
    for name, found in plans.items():
        for phase, of in found["phases"].items():
            got = sum(of["received"].values()) / 1e9
            numbers = f"{of['operations'] / 1e12:,.1f}", f"{of['bytes'] / 1e9:,.0f}", f"{got:,.1f}" if found["compiled"] else ""
            rows.append([short(name), phase, *numbers, f"{of['seconds']:.2f}"])
    return markdown(["config", "phase", "TFLOP", "GB moved", "GB received", "least seconds"], rows)


def received(plans: dict[str, dict]) -> str:
    kinds = sorted({kind for found in plans.values() for kind in found["collectives"]})
    rows = [
        [short(name), *(f"{found['collectives'].get(kind, 0) / 1e9:,.1f}" for kind in kinds)] for name, found in plans.items()
    ]
    return markdown(["GB received by one device a step", *kinds], rows)


def states() -> str:
    """Weights and optimizer of one chip as the chips grow: exact, from shapes and shardings; their padding by the compiler."""
    rows, first = [], 0.0
    for slice_name, fsdp, tensor in MESHES:
        # a question for each group: the batch grows with the chips
        more = f"mesh.fsdp={fsdp}", f"mesh.tensor={tensor}", f"rollout.questions={max(fsdp, 16)}", "update.micro_batches=1"
        path = CONFIGS / f"{SCALED}.yaml"
        config = load_config(path, more)
        mesh = make_mesh(config.mesh, planned_devices(parse_topology(slice_name)))
        state = step_inputs(config, find_architecture(config, path, None)[0], mesh, width=1024, states=8).state
        kept = state.params, state.moments
        size = device_bytes(kept)
        given = need_of(jax.jit(_changed, donate_argnums=0).lower(kept).compile()).arguments
        first = first or size * fsdp * tensor
        ratio = f"{size * fsdp * tensor / first:.4f}"
        sizes = f"{size / GIB:.3f}", f"{(given - size) / GIB:.3f}", f"{given / size - 1:.1%}"
        rows.append([f"{fsdp * tensor}", f"fsdp {fsdp} x tensor {tensor}", sizes[0], ratio, *sizes[1:]])
    columns = ["chips", "mesh", "GiB of one chip", "times chips, relative to 8", "tile padding, GiB", "of it"]
    return markdown(columns, rows)


def _changed(tree):
    return jax.tree.map(lambda x: x + 1, tree)


def filled(page: str, sections: dict[str, str]) -> str:
    for name, table in sections.items():
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        page = re.sub(
            f"{re.escape(begin)}.*?{re.escape(end)}", lambda _, t=table, b=begin, e=end: f"{b}{t}\n{e}", page, flags=re.S
        )
    return page


def markdown(columns: list[str], rows: list[list[str]]) -> str:
    """The table as Markdown."""
    return "\n".join("| " + " | ".join(cells) + " |" for cells in (columns, ["---"] * len(columns), *rows))


def short(name: str) -> str:
    return name.removeprefix("qwen2.5_").replace("math_", "").replace("_", " ")


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    main()
