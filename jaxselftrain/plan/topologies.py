"""Takes the name of a topology such as v5e:4x4 or gpu:h200x1, gives its devices to plan for, and what is published of them.

A TPU's devices come from its own compiler, which runs on any x86 machine. GPUs' stand-ins have a place in a mesh and nothing
else: what depends on them is worked out by analysis.
"""

from __future__ import annotations

import difflib
import importlib.util
import math
import os
import re
from dataclasses import dataclass
from typing import Any, Literal

from jaxselftrain.errors import UserError

GIB = 2**30


@dataclass(frozen=True)
class Chip:
    """What is published of a chip; a chip may be several devices to JAX, which then share all of it."""

    name: str
    memory: float  # bytes
    rate: float | None  # dense bfloat16 operations per second
    bandwidth: float | None  # bytes per second of its memory
    link: float | None  # bytes per second that it can receive from the others over all of its links
    devices: int = 1


# Capacity, bfloat16 peak and bandwidths of Cloud TPUs: https://docs.cloud.google.com/tpu/docs/v4, .../v5e, .../v5p, .../v6e and
# .../tpu7x, "System architecture". These give the links' bandwidth in both directions together; here stands one. v4's cores are
# two devices to its ahead-of-time compiler, tpu7x's two chiplets are two devices everywhere.
TPUS = {
    "v4": Chip("TPU v4", 32 * GIB, 275e12, 1228e9, 300e9, devices=2),
    "v5e": Chip("TPU v5e", 16 * GIB, 197e12, 819e9, 200e9),
    "v5p": Chip("TPU v5p", 95 * GIB, 459e12, 2765e9, 600e9),
    "v6e": Chip("TPU v6e", 32 * GIB, 918e12, 1638e9, 400e9),
    "tpu7x": Chip("TPU7x", 192 * GIB, 2307e12, 7380e9, 600e9, devices=2),
}
# Dense bfloat16 peak, memory and NVLink (PCIe where there is none) bandwidth by NVIDIA's data sheets; the capacity is what the
# driver reports, rounded down to whole GiB.
GPUS = {
    "h200": Chip("NVIDIA H200", 140 * GIB, 989e12, 4800e9, 450e9),
    "h100": Chip("NVIDIA H100 80 GB", 79 * GIB, 989e12, 3350e9, 450e9),
    "a100-80g": Chip("NVIDIA A100 80 GB", 79 * GIB, 312e12, 2039e9, 300e9),
    "l4": Chip("NVIDIA L4", 22 * GIB, 121e12, 300e9, 32e9),
    "rtx4090": Chip("NVIDIA RTX 4090", 23 * GIB, 165e12, 1008e9, 32e9),
}
# The shapes of a cloud's slices by their number of chips; v4, v5p and tpu7x count cores in their names, two a chip.
FLAT = {1: "1x1", 4: "2x2", 8: "2x4", 16: "4x4", 32: "4x8", 64: "8x8", 128: "8x16", 256: "16x16"}
CUBES = {4: "2x2x1", 8: "2x2x2", 16: "2x2x4", 32: "2x4x4", 64: "4x4x4", 128: "4x4x8", 256: "4x8x8", 512: "8x8x8", 1024: "8x8x16"}
IS_FLAT = ("v5e", "v6e")
MOST_GPUS = 4096  # a mesh of more takes longer to think about than anybody waits
EXAMPLES = "v5e:4x4, v5p:2x2x2, v6e:4x8, v5p-128, gpu:h200x1, gpu:l4x1 or cpu"


@dataclass(frozen=True)
class Topology:
    """So many chips of one kind; a TPU's have a shape."""

    name: str
    platform: Literal["tpu", "gpu", "cpu"]
    chip: Chip
    chips: int
    shape: str = ""  # of a TPU's slice

    @property
    def devices(self) -> int:
        return self.chips * self.chip.devices

    @property
    def device_memory(self) -> float:
        """Bytes of one device, which is a chip or a part of it."""
        return self.chip.memory / self.chip.devices


@dataclass(frozen=True)
class StandIn:
    """A device in name only: a mesh of these tells how arrays would be split."""

    id: int
    platform: str
    process_index: int = 0


