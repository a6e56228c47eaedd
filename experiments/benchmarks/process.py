"""The parent's end of a side: start it, tell it to run, hear what it says, end it."""

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from experiments.benchmarks.side import address

ROOT = Path(__file__).resolve().parents[2]
FRACTION = 0.3
"""Of an accelerator's memory, for each side: ours, the fastest variant so far and the one that is tried are there at
the same time."""
WITHOUT_POOL = {"XLA_PYTHON_CLIENT_ALLOCATOR": "platform", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.9"}
"""For a process that gives an accelerator's memory back as soon as it does not need it."""


class SideError(RuntimeError):
    """A side could not be opened, failed in a run, or died."""


class Process:
    """A side in its own process. `open()` waits until it is open, `run()` is `tell()` and `hear()`.

    `core`: the one that it is pinned to, with one thread for whatever it computes; None for none. `folder`: what it
    compiles and says goes there. `variables`: of its environment, beside those of `environment`. Raises SideError, with
    the side's own words, if it fails or dies.
    """

    def __init__(
        self,
        label: str,
        function: Callable,
        arguments: dict,
        folder: Path,
        *,
        core: int | None,
        python: str | None = None,
        variables: Mapping[str, str] | None = None,
    ):
        self.label = label
        self._log = open(folder / f"{label.replace('/', '_')}.log", "w+", encoding="utf-8")
        self._process = subprocess.Popen(
            [
                python or sys.executable,
                "-m",
                "experiments.benchmarks.side",
                json.dumps(address(function, arguments) | {"core": core}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=ROOT,
            env=environment(folder, core) | merged(variables or {}),
        )

    def open(self) -> "Process":
        self.hear()
        return self

    def run(self) -> dict:
        self.tell()
        return self.hear()

    def tell(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # `hear` says why the process ended
            self._process.stdin.write("run\n")
            self._process.stdin.flush()

    def hear(self) -> dict:
        line = self._process.stdout.readline()
        reply = json.loads(line) if line.endswith("\n") else {}
        if "error" in reply:
            raise SideError(f"{self.label}: {reply['error']}")
        if not reply:
            status = self._process.wait()
            raise SideError(f"{self.label}: the process died with status {status}{self._last_words()}")
        return reply

    def close(self) -> None:
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process.stdout.close()
        self._log.close()

    def __enter__(self) -> "Process":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def _last_words(self) -> str:
        self._log.seek(0)
        lines = self._log.read().strip().splitlines()
        return f": {lines[-1]}" if lines else ""


def environment(folder: Path, core: int | None) -> dict[str, str]:
    """What every side is started with, ours and theirs alike.

    Programs are compiled anew for each row: the caches of both lie in its folder. Memory comes in large pages
    (`experiments.runtime`). An accelerator's memory is taken as it is needed, up to FRACTION of it, because the sides
    share it.
    """
    given = os.environ.get("GLIBC_TUNABLES", "")
    tunable = "glibc.malloc.hugetlb=1"
    one_thread = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    return {
        **os.environ,
        "GLIBC_TUNABLES": given if "hugetlb" in given else f"{given}:{tunable}".strip(":"),
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **(one_thread if core is not None else {"XLA_PYTHON_CLIENT_MEM_FRACTION": str(FRACTION)}),
    }


def merged(variables: Mapping[str, str]) -> dict[str, str]:
    """`variables`, whose XLA_FLAGS stand behind those that this process was given.

    >>> merged({"A": "1"})
    {'A': '1'}
    """
    flags = f"{os.environ.get('XLA_FLAGS', '')} {variables.get('XLA_FLAGS', '')}".strip()
    return {**variables, **({"XLA_FLAGS": flags} if "XLA_FLAGS" in variables else {})}
