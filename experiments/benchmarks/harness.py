"""Two sides of a workload in turns, and the row of the report that comes of it.

Each side is a process of its own, pinned to one core on CPU. Ours opens first and leaves the weights in a folder; each
variant of theirs takes them from there, and its first numbers must be ours. A side is opened and run for the first time
while the others wait: XLA and cuDNN choose kernels by timing them. Then they run in turns, each warmed by a run before,
every round with the machine's limits beside it. The ratio is the median of the rounds' ratios, against the fastest
variant; `ratio_low` and `ratio_high` are its quartiles. On CPU the time is the CPU time of the process, wall time
stands beside it; on an accelerator it is the wall time until the result is there, of their variants only the fastest by
a single run takes part in the rounds, and the limits are measured before and after them.
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

    Args:
        ours: gives a `Side`, from the arguments `sizes` (or `small`) and `folder`, which both sides share.
        theirs: the same for each variant, by what the row calls it.
        sizes: arguments of both sides.
        small: those where it need only be shown that the row works.
        unit: of the work; "" where a run is timed as a whole.
        device: "cpu" or "gpu".
        precision: "fp32" or "bf16": the row is a share of its peak.
        tolerance: how far the sides' first numbers may be apart, relatively; None where they are not the same.
        rounds: at most this many.
        needs: the operations and the bytes that a unit takes at least, where arithmetic says so: the row's limit.
        variables: of our side's environment.
        files: what it needs of `experiments.data`.
        packages: what both sides need of Python.
        their_packages: what theirs need.
        python: an environment variable that names their Python, and how to make it.
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
    needs: tuple[float, float] | None = None
    variables: Mapping[str, str] = field(default_factory=dict)
    files: Sequence[str] = ()
    packages: Sequence[str] = ()
    their_packages: Sequence[str] = ("torch",)
    python: tuple[str, str] | None = None

    def lacks(self, alone: bool = False) -> str | None:
        """Why it cannot be measured here; `alone`: our side without theirs."""
        for name in self.files:
            try:
                data_file(name)
            except FileNotFoundError as error:
                return str(error)
        for name in (*self.packages, *(() if alone or not self.theirs else self.their_packages)):
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
    name: str,
    workload: Workload,
    machine: Process,
    *,
    rounds: int,
    variants: int | None = None,
    small: bool = False,
    core: int | None = None,
) -> dict:
    """The row of a workload. `core`: that of both sides on CPU, None on an accelerator. `variants`: how many of theirs
    are tried (None: all). Raises SideError if a side fails, Unequal if the sides do not compute the same."""
    arguments = dict(workload.small if small else workload.sizes)
    clock = "cpu" if core is not None else "wall"
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        python = os.environ[workload.python[0]] if workload.python else None
        variables = {**workload.variables, **shared_programs(small)}

        def begin(label: str, function: Callable, **options) -> tuple[Process, dict]:
            """A side that is open and has run once, alone, so that what it times to choose a kernel is undisturbed."""
            process = Process(label, function, {"folder": str(folder)} | arguments, folder, core=core, **options)
            stack.enter_context(process)
            return process, process.open().run()

        sides, firsts, alone = {}, {}, {}
        failed: dict[str, str] = {}
        sides[OURS], firsts[OURS] = begin(OURS, workload.ours, variables=variables)
        for label, function in list(workload.theirs.items())[:variants]:
            with _noted(failed, label):
                sides[label], firsts[label] = begin(label, function, python=python)
                if workload.tolerance is not None:
                    check_equal(name, firsts[OURS]["values"], label, firsts[label]["values"], workload.tolerance)
                if core is None:
                    alone[label] = sides[label].run()
                    _keep_the_fastest(sides, alone)
        if failed and len(sides) == 1:
            raise SideError("; ".join(failed.values()))
        again = None
        if core is not None and not small:
            cached, again = begin("cached", workload.ours, variables=variables)
            cached.close()
        seen, limits = {label: [] for label in sides}, []
        if core is None:
            limits.append(machine.run())
        for i in range(min(rounds, workload.rounds)):
            for label in list(sides)[:: 1 if i % 2 == 0 else -1]:
                if i == 0 or core is not None and seen[label][-1]["wall"] < REWARMED:
                    sides[label].run()
                seen[label].append(sides[label].run())
            if core is not None:
                limits.append(machine.run())
        if core is None:
            limits.append(machine.run())
    found = row(seen, limits, clock=clock, workload=workload)
    found["variants"] = {label: speed([run], clock, workload.unit) for label, run in alone.items()} | found["variants"]
    found |= waits(firsts, again, seen, found["variant"], clock)
    found["values"] = firsts[OURS]["values"]
    return {"name": name, **found, **({"failed": failed} if failed else {}), "date": now(), "load": load()}


def _keep_the_fastest(sides: dict[str, Process], alone: Mapping[str, dict]) -> None:
    """End the slower ones of theirs by a run of each: an accelerator's memory does not hold them all."""
    there = [label for label in sides if label != OURS]
    for label in sorted(there, key=lambda label: alone[label]["wall"] / alone[label]["work"])[1:]:
        sides.pop(label).close()


