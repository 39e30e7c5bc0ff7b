"""Takes what one process of several knows, gives what all of them know: who they are, which questions are whose, who has failed.

Every process runs the same program on its own devices (jax.distributed). It votes on the questions whose samples lie there; what
the others need of that goes through `gather`: small arrays, never text. The first process also keeps the run folder.
"""

from __future__ import annotations

import hashlib
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import jax
import numpy as np
from jax._src.distributed import global_state as _global_state  # barriers have no public name
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from jaxselftrain.errors import Resumable, UserError
from jaxselftrain.sharding import named

HEARTBEAT = 100  # seconds without a sign of life after which JAX takes a process for dead, and ends the others
LOST = ("Gloo", "NCCL", "oordination", "onnection", "eartbeat", "UNAVAILABLE", "DEADLINE_EXCEEDED")  # how JAX tells of it
SENTENCE = 2048  # bytes of a message that is passed on
PATIENCE = 24 * 60 * 60  # seconds that processes wait for a slow one, which gives signs of life
_meetings = count()  # each has a name of its own

# variable -> how many processes its value means: JAX's own, a Slurm step's, those of a multi-host TPU slice
COUNTS: dict[str, Callable[[str], int]] = {
    "JAX_NUM_PROCESSES": int,
    "SLURM_STEP_NUM_TASKS": int,
    "TPU_WORKER_HOSTNAMES": lambda names: len(names.split(",")),
}


def several_by(environment: Mapping[str, str]) -> str | None:
    """The variable that says that there are several processes; None where none does."""
    for name, number in COUNTS.items():
        value = environment.get(name, "")
        try:
            if value and number(value) > 1:
                return name
        except ValueError:  # not a number: somebody else's
            continue
    return None


def join(environment: Mapping[str, str] = os.environ) -> None:
    """Joins the other processes where the environment says that there are some; must come before the first use of a device.

    JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID say it; on TPU pods, under Slurm and on GKE, JAX finds out by
    itself. A program that has called jax.distributed.initialize has joined already.
    """
    by, count = several_by(environment), environment.get("JAX_NUM_PROCESSES", "")
    if count and not re.fullmatch(r"[1-9]\d*", count):
        raise UserError(f"JAX_NUM_PROCESSES = {count!r} must be the number of processes, 1 or more")
    if by is None or jax.distributed.is_initialized():
        return
    jax.config.update("jax_enable_preemption_service", False)  # SIGTERM is ours: see Interrupts
    given: dict[str, Any] = {}
    if by == "JAX_NUM_PROCESSES":  # of the three, JAX itself reads the address alone
        try:
            given = {"num_processes": int(environment[by]), "process_id": int(environment["JAX_PROCESS_ID"])}
            given["coordinator_address"] = environment["JAX_COORDINATOR_ADDRESS"]
            if not re.fullmatch(r".+:\d+", given["coordinator_address"]):
                raise ValueError(f"JAX_COORDINATOR_ADDRESS = {given['coordinator_address']!r}")
        except (KeyError, ValueError) as error:
            raise UserError(
                f"{by} = {environment[by]} says that this is one of several processes; JAX_PROCESS_ID must say which, a number "
                f"from 0, and JAX_COORDINATOR_ADDRESS, HOST:PORT, where the first one listens ({error})"
            ) from None
    try:
        jax.distributed.initialize(**given, heartbeat_timeout_seconds=HEARTBEAT)
    except (RuntimeError, ValueError) as error:
        text = " ".join(str(error).split())[:200]
        raise UserError(f"{by} = {environment[by]}: the processes did not find each other ({text}); start all of them") from None


def are_several() -> bool:
    return jax.distributed.is_initialized() and jax.process_count() > 1


def is_first() -> bool:
    """Whether this is the process that keeps the run folder and talks to people; one alone is."""
    return not are_several() or jax.process_index() == 0


