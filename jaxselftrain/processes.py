"""Takes the environment, gives whether this process is one of several that should train together, which they cannot yet."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from jaxselftrain.errors import UserError

# variable -> how many processes its value means: JAX's own, a Slurm step's, those of a multi-host TPU slice
COUNTS: dict[str, Callable[[str], int]] = {
    "JAX_NUM_PROCESSES": int,
    "SLURM_STEP_NUM_TASKS": int,
    "TPU_WORKER_HOSTNAMES": lambda names: len(names.split(",")),
}


def several_by(environment: Mapping[str, str]) -> str | None:
    """The variable that says that there are several processes; None where none does."""
    for name, count in COUNTS.items():
        value = environment.get(name, "")
        try:
            if value and count(value) > 1:
                return name
        except ValueError:  # not a number: somebody else's
            continue
    return None


def refuse_several(environment: Mapping[str, str]) -> None:
    """Raises UserError where the environment says that there are several: each would train a run of its own, in one folder."""
    name = several_by(environment)
    if name is not None:
        raise UserError(
            f"{name} = {environment[name]} says that this is one of several processes, and a run is one process so far, on all "
            "the devices of one machine; start it alone, without this variable"
        )