def parse_topology(name: str) -> Topology:
    """The Topology of a name: KIND:SHAPE or the cloud's KIND-NUMBER for TPUs, gpu:KINDxNUMBER, cpu. Raises UserError."""
    text = name.strip().lower()
    if text == "cpu":
        return Topology("cpu", "cpu", _this_machine(), 1)
    if found := re.fullmatch(r"gpu:([a-z0-9-]+?)x(\d+)", text):
        kind, count = found[1], int(found[2])
        if kind in GPUS and not 1 <= count <= MOST_GPUS:
            raise UserError(f"topology {name}: the number of GPUs is 1 to {MOST_GPUS}, not {count}")
        if kind not in GPUS:
            raise UserError(f"topology {name}: no GPU {kind!r} is known here{_near(kind, GPUS)}; known are {', '.join(GPUS)}")
        return Topology(text, "gpu", GPUS[kind], count)
    found = re.fullmatch(r"([a-z0-9]+):(\d+(?:x\d+)+)", text)
    slice_name = re.fullmatch(r"([a-z0-9]+)-(\d+)", text)
    kind = (found or slice_name or [text, text])[1]
    kind = "v5e" if kind == "v5litepod" else kind
    if kind not in TPUS or not (found or slice_name):
        raise UserError(f"topology {name} is not known{_near(kind.split(':')[0], TPUS)}; name one like {EXAMPLES}")
    shape = found[2] if found else _slice_shape(name, kind, int(slice_name[2]) if slice_name else 0)
    sides = 2 if kind in IS_FLAT else 3
    if len(shape.split("x")) != sides or 0 in map(int, shape.split("x")):
        raise UserError(f"topology {name}: a {kind} has {sides} sides, such as {kind}:{'4x4' if sides == 2 else '2x2x2'}")
    chips = math.prod(map(int, shape.split("x")))
    return Topology(f"{kind}:{shape}", "tpu", TPUS[kind], chips, shape)


def planned_devices(topology: Topology) -> list[Any]:
    """Devices to make a mesh of, in the order that JAX gives them. Raises UserError without the TPU's compiler."""
    if topology.platform != "tpu":
        return [StandIn(i, topology.platform) for i in range(topology.devices)]
    if importlib.util.find_spec("libtpu") is None:
        raise UserError("planning for a TPU needs its compiler, which runs on any x86 machine: pip install -e '.[plan]'")
    # asked of no metadata server, and said once: the compiler needs no TPU, and complains of each of these that it misses
    told = {"TPU_SKIP_MDS_QUERY": "1", "TPU_ACCELERATOR_TYPE": "v5litepod-8", "TPU_WORKER_HOSTNAMES": "localhost"}
    told |= {"TPU_WORKER_ID": "0", "TF_CPP_MIN_LOG_LEVEL": "3", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}  # two plans at a time
    for variable, value in told.items():
        os.environ.setdefault(variable, value)
    from jax.experimental import topologies

    alone = {"chips_per_host_bounds": [1, 1, 1]} if topology.chips == 1 else {}
    try:
        devices = topologies.get_topology_desc(topology.name, platform="tpu", **alone).devices
    except Exception as error:  # the plug-in raises JaxRuntimeError, RuntimeError and NotImplementedError
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"topology {topology.name}: the TPU's compiler does not take it: {reason}") from None
    if len(devices) != topology.devices:
        raise UserError(
            f"topology {topology.name}: the TPU's compiler gives {len(devices)} devices, not {topology.devices}; "
            "this version of it is not known here"
        )
    return list(devices)


def _slice_shape(name: str, kind: str, number: int) -> str:
    shapes, each = (FLAT, 1) if kind in IS_FLAT else (CUBES, 2)
    if number % each or number // each not in shapes:
        names = ", ".join(f"{kind}-{chips * each}" for chips in shapes)
        raise UserError(f"topology {name}: slices are {names}; any other shape as {kind}:{'AxB' if each == 1 else 'AxBxC'}")
    return shapes[number // each]


def _near(name: str, known: dict[str, Chip]) -> str:
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f" (did you mean {near[0]}?)" if near and near[0] != name else ""


def _this_machine() -> Chip:
    from jaxselftrain.memory import HOST_SHARE, host_memory

    return Chip("this machine's CPUs", HOST_SHARE * host_memory(), None, None, None)
