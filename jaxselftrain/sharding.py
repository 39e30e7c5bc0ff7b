"""Takes the mesh section of the config, gives the device mesh and where every array lies on it.

Mesh axes: `data` splits questions; `fsdp` splits questions too, and the weights along D; `samples` splits each question's
samples, for more devices than questions; `tensor` splits heads, mlp and vocabulary. What varies by question is split over
"questions", which is (data, fsdp). Where samples are split, a question has a part on each device of `samples`, with a copy of its
prompt: the parts of all questions, question-major, are split over "rows", which is (data, fsdp, samples).
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxselftrain import sections
from jaxselftrain.errors import UserError
from jaxselftrain.model.architecture import Architecture

QUESTIONS = ("data", "fsdp")
ROWS = (*QUESTIONS, "samples")
SEVERAL = {"questions": QUESTIONS, "rows": ROWS}
RULES = (  # the first match wins, and every parameter must have one
    ("embed_VD", ("tensor", "fsdp")),
    ("unembed_DV", ("fsdp", "tensor")),
    ("w_q_LDHK", (None, "fsdp", "tensor", None)),
    ("w_(k|v)_LDGK", (None, "fsdp", "kv_heads", None)),
    ("w_o_LHKD", (None, "tensor", None, "fsdp")),
    ("w_(gate|up)_LDF", (None, "fsdp", "tensor")),
    ("w_down_LFD", (None, "tensor", "fsdp")),
    ("b_q_LHK", (None, "tensor", None)),
    ("b_(k|v)_LGK", (None, "kv_heads", None)),
    ("(attn|mlp)_norm_LD", (None, None)),
    ("(q|k)_norm_LK", (None, None)),
    ("final_norm_D", (None,)),
)


def make_mesh(mesh: sections.Mesh, devices: list | None = None) -> Mesh:
    """The (data, fsdp, samples, tensor) mesh over all devices. Raises UserError when the axes do not multiply to their number.

    Devices of one process stand together, so that `tensor`, which talks most, stays within a machine as long as it can.
    """
    devices = sorted(_devices() if devices is None else devices, key=lambda device: (device.process_index, device.id))
    inner = mesh.fsdp * mesh.samples * mesh.tensor
    data = len(devices) // inner if mesh.data == -1 else mesh.data
    if data * inner != len(devices):
        raise UserError(
            f"mesh: data = {mesh.data} x fsdp = {mesh.fsdp} x samples = {mesh.samples} x tensor = {mesh.tensor} does not make "
            f"the {len(devices)} devices there are; set mesh.data=-1 and choose others whose product divides {len(devices)}"
        )
    return Mesh(np.asarray(devices).reshape(data, mesh.fsdp, mesh.samples, mesh.tensor), (*ROWS, "tensor"))


def _devices() -> list[jax.Device]:
    try:
        devices = jax.devices()
    except (RuntimeError, AssertionError) as error:  # a backend without its device, or one that is not installed
        wanted = os.environ.get("JAX_PLATFORMS") or "none named"
        text = " ".join(str(error).split())[:200] or "no reason given"
        raise UserError(
            f"JAX finds no device to run on (JAX_PLATFORMS: {wanted}; {text}); JAX_PLATFORMS=cpu runs on the CPU, and "
            "`.[cuda]` or `.[tpu]` install the other backends"
        ) from None
    if jax.process_count() > 1 and not jax.distributed.is_initialized():  # TPUs of several machines know of each other anyway
        raise UserError(
            f"these are the devices of {jax.process_count()} machines, whose processes have not joined; start them with launch/, "
            "or set JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID on each"
        )
    return devices


def check_mesh(
    mesh: Mesh,
    architecture: Architecture,
    *,
    questions: Mapping[str, int] | None = None,
    rows: Mapping[str, int] | None = None,
) -> None:
    """Raises UserError unless every axis divides what it splits, and a question's samples stay in one process.

    Both mappings are field name -> number of questions, split by data x fsdp and by mesh.samples as well.
    """
    together = mesh.shape["samples"] * mesh.shape["tensor"]
    processes = [[device.process_index for device in group] for group in mesh.devices.reshape(-1, together)]
    if any(len(set(group)) > 1 for group in processes):
        count = len({process for group in processes for process in group})
        raise UserError(
            f"mesh: samples x tensor = {together} devices work on one question, and they belong to several of the {count} "
            f"processes; choose samples and tensor so that their product divides the {mesh.devices.size // count} devices of a "
            "process"
        )
    told = {"questions": "data x fsdp", "rows": "data x fsdp x samples"}
    for axis, counts in {"questions": questions, "rows": rows}.items():
        for field, count in (counts or {}).items():
            if count % shards(mesh, axis):
                instead = "; mesh.samples can split each question's samples instead" if axis == "questions" else ""
                raise UserError(
                    f"{field} = {count} is not divisible by the mesh: {told[axis]} = {shards(mesh, axis)} devices split the "
                    f"questions{instead}"
                )
    for axis, letters in (("tensor", "HFV"), ("fsdp", "D")):
        for letter in letters:
            if getattr(architecture, letter) % mesh.shape[axis]:
                what = {"H": "attention heads", "F": "mlp width", "V": "vocabulary", "D": "model width"}[letter]
                raise UserError(
                    f"mesh.{axis} = {mesh.shape[axis]} does not divide the model's {what} ({getattr(architecture, letter)})"
                )


def param_shardings(mesh: Mesh, architecture: Architecture, *, gathered: bool = False) -> dict[str, NamedSharding]:
    """Where each parameter lies; `gathered`: not split over fsdp, as for sampling.

    Raises ValueError for a parameter without a rule: there is no catch-all.
    """
    out = {}
    for name in architecture.shapes():
        for pattern, axes in RULES:
            if re.fullmatch(pattern, name):
                split = (None if gathered and axis == "fsdp" else axis for axis in axes)
                out[name] = named(mesh, *split, kv_heads=architecture.G)
                break
        else:
            raise ValueError(f"no sharding rule for parameter {name}")
    return out


def shards(mesh: Mesh | None, axis: str) -> int:
    """Over how many devices an axis, or "questions", or "rows", is split; 1 without a mesh."""
    return 1 if mesh is None else math.prod(mesh.shape[name] for name in SEVERAL.get(axis, (axis,)))


def named(mesh: Mesh, *axes: str | None, kv_heads: int | None = None) -> NamedSharding:
    """A NamedSharding from axis names, "questions" and "rows"; "kv_heads" is tensor where it divides them, else whole."""

    def resolve(axis):
        if axis in SEVERAL:
            return SEVERAL[axis]
        if axis == "kv_heads":
            return "tensor" if kv_heads is not None and kv_heads % mesh.shape["tensor"] == 0 else None
        return axis

    return NamedSharding(mesh, PartitionSpec(*(resolve(axis) for axis in axes)))


def constrain(x: jax.Array, mesh: Mesh | None, *axes: str | None) -> jax.Array:
    """Pins an intermediate array to the mesh (a no-op without one); "kv_heads" is read off the array's own size."""
    if mesh is None:
        return x
    heads = next((x.shape[i] for i, axis in enumerate(axes) if axis == "kv_heads"), None)
    return jax.lax.with_sharding_constraint(x, named(mesh, *axes, kv_heads=heads))
