"""One row in a process of its own, ended when its time is over."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO, NamedTuple

from experiments.accelerator.rows import Row
from experiments.benchmarks.process import ROOT

GRACE = 5.0
"""Seconds between SIGTERM and SIGKILL."""


class Ended(NamedTuple):
    """How a process ended: `status` is None where it was ended because its time was over."""

    status: int | None
    seconds: float


def run(row: Row, out: Path, *, limit: float, variables: Mapping[str, str], log: IO[str], small: bool = False) -> Ended:
    """Run a row into the folder `out`; all that it prints goes to `log`. After `limit` seconds it gets SIGTERM, and
    SIGKILL `GRACE` seconds later, with all processes that it has started."""
    command = [sys.executable, *row.command(str(out), small)]
    log.write(f"\n=== {row.name}: {' '.join(command[1:])} (at most {limit:.0f} s)\n")
    log.flush()
    began = time.monotonic()
    # a process group of its own, so that the sides of a benchmark end with it
    process = subprocess.Popen(
        command, stdout=log, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, cwd=ROOT,
        env={**os.environ, **variables}, process_group=0,
    )  # fmt: skip
    try:
        status = process.wait(timeout=limit)
    except subprocess.TimeoutExpired:
        status = None
    finally:
        end(process)
    return Ended(status, time.monotonic() - began)


def end(process: subprocess.Popen) -> None:
    """End a process and its group, at once where the process itself has ended."""
    with contextlib.suppress(ProcessLookupError):
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE)
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