def shared_programs(small: bool) -> dict[str, str]:
    """The cache of compiled programs that small forms share: nobody asks how long they compile."""
    name = "JAX_COMPILATION_CACHE_DIR"
    return {name: os.environ[name]} if small and name in os.environ else {}


@contextlib.contextmanager
def _noted(failed: dict[str, str], label: str):
    """A side that fails, such as torch.compile without a compiler, is noted, and the others are compared."""
    try:
        yield
    except SideError as error:
        failed[label] = str(error)


def speed(runs: Sequence[dict], clock: str, unit: str) -> float:
    """The median of the runs' units a second; where a run is timed as a whole (`unit` ""), its seconds."""
    return statistics.median(run["work"] / run[clock] if unit else run[clock] for run in runs)


def row(seen: Mapping[str, Sequence[dict]], limits: Sequence[dict], *, clock: str, workload: Workload) -> dict:
    """What the runs of all rounds come to. `seen`: those of ours, and of each variant of theirs; `limits`: the
    machine's, of every round, or before and after them."""
    theirs = {label: runs for label, runs in seen.items() if label != OURS}
    ours, unit = seen[OURS], workload.unit
    speeds = lambda runs, clock=clock: [run["work"] / run[clock] for run in runs]
    best = max(theirs, key=lambda label: statistics.median(speeds(theirs[label])), default=None)
    seconds = "CPU s" if clock == "cpu" else "s"
    found = {
        "ratio": None,
        "ours": speed(ours, clock, unit),
        "theirs": None,
        "unit": f"{unit}/{seconds}" if unit else seconds,
        "variant": best,
        "variants": {label: speed(runs, clock, unit) for label, runs in theirs.items()},
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
            # where a run continues behind its end, its wall time is not that of its work
            "ratio_wall": None if any(run.get("ahead") for run in ours) else statistics.median(wall),
            "theirs": speed(theirs[best], clock, unit),
            "memory_theirs": max(run["memory"] for run in theirs[best]),
            "wall_theirs_s": statistics.median(run["wall"] for run in theirs[best]),
        }
        found |= {"versions": theirs[best][0]["versions"]} if "versions" in theirs[best][0] else {}
    return found | _shares(ours, theirs.get(best), limits, clock, workload)


def _shares(
    ours: Sequence[dict], theirs: Sequence[dict] | None, limits: Sequence[dict], clock: str, workload: Workload
) -> dict:
    """What the runs are of the machine's limits: of its products, of its copying, and of the workload's own limit."""
    kinds = limits[0]["peak"]
    if clock == "cpu":
        peaks = {kind: [limit["peak"][kind] for limit in limits] for kind in kinds}
    else:
        peaks = {kind: [statistics.mean(limit["peak"][kind] for limit in limits)] * len(ours) for kind in kinds}

    def share(runs: Sequence[dict], amount: float, kind: str) -> float:
        return statistics.median(amount / run[clock] / peak for run, peak in zip(runs, peaks[kind], strict=True))

    found = {} if clock == "cpu" else {"peaks": [limit["peak"] for limit in limits]}
    # Operations are counted by one side and are the same for all of them; bytes are a side's own.
    flops = next((runs[0]["flops"] for runs in (ours, theirs or ()) if runs and runs[0].get("flops")), None)
    if flops and workload.precision in kinds:
        found["share_of_peak"] = share(ours, flops, workload.precision)
        found |= {"share_of_peak_theirs": share(theirs, flops, workload.precision)} if theirs else {}
    if ours[0].get("bytes"):
        found["share_of_bandwidth"] = share(ours, ours[0]["bytes"], "copy")
    if workload.needs and workload.precision in kinds:
        flops, moved = workload.needs
        median = statistics.median
        found["limit"] = 1 / max(flops / median(peaks[workload.precision]), moved / median(peaks["copy"]))
        found["share_of_limit"] = speed(ours, clock, workload.unit) / found["limit"]
    return found


def waits(firsts: Mapping[str, dict], cached: dict | None, seen: Mapping, best: str | None, clock: str) -> dict:
    """What comes before the first result: compilation (the first run, less a warm one), and, of a whole process from
    its start to the end of the first run, its CPU time, imports and reading of data counted. `cached`: the first run of
    a process that finds the programs compiled, None where there was none."""
    compiling = lambda first, label: max(0.0, first[clock] - statistics.median(run[clock] for run in seen[label]))
    found = {
        "compile_cold_s": compiling(firsts[OURS], OURS),
        "process_cold_s": firsts[OURS]["process"],
    }
    if cached is not None:
        found |= {"compile_cached_s": compiling(cached, OURS), "process_cached_s": cached["process"]}
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
