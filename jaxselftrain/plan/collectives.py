"""Takes a compiled program's text, gives what its devices send each other: every collective, its bytes, and how often it runs.

Loops that count to a constant are multiplied out. Those whose end depends on data, which are the ones that draw tokens, are told
apart: their collectives stand for one round.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
CUT = "all-reduce whose result is cut up at once"  # as a TPU's compiler writes a reduce-scatter
BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "s8": 1, "u8": 1, "s16": 2, "u16": 2, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4}
BYTES |= {"s64": 8, "u64": 8, "f64": 8, "f8e4m3fn": 1, "f8e5m2": 1, "c64": 8}

_HEADER = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_NAMED = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = ")
_COLLECTIVE = re.compile(rf" ({'|'.join(KINDS)})(-start)?\(")
_ARRAY = re.compile(r"\b([a-z]+\d*[a-z0-9]*)\[([\d,]*)\]")
_CALLED = re.compile(r"\b(?:calls|to_apply|called_computations|async_execution)=\{?%?([\w.\-]+(?:, ?%[\w.\-]+)*)")
_BRANCHES = re.compile(r"\b(?:branch_computations=\{([^}]*)\}|true_computation=(%[\w.\-]+), false_computation=(%[\w.\-]+))")
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_OP_NAME = re.compile(r'op_name="([^"]*)"')


@dataclass(frozen=True)
class Collective:
    """One collective of the program. Its bytes are what each device receives each time."""

    kind: str
    bytes: float
    times: int  # of each run of the step, or of each round of its data-dependent loop
    loop: str | None  # the outermost loop around it that ends when the data says so
    where: str  # the path of names that JAX gave the operation


def collectives(text: str) -> list[Collective]:
    """Every collective of an HLO module in text, as XLA prints a compiled one."""
    computations, entry = _computations(text)
    seen: set[tuple] = set()
    found = []
    for kind, line, times, loop, inside, where in _walk(computations, entry, 1, None, "", ""):
        channel = _CHANNEL.search(line)
        if channel is not None:  # one that is spread over several fusions stands in each of them
            key = kind, channel[1], inside
            if key in seen:
                continue
            seen.add(key)
        found.append(Collective("reduce-scatter" if kind == CUT else kind, received(kind, line), times, loop, where))
    return found


def received(kind: str, line: str) -> float:
    """The bytes that a device must at least receive in one collective, in whatever order it is carried out."""
    result, call = _COLLECTIVE.split(line)[0].split(" = ", 1)[1], _COLLECTIVE.search(line)
    started = call is not None and call[2] is not None
    arrays = [(BYTES.get(dtype, 4) * math.prod(map(int, filter(None, dims.split(",")))), dims) for dtype, dims in _arrays(result)]
    if started and kind in ("all-gather", "collective-permute"):  # (operands, results, and scalars of its own)
        arrays = [(size, dims) for size, dims in arrays if dims]
        arrays = arrays[len(arrays) // 2 :]
    size = sum(size for size, _ in arrays)
    n = _group(line)
    if kind == "collective-permute":
        return size
    part = (n - 1) / n
    return {"reduce-scatter": size * (n - 1), "all-reduce": 2 * size * part}.get(kind, size * part)


def _arrays(text: str) -> list[tuple[str, str]]:
    return _ARRAY.findall(re.sub(r"\{[^}]*\}", "", text))


def _group(line: str) -> int:
    """The devices that take part in one group of a collective."""
    if found := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line):
        sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", found[1])}
        return max(math.prod(sizes.get(name, 1) for name in re.findall(r"'(\w+)'", found[2])), 1)
    if found := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(found[2])
    if found := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return len(found[1].split(","))
    return 1 if "replica_groups" in line else 2  # no groups: all devices; 2 is the least that there can be


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    """(name -> lines of every computation, the name of the one that runs)."""
    computations: dict[str, list[str]] = {}
    entry, lines = "", []
    for line in text.splitlines():
        if header := _HEADER.match(line):
            lines = computations.setdefault(header[2], [])
            entry = header[2] if header[1] else entry
        elif line.startswith(" "):
            lines.append(line)
    return computations, entry


def _walk(
    computations: dict[str, list[str]], name: str, times: int, loop: str | None, inside: str, where: str
) -> Iterator[tuple[str, str, int, str | None, str, str]]:
    """(kind, line, times, data-dependent loop, innermost loop, where) of the collectives in a computation and those it calls."""
    for line in computations.get(name, ()):
        named = _OP_NAME.search(line)
        here = named[1] if named else where
        if collective := _COLLECTIVE.search(line):
            is_cut = collective[1] == "all-reduce" and name.startswith("all-reduce-scatter")
            yield CUT if is_cut else collective[1], line, times, loop, inside, here
        elif repeated := _WHILE.search(line):
            condition, body = repeated[1], repeated[2]
            count = _trips(line, computations.get(condition, []), computations.get(body, []))
            outer = loop if count is not None else loop or body
            for part in (condition, body):
                yield from _walk(computations, part, times * (count or 1), outer, body, here)
        elif branches := _BRANCHES.search(line):
            names = re.findall(r"%([\w.\-]+)", branches[1] or f"{branches[2]}, {branches[3]}")
            ways = [list(_walk(computations, way, times, loop, inside, here)) for way in names]
            yield from max(ways, key=lambda way: sum(received(kind, line) * n for kind, line, n, *_ in way), default=[])
        elif called := _CALLED.search(line):
            for part in re.findall(r"[\w.\-]+", called[1]):
                yield from _walk(computations, part, times, loop, inside, here)


def _trips(line: str, condition: list[str], body: list[str]) -> int | None:
    """How often a loop runs: as the compiler says, or by the constant that its counter, from 0, is compared with."""
    if found := _TRIPS.search(line):
        return int(found[1])
    root = next((step for step in condition if step.lstrip().startswith("ROOT")), "")
    compared = re.search(r" compare\(([^)]*)\), direction=LT", root)
    if compared is None:
        return None
    counter, limit = (part.split()[-1].lstrip("%") for part in compared[1].split(", "))
    place, constant = _places(condition).get(counter), _constants(condition).get(limit)
    return None if place is None or constant is None else -(-constant // _stride(body, place))


def _stride(body: list[str], place: int) -> int:
    """What a loop adds to its counter each time: 2 where the compiler has unrolled it; 1 where it cannot be told."""
    root = next((step for step in body if step.lstrip().startswith("ROOT")), "")
    results = re.findall(r"%([\w.\-]+)", root.rpartition(" tuple(")[2].partition("),")[0])
    if place >= len(results):
        return 1
    added = next((step for step in body if re.search(rf"%{re.escape(results[place])} = [su]32\[\]", step)), "")
    operands = re.findall(r"%([\w.\-]+)", added.rpartition(" add(")[2].partition(")")[0])
    return next((value for name, value in _constants(body).items() if name in operands), 1)


def _constants(steps: list[str]) -> dict[str, int]:
    """Name -> value of a computation's whole numbers."""
    found = (re.search(r"%?([\w.\-]+) = [su]32\[\]\S* constant\((\d+)\)", step) for step in steps)
    return {one[1]: int(one[2]) for one in found if one}


def _places(steps: list[str]) -> dict[str, int]:
    """Name -> place in the loop's carry of the whole numbers that a computation takes from it."""
    found = (re.search(r"%?([\w.\-]+) = [su]32\[\]\S* get-tuple-element\(.*\), index=(\d+)", step) for step in steps)
    return {one[1]: int(one[2]) for one in found if one}
