"""What a compiled program moves and holds, read from its text (HLO as XLA's TPU compiler prints it).

A collective in the body of a loop counts as often as the loop runs, which its condition says: it compares a counter
with a constant. A loop that may end earlier counts as if it did not.
"""

import math
import re
from collections import Counter, defaultdict
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8}
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) \(.*\{$")
_COLLECTIVE = re.compile(rf"^\s*(?:ROOT )?%?[\w.\-]+ = (.+?) ({'|'.join(KINDS)})(-start)?\(")
_INSTRUCTION = re.compile(r"^\s*(?:ROOT )?%?([\w.\-]+) = (\w+)\[([\d,]*)\]\S* ([\w\-]+)\(")
_SHAPE = re.compile(r"(\w+)\[([\d,]*)\]")
_CALLED = re.compile(r"(?:calls|to_apply|condition|body|true_computation|false_computation)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


class Collective(NamedTuple):
    """An operation between devices.

    Attributes:
      axes: the mesh axes that it spans.
      bytes: what it has on one device, of operand and result the larger.
      shapes: of its results.
      times: how often a step does it.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: int
    shapes: tuple[tuple[int, ...], ...]
    times: int


class Buffer(NamedTuple):
    """A result of the program: its bytes, its type as `bf16[8,512,896]`, and the operation, as JAX names it."""

    bytes: int
    type: str
    operation: str


def collectives(text: str, mesh: Mesh) -> list[Collective]:
    """The collectives of a compiled program over the devices of a mesh."""
    lines = _lines(text)
    times = _times(lines)
    found, chains = [], set()
    for computation, line in lines:
        matched = _COLLECTIVE.match(line)
        if matched is None:
            continue
        # One that is worked off piece by piece beside other work stands in the text once for each piece.
        if chain := re.search(r"chain_id=\"(\d+)\"", line):
            key = (chain[1], matched[1].split("{")[0])
            if key in chains:
                continue
            chains.add(key)
        shapes = [(dtype, _dims(dims)) for dtype, dims in _SHAPE.findall(matched[1]) if dtype in _BYTES]
        sizes = [_BYTES[dtype] * math.prod(dims) for dtype, dims in shapes]
        # Of an asynchronous one the result is operand and result together.
        moved = max(sizes) if matched[3] else sum(sizes)
        kind, axes = matched[2], _axes(line, mesh)
        if kind == "reduce-scatter":
            moved *= math.prod(mesh.shape[axis] for axis in axes)
        found.append(Collective(kind, axes, moved, tuple(dims for _, dims in shapes), times[computation]))
    return found


def moved(found: list[Collective]) -> dict[tuple[str, tuple[str, ...]], int]:
    """Bytes of a step on each device, by kind and axes."""
    total: Counter[tuple[str, tuple[str, ...]]] = Counter()
    for one in found:
        total[one.kind, one.axes] += one.bytes * one.times
    return dict(total)


def largest_buffers(text: str, count: int) -> list[Buffer]:
    """The largest results of operations, each type and operation once; what is only another view is left out."""
    found: dict[tuple[str, str], Buffer] = {}
    lines = _lines(text)
    fused = {name for _, line in lines if " fusion(" in line for name in re.findall(r"calls=%?([\w.\-]+)", line)}
    for computation, line in lines:
        matched = _INSTRUCTION.match(line)
        if matched is None or computation in fused or matched[2] not in _BYTES:
            continue
        if matched[4] in ("parameter", "get-tuple-element", "bitcast", "constant", "tuple"):
            continue
        size = _BYTES[matched[2]] * math.prod(_dims(matched[3]))
        named = re.search(r'op_name="([^"]*)"', line)
        operation = "/".join(named[1].split("/")[-2:]) if named else matched[4]
        kind = f"{matched[2]}[{matched[3]}]"
        found.setdefault((kind, operation), Buffer(size, kind, operation))
    return sorted(found.values(), key=lambda buffer: -buffer.bytes)[:count]


def _lines(text: str) -> list[tuple[str, str]]:
    """Each line with the computation that it stands in."""
    computation, lines = "", []
    for line in text.splitlines():
        if matched := _COMPUTATION.match(line):
            computation = matched[1]
        elif line.startswith(" "):
            lines.append((computation, line))
    return lines


def _times(lines: list[tuple[str, str]]) -> dict[str, int]:
    """How often each computation runs in a step."""
    within: dict[str, list[str]] = defaultdict(list)
    for computation, line in lines:
        within[computation].append(line)
    callers: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for computation, line in lines:
        loop = " while(" in line
        names = _CALLED.findall(line)
        for branches in _BRANCHES.findall(line):
            names += [name.strip().lstrip("%") for name in branches.split(",")]
        condition = re.search(r"condition=%?([\w.\-]+)", line)
        turns = _turns(within[condition[1]]) if loop and condition else 1
        for name in names:
            callers[name].append((computation, turns))
    known: dict[str, int] = {}

    def count(name: str) -> int:
        if name not in known:
            known[name] = sum(turns * count(caller) for caller, turns in callers[name]) if callers[name] else 1
        return known[name]

    return {name: count(name) for name in within}


def _turns(condition: list[str]) -> int:
    """The constant that the counter of a loop is compared with."""
    constants = dict(re.findall(r"%([\w.\-]+) = s32\[\]\S* constant\((\d+)\)", "\n".join(condition)))
    for line in condition:
        if compared := re.search(r" compare\(%?[\w.\-]+, %?([\w.\-]+)\), direction=LT", line):
            return int(constants.get(compared[1], 1))
    return 1


def _dims(text: str) -> tuple[int, ...]:
    return tuple(int(size) for size in text.split(",") if size)


def _axes(line: str, mesh: Mesh) -> tuple[str, ...]:
    """The axes along which the devices of one group differ; groups hold places in the mesh, row by row."""
    if named := re.search(r"replica_groups=mesh\[[^\]]*\] \{([^}]*)\}", line):
        return tuple(axis for axis in mesh.axis_names if f"'{axis}'" in named[1])
    groups = _groups(line)
    if not groups:
        return tuple(mesh.axis_names)
    width = mesh.shape["fsdp"]
    rows, columns = {place // width for place in groups[0]}, {place % width for place in groups[0]}
    return tuple(axis for axis, places in (("data", rows), ("fsdp", columns)) if len(places) > 1)


def _groups(line: str) -> list[list[int]]:
    if listed := re.search(r"replica_groups=\{(\{[\d,{}]*\})\}", line):
        return [[int(place) for place in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])]
    if tiled := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        places = np.arange(math.prod(_dims(tiled[3]))).reshape(_dims(tiled[3]))
        if tiled[4]:
            places = places.transpose(_dims(tiled[4]))
        return places.reshape(int(tiled[1]), int(tiled[2])).tolist()
    if pairs := re.search(r"source_target_pairs=\{(\{[\d,{}]*\})\}", line):
        return [[int(place) for place in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])]
    return []
