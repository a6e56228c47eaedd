"""Two sides of a workload in turns, and the row of the report that comes of it.

Each side is a process of its own, pinned to one core on CPU. Ours opens first and leaves the weights in a folder; each
variant of theirs takes them from there, and its first numbers must be ours. Then they run in turns, each warmed by a
run before, every round with the machine's limits beside it. The ratio is the median of the rounds' ratios, against the
fastest variant; `ratio_low` and `ratio_high` are its quartiles. On CPU the time is the CPU time of the process, wall
time stands beside it; on an accelerator it is the wall time until the result is there.
"""

import contextlib
import importlib.util
import os
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.benchmarks.machine import now
from experiments.benchmarks.process import Process, SideError
from experiments.benchmarks.side import Side
from experiments.data import data_file

OURS = "jaxfast"
REWARMED = 5.0
"""Seconds of a run on CPU up to which each is preceded by one that is not timed: a virtual machine's host takes back
the memory of who idles while the others run, and giving it again can take longer than the run."""


@dataclass(frozen=True)
class Workload:
    """Something that both sides do.

    `ours` and each of `theirs` (by what the row calls the variant) give a `Side`, from the arguments `sizes`, or
    `small` where it need only be shown that it works, and `folder`, which they share. `unit`: of the work, "" where a
    run is timed as a whole. `device`: "cpu" or "gpu". `precision`: "fp32" or "bf16", whose
    peak the row is a share of. `tolerance`: how far the sides' first numbers may be apart, relatively, and None where
    they are not the same. `rounds`: at most so many. `files`, `packages`: what it needs of `experiments.data`, and
    of Python. `python`: an environment variable that names theirs, and how to make one.
    """

    title: str
    ours: Callable[..., Side]
    theirs: Mapping[str, Callable[..., Side]] = field(default_factory=dict)
    sizes: Mapping = field(default_factory=dict)
    small: Mapping = field(default_factory=dict)
    unit: str = ""
    device: str = "cpu"
    precision: str = "fp32"
    tolerance: float | None = 1e-3
    rounds: int = 100
    files: Sequence[str] = ()
    packages: Sequence[str] = ("torch",)
    python: tuple[str, str] | None = None

    def lacks(self) -> str | None:
        """Why it cannot be measured here."""
        for name in self.files:
            try:
                data_file(name)
            except FileNotFoundError as error:
                return str(error)
        for name in self.packages:
            if importlib.util.find_spec(name) is None:
                return f"{name} is not installed: pip install {name}"
        if self.python and self.python[0] not in os.environ:
            return f"{self.python[0]} is not set: {self.python[1]}"
        return None


class Unequal(ValueError):
    """Two sides that do not compute the same are not compared."""


def check_equal(name: str, ours: Sequence[float], label: str, theirs: Sequence[float], tolerance: float) -> None:
    """Unequal, which names both, unless the numbers are the same up to `tolerance`."""
    if not ours or len(ours) != len(theirs):
        raise Unequal(f"{name}: {len(ours)} numbers of ours beside {len(theirs)} of {label}: give the same, and some")
    for a, b in zip(ours, theirs, strict=True):
        if not abs(a - b) <= tolerance * max(abs(a), abs(b)):
            raise Unequal(f"{name}: ours gives {a:.6g} where {label} gives {b:.6g}, more than {tolerance:.2g} apart")


def measure(
    name: str, workload: Workload, machine: Process, *, rounds: int, small: bool = False, core: int | None = None
) -> dict:
    """The row of a workload. SideError, Unequal."""
    arguments = dict(workload.small if small else workload.sizes)
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        python = os.environ[workload.python[0]] if workload.python else None

        def begin(label: str, function: Callable, **options) -> Process:
            process = Process(label, function, {"folder": str(folder)} | arguments, folder, core=core, **options)
            stack.enter_context(process)
            process.open().tell()
            return process

        sides, firsts = {OURS: begin(OURS, workload.ours)}, {}
        failed: dict[str, str] = {}

        def hear(label: str) -> None:
            firsts[label] = sides[label].hear()

        if core is not None:  # else the sides compile at the same time
            hear(OURS)
        for label, function in workload.theirs.items():
            with _noted(failed, label):
                sides[label] = begin(label, function, python=python)
                if core is not None:
                    hear(label)
        for label in [label for label in sides if label not in firsts and label not in failed]:
            with _noted(failed, label):
                hear(label)
        if OURS in failed or failed.keys() == workload.theirs.keys() != set():
            raise SideError("; ".join(failed.values()))
        sides = {label: side for label, side in sides.items() if label not in failed}
        for label in firsts.keys() - {OURS}:
            if workload.tolerance is not None:
                check_equal(name, firsts[OURS]["values"], label, firsts[label]["values"], workload.tolerance)
        cached = begin("cached", workload.ours)
        again = cached.hear()
        cached.close()
        sides["machine"] = machine
        seen = {label: [] for label in sides}
        for i in range(min(rounds, workload.rounds)):
            for label in list(sides)[:: 1 if i % 2 == 0 else -1]:
                if i == 0 or core is not None and seen[label][-1]["wall"] < REWARMED:
                    sides[label].run()
                seen[label].append(sides[label].run())
    clock = "cpu" if core is not None else "wall"
    found = row(seen, clock=clock, unit=workload.unit, precision=workload.precision)
    found |= waits(firsts, again, seen, found["variant"], clock)
    found["values"] = firsts[OURS]["values"]
    return {"name": name, **found, **({"failed": failed} if failed else {}), "date": now(), "load": load()}