def put(tree: Any, shardings: Any) -> Any:
    """Arrays on device, each where its sharding says; every process is given the whole arrays, all the same."""
    if not are_several():
        return jax.device_put(tree, shardings)

    def one(x, sharding):
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        whole = np.asarray(x)
        return jax.make_array_from_callback(whole.shape, sharding, lambda index: whole[index])

    return jax.tree.map(one, tree, shardings)


def own_rows(mesh: Mesh, axis: str, total: int) -> range:
    """Which of `total` rows lie on this process's devices, where rows are split over an axis of `named`.

    check_mesh has seen to it that none is split over several processes.
    """
    if not are_several():
        return range(total)
    places = named(mesh, axis).addressable_devices_indices_map((total,)).values()
    mine = [index[0].indices(total) for index in places if index is not None]
    # make_mesh keeps a process's devices together
    return range(min(start for start, *_ in mine), max(stop for _, stop, _ in mine))


def own_share(total: int) -> range:
    """Which of `total` pieces of work are this process's, where any may do any."""
    return range(jax.process_index(), total, jax.process_count()) if are_several() else range(total)


def most_share(total: int) -> int:
    """How many of them the process with the most has."""
    return -(-total // jax.process_count()) if are_several() else total


def fetch(tree: Any) -> Any:
    """The process's own part of arrays on device, as NumPy arrays; all of it for a process alone. One transfer."""
    leaves, structure = jax.tree.flatten(tree)
    if not are_several():
        return jax.tree.unflatten(structure, jax.device_get(leaves))
    parts = [{_corner(shard.index, x.shape): shard.data for shard in x.addressable_shards} for x in leaves]
    return jax.tree.unflatten(structure, [_joined(of) for of in jax.device_get(parts)])


def _corner(index: tuple[slice, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(part.indices(size)[0] for part, size in zip(index, shape, strict=True))


def _joined(parts: dict[tuple[int, ...], np.ndarray]) -> np.ndarray:
    """One array of parts that fill a block, by the places of their first elements in the whole."""
    if len(parts) == 1:
        return np.asarray(next(iter(parts.values())))
    first = np.min(list(parts), 0)
    shape = np.max([np.add(corner, part.shape) for corner, part in parts.items()], 0) - first
    out = np.empty(shape, next(iter(parts.values())).dtype)
    for corner, part in parts.items():
        out[tuple(slice(at, at + size) for at, size in zip(corner - first, part.shape, strict=True))] = part
    return out


def gather(rows: Sequence[int], tree: Any, *, most: int, total: int) -> Any:
    """Arrays [total, ...] made of what each process has of their rows: `tree` has arrays [len(rows), ...].

    Rows that nobody has are 0. Every process must call this at the same time, with at most `most` rows and arrays of the same
    types; it waits for the others. Bytes are exchanged, so nothing is rounded.
    """
    leaves, structure = jax.tree.flatten(tree)
    given = [np.ascontiguousarray(x) for x in (np.asarray(rows, np.int64), *leaves)]
    if are_several():
        wait_for_all()
        everything = multihost_utils.process_allgather(pack(given, most=most), tiled=True)
        given = unpack(np.asarray(everything), given)
    at, *arrays = given
    out = [np.zeros((total, *x.shape[1:]), x.dtype) for x in arrays]
    for whole, x in zip(out, arrays, strict=True):
        whole[at] = x
    return jax.tree.unflatten(structure, out)


def pack(arrays: Sequence[np.ndarray], *, most: int) -> np.ndarray:
    """uint8 [most, bytes of a row]: the rows of all arrays side by side, and rows of 255 where there are none."""
    rows = np.concatenate([x.reshape(len(x), _size(x)).view(np.uint8) for x in arrays], 1)
    return np.concatenate([rows, np.full((most - len(rows), rows.shape[1]), 255, np.uint8)])


def unpack(bytes_RB: np.ndarray, like: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The arrays, of the shapes and types of `like`, that were packed; the first has numbers of rows, which are never -1."""
    ends = np.cumsum([_size(x) * x.dtype.itemsize for x in like])
    parts = np.split(bytes_RB, ends[:-1], 1)
    found = [
        np.ascontiguousarray(part).view(x.dtype).reshape(len(part), *x.shape[1:]) for part, x in zip(parts, like, strict=True)
    ]
    return [x[found[0] >= 0] for x in found]


def _size(x: np.ndarray) -> int:
    """Of a row, also where there is none."""
    return int(np.prod(x.shape[1:], dtype=int))


def any_of(flag: bool) -> bool:
    """Whether it is so in any process; all must ask at the same time."""
    return bool(_each(np.asarray([flag])).any()) if are_several() else flag


def least_of(number: int) -> int:
    """The smallest of all processes' numbers."""
    return int(_each(np.asarray([number], np.int64)).min()) if are_several() else number


def same_in_all(text: Callable[[], str]) -> bool:
    """Whether all processes have the same text; what goes round is a digest."""
    if not are_several():
        return True
    digest = hashlib.blake2b(text().encode("utf-8", "surrogatepass"), digest_size=16).digest()
    return len({each.tobytes() for each in _each(np.frombuffer(digest, np.uint8))}) == 1


def together(act: Callable[[], Any]) -> Any:
    """What `act` gives, once it has succeeded in every process; else all raise the UserError of the first that failed."""
    if not are_several():
        return act()
    result, told = None, ""
    try:
        result = act()
    except UserError as error:
        told = str(error)
    text = told.encode("utf-8", "replace")[:SENTENCE]
    sentences = _each(np.frombuffer(text.ljust(SENTENCE, b"\0"), np.uint8))
    for sentence in sentences:
        if sentence.any():
            raise UserError(sentence.tobytes().rstrip(b"\0").decode("utf-8", "replace"))
    return result


def from_first(act: Callable[[], str]) -> str:
    """What `act` says in the first process, in all of them."""
    if not are_several():
        return act()
    text = act().encode() if is_first() else b""
    size = int(_each(np.asarray([len(text)], np.int64)).max())
    return _each(np.frombuffer(text.ljust(size, b"\0"), np.uint8))[0].tobytes().decode()


def wait_for_all() -> None:
    """Returns once every process has come here, however long one takes.

    Operations between devices are not for waiting: on CPUs they give up after half a minute.
    """
    if are_several():
        assert _global_state.client is not None
        _global_state.client.wait_at_barrier(f"jaxselftrain {next(_meetings)}", 1000 * PATIENCE)


def compiled_in_all(program: jax.stages.Wrapped) -> Callable[..., Any]:
    """The program, which every process compiles at the first call before any of them runs it: one may have it in a cache."""
    if not are_several():
        return program
    compiled: list[bool] = []

    def call(*arguments: Any) -> Any:
        if not compiled:
            program.lower(*arguments).compile()
            wait_for_all()
            compiled.append(True)
        return program(*arguments)

    return call


def _each(x: np.ndarray) -> np.ndarray:
    """[processes, ...]: x of every process, byte for byte."""
    wait_for_all()
    got = np.asarray(multihost_utils.process_allgather(np.ascontiguousarray(x).view(np.uint8)))
    return got.view(x.dtype)


def is_loss(error: Exception) -> bool:
    """Whether an error says that another process is gone; who turns errors into sentences of their own must leave these alone."""
    is_of_jax = isinstance(
        error, RuntimeError | ValueError
    )  # JaxRuntimeError is one; a connection of somebody else's raises OSError
    return is_of_jax and are_several() and any(sign in str(error) for sign in LOST)


@contextmanager
def told_of_losses(again: str) -> Iterator[None]:
    """Turns what JAX says when another process has died into one sentence, and ends this process: exit code 75.

    There is nobody left to close checkpoints with, so nothing is waited for.
    """
    try:
        yield
    except (RuntimeError, ValueError) as error:
        if not is_loss(error):
            raise
        text = " ".join(str(error).split())[:160]
        lost = f"another process of this run has ended ({text}); start all of them again: {again}"
        print(f"jaxselftrain: {lost}", file=sys.stderr)
        leave(Resumable.code)


def leave(code: int) -> None:
    """Ends a process whose others may be gone: at a usual exit JAX would wait for them."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
