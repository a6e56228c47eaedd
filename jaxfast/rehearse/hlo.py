"""Reading a compiled program's text: how long the compiler thinks it takes, and what the chips say to each other."""

import math
import re
from collections.abc import Iterator

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute")

_BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "f16": 2, "s64": 8, "u64": 8, "f64": 8, "c64": 8, "c128": 16}
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$")
_CYCLES = re.compile(r'"estimated_cycles":"?(\d+)')
_TRIPS = re.compile(r'"known_trip_count":\{"n":"?(\d+)')
_CALLED = re.compile(r"(?:body|condition|to_apply|calls)=%?([\w.\-]+)")
_BRANCHES = re.compile(r"(?:branch_computations=\{([^}]*)\}|(?:true|false)_computation=%?([\w.\-]+))")
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
    """The sum of the compiler's `estimated_cycles` over a program: times the trip count in loops whose count it knows
    (once in others, which is a step of our chunks), the dearest branch of a conditional."""
    found, entry = computations(text)
    known: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in known:
            known[name] = 0  # a computation does not call itself
            known[name] = sum(map(line_cycles, found.get(name, ())))
        return known[name]

    def line_cycles(line: str) -> int:
        own = _CYCLES.search(line)
        total = int(own[1]) if own else 0
        if " while(" in line:
            trips = _TRIPS.search(line)
            return total + (int(trips[1]) if trips else 1) * sum(of(name) for name in _CALLED.findall(line))
        if " conditional(" in line:
            return total + max((of(name) for name in _branches(line)), default=0)
        if " call(" in line or " async-start(" in line:
            return total + sum(of(name) for name in _CALLED.findall(line))
        return total

    return of(entry)


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
