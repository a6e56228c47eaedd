"""One side of a comparison: a process that opens its work once, keeps it warm, and does it when it is told to.

`python -m experiments.benchmarks.side` with a JSON object as its argument: "module" and "function", which give a
`Side`; "arguments" for it; "core" to be pinned to, or null. It answers with a JSON line when it is open, and with
another after each line that it reads, when the work is done again. What the work prints goes to stderr. Only the
standard library is imported here, so that the Python of another environment can be a side.
"""

import ctypes
import functools
import gc
import importlib
import json
import multiprocessing
import os
import resource
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Side(NamedTuple):
    """What a side does.

    `run()` does all that is timed, to its end, and gives numbers that are the same on every side in the first run,
    such as the losses of the first steps. `work`: how many units a run makes. `counted`: what is known of a run, also
    only after the first: "flops" (additions and multiplications), "bytes" that go to and from memory, "versions".
    `settle()` waits until everything that `run` began is done: its CPU time counts, its wall time does not.
    `device_memory()`: the largest number of bytes that an accelerator held.
    """

    run: Callable[[], Sequence[float]]
    work: float = 1.0
    counted: dict[str, Any] | None = None
    settle: Callable[[], None] | None = None
    device_memory: Callable[[], int] | None = None


def address(function: Callable[..., Side], arguments: dict) -> dict:
    """The JSON that says where `function` is, and its arguments (those of a partial too)."""
    if isinstance(function, functools.partial):
        return address(function.func, function.keywords | arguments)
    return {"module": function.__module__, "function": function.__qualname__, "arguments": arguments}


def cpu() -> float:
    """CPU seconds of this process, of its children that have ended and of those that run."""
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ended.ru_utime + ended.ru_stime + ticks / os.sysconf("SC_CLK_TCK")


def settle() -> None:
    """Wait until no thread and no child works any more."""
    start = -1.0
    while cpu() - start > 0.01:
        start = cpu()
        time.sleep(0.2)


def resident_memory() -> int:
    """The most bytes that this process has had in memory, since `forget_memory` where that is possible, or that a child
    had which has ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    try:
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
        own = int(line.split()[1])
    except (OSError, StopIteration):
        own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * max(own, children)


def forget_memory() -> None:
    """What only compilation and opening took does not count from here on (Linux)."""
    gc.collect()
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")
    except (OSError, AttributeError):
        pass


def timed(side: Side) -> dict:
    """One run: {"cpu", "wall", "values", "memory", ...}."""
    cpu_start, wall_start = cpu(), time.perf_counter()
    values = side.run()
    wall = time.perf_counter() - wall_start
    if side.settle:
        side.settle()
    return {
        "cpu": cpu() - cpu_start,
        "wall": wall,
        "work": side.work,
        "values": [float(value) for value in values],
        "memory": (side.device_memory or resident_memory)(),
        "process": cpu(),
        "ahead": side.settle is not None,
        **(side.counted or {}),
    }


def serve(order: dict, commands, answer: Callable[[dict], None]) -> None:
    """Open what `order` names, then run it once for every line of `commands`."""
    side = getattr(importlib.import_module(order["module"]), order["function"])(**order["arguments"])
    answer({"open": True})
    for i, _ in enumerate(commands):
        answer(timed(side))
        if i == 0:
            forget_memory()


def main() -> None:
    order = json.loads(sys.argv[1])
    if order["core"] is not None:
        os.sched_setaffinity(0, {order["core"]})
    channel = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)

    def answer(reply: dict) -> None:
        print(json.dumps(reply), file=channel, flush=True)

    try:
        serve(order, sys.stdin, answer)
    except Exception as error:
        traceback.print_exc()
        answer({"error": f"{type(error).__name__}: {error}"})
        sys.exit(1)


if __name__ == "__main__":
    main()