@contextlib.contextmanager
def _noted(failed: dict[str, str], label: str):
    """A side that fails, such as torch.compile without a compiler, is noted, and the others are compared."""
    try:
        yield
    except SideError as error:
        failed[label] = str(error)


def row(seen: Mapping[str, Sequence[dict]], *, clock: str, unit: str, precision: str) -> dict:
    """What the runs of all rounds come to. `seen`: of ours, of each variant of theirs, and of "machine"."""
    theirs = {label: runs for label, runs in seen.items() if label not in (OURS, "machine")}
    ours, limits = seen[OURS], seen["machine"]
    speeds = lambda runs, clock=clock: [run["work"] / run[clock] for run in runs]
    shown = lambda runs: statistics.median(speeds(runs) if unit else [run[clock] for run in runs])
    best = max(theirs, key=lambda label: statistics.median(speeds(theirs[label])), default=None)
    seconds = "CPU s" if clock == "cpu" else "s"
    found = {
        "ratio": None,
        "ours": shown(ours),
        "theirs": None,
        "unit": f"{unit}/{seconds}" if unit else seconds,
        "variant": best,
        "variants": {label: shown(runs) for label, runs in theirs.items()},
        "rounds": len(ours),
        "share_of_peak": None,
        "memory": max(run["memory"] for run in ours),
        "wall_s": statistics.median(run["wall"] for run in ours),
    }
    if best is not None:
        ratios = [a / b for a, b in zip(speeds(ours), speeds(theirs[best]), strict=True)]
        wall = [a / b for a, b in zip(speeds(ours, "wall"), speeds(theirs[best], "wall"), strict=True)]
        found |= {
            "ratio": statistics.median(ratios),
            "ratio_low": quartile(ratios, 0.25),
            "ratio_high": quartile(ratios, 0.75),
            "ratio_min": min(ratios),
            "ratio_max": max(ratios),
            # where a run goes on behind its end, its wall time is not that of its work
            "ratio_wall": None if any(run.get("ahead") for run in ours) else statistics.median(wall),
            "theirs": shown(theirs[best]),
            "memory_theirs": max(run["memory"] for run in theirs[best]),
            "wall_theirs_s": statistics.median(run["wall"] for run in theirs[best]),
        }
        found |= {"versions": theirs[best][0]["versions"]} if "versions" in theirs[best][0] else {}

    def share(runs: Sequence[dict], amount: float, kind: str) -> float:
        pairs = zip(runs, limits, strict=True)
        return statistics.median(amount / run[clock] / limit["peak"][kind] for run, limit in pairs)

    # Operations are counted by one side and are the same for all of them; bytes are a side's own.
    flops = next((runs[0]["flops"] for runs in (ours, *theirs.values()) if runs[0].get("flops")), None)
    if flops and precision in limits[0]["peak"]:
        found["share_of_peak"] = share(ours, flops, precision)
        found |= {"share_of_peak_theirs": share(theirs[best], flops, precision)} if best else {}
    if ours[0].get("bytes"):
        found["share_of_bandwidth"] = share(ours, ours[0]["bytes"], "copy")
    return found


def waits(firsts: Mapping[str, dict], cached: dict, seen: Mapping, best: str | None, clock: str) -> dict:
    """What comes before the first result: compilation (the first run, less a warm one), and, of a whole process from
    its start to the end of the first run, its CPU time, imports and reading of data counted."""
    compiling = lambda first, label: max(0.0, first[clock] - statistics.median(run[clock] for run in seen[label]))
    found = {
        "compile_cold_s": compiling(firsts[OURS], OURS),
        "compile_cached_s": compiling(cached, OURS),
        "process_cold_s": firsts[OURS]["process"],
        "process_cached_s": cached["process"],
    }
    if best is not None:
        found |= {"compile_theirs_s": compiling(firsts[best], best), "process_theirs_s": firsts[best]["process"]}
    return found


def quartile(values: Sequence[float], part: float) -> float:
    """A quantile with linear interpolation, as numpy's.

    >>> quartile([1.0, 2.0, 4.0], 0.25)
    1.5
    """
    values, at = sorted(values), part * (len(values) - 1)
    low = int(at)
    high = min(low + 1, len(values) - 1)
    return values[low] + (at - low) * (values[high] - values[low])


def load() -> float:
    """How many processes wanted to run over the last minute, these sides counted."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else 0.0
