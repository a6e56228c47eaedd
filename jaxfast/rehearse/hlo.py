"""Reading a compiled program's text: how long the compiler thinks it takes, and what the chips say to each other."""

import math
import re
from collections.abc import Callable, Iterator

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))")
_OPERANDS = re.compile(r"\(([^()]*)\)")
_SHAPE = re.compile(r"([a-z]+\d*(?:e\d+m\d+\w*)?)\[([\d,]*)\]")


def computations(text: str) -> tuple[dict[str, list[str]], str]:
    """The lines of each computation of an HLO module's text, and the name of the entry."""
    found, entry, current = {}, "", None
    for line in text.splitlines():
        start = _COMPUTATION.match(line.rstrip())
        if start:
            current = found.setdefault(start[2], [])
            entry = start[2] if start[1] else entry
        elif line.startswith("}"):
            current = None
        elif current is not None:
            current.append(line)
    return found, entry


def cycles(text: str) -> int:
    """The sum of the compiler's `estimated_cycles` over a program: times the trip count in loops that count to a
    constant (once in others, which is a step of our chunks), the dearest branch of a conditional."""
    return _total(text, lambda line, _: int(found[1]) if (found := _CYCLES.search(line)) else 0)


def repeated_flops(text: str) -> int:
    """Operations of the matrix products in loops that count to a constant, less those of one pass through each: what a
    compiler's count of operations leaves out that takes every loop once."""
    return _total(text, _product_flops, fusions=True) - _total(text, _product_flops, fusions=True, repeat=False)


def _total(text: str, own: Callable[[str, list[str]], int], *, fusions: bool = False, repeat: bool = True) -> int:
    """The sum of `own(line, lines of its computation)` over what a program runs; `fusions`: also what they hold."""
    found, entry = computations(text)
    known: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in known:
            known[name] = 0  # a computation does not call itself
            lines = found.get(name, [])
            known[name] = sum(own(line, lines) + called(line) for line in lines)
        return known[name]

    def called(line: str) -> int:
        if " while(" in line:
            return (_trips(line, found) if repeat else 1) * sum(of(name) for name in _CALLED.findall(line))
        if " conditional(" in line:
            return max((of(name) for name in _branches(line)), default=0)
        if " call(" in line or " async-start(" in line or fusions and " fusion(" in line:
            return sum(of(name) for name in _CALLED.findall(line))
        return 0

    return of(entry)


def _trips(line: str, found: dict[str, list[str]]) -> int:
    """How often a loop runs: what XLA says, or the constant that its condition counts to from 0 (a scan), else 1."""
    if said := _TRIPS.search(line):
        return int(said[1])
    condition = re.search(r"condition=%?([\w.\-]+)", line)
    lines = found.get(condition[1], []) if condition else []
    for root in lines:
        if root.lstrip().startswith("ROOT") and "direction=LT" in root and " compare(" in root:
            limit = _OPERANDS.search(root.partition(" compare")[2])[1].split(", ")[-1]
            value = next((re.search(r" constant\((\d+)\)", line) for line in lines if f"{limit} = " in line), None)
            return int(value[1]) if value else 1
    return 1


def _product_flops(line: str, lines: list[str]) -> int:
    """2 x outputs x contracted elements of a `dot` or `convolution`, 0 for other lines."""
    kind = re.search(r" (dot|convolution)\(", line)
    if not kind:
        return 0
    operands = _OPERANDS.search(line[kind.end() - 1 :])[1].split(", ")
    left, right = (next((_sizes(other) for other in lines if f"{name} = " in other), []) for name in operands[:2])
    if kind[1] == "dot":
        contracted = [left[int(i)] for i in re.search(r"lhs_contracting_dims=\{([\d,]*)\}", line)[1].split(",") if i]
    else:
        labels = re.search(r"dim_labels=\w+_(\w+)->", line)[1]
        contracted = [size for label, size in zip(labels, right, strict=True) if label != "o"]
    return 2 * math.prod(_sizes(line)) * math.prod(contracted)


def _sizes(line: str) -> list[int]:
    """The sizes of the array that a line defines."""
    found = _SHAPE.search(line.partition(" = ")[2])
    return [int(size) for size in found[2].split(",") if size] if found else []


def _branches(line: str) -> Iterator[str]:
    for several, one in _BRANCHES.findall(line):
        yield from (name.strip().lstrip("%") for name in several.split(",")) if several else (one,)


def collectives(text: str) -> dict[str, dict[str, int]]:
    """How often each collective stands in a program and how many bytes it gives to one chip, such as
    {"all-reduce": {"count": 2, "bytes": 102400000}}; those that do not occur are left out."""
    result: dict[str, dict[str, int]] = {}
    for line in text.splitlines():
        for name in COLLECTIVES:
            found = re.search(rf"= (.*?) {name}(-start)?\(", line)
            if found:
                # what an asynchronous one starts with holds its operands beside its results
                size = _bytes(found[1]) // (2 if found[2] and name != "all-reduce" else 1)
                entry = result.setdefault(name, {"count": 0, "bytes": 0})
                entry["count"] += 1
                entry["bytes"] += size
    return result


def _bytes(shapes: str) -> int:
    """Bytes of the arrays in the text of an HLO shape, such as "(f32[8,16]{1,0}, bf16[4]{0})"."""
    total = 0.0
    for kind, sizes in _SHAPE.findall(shapes):
        count = math.prod(int(size) for size in sizes.split(",")) if sizes else 1
        total += count * _BYTES.get(kind, 1 if kind.startswith(("f8", "s8", "u8")) else 2 if kind[1:] == "16" else 4)
    return int(total)
