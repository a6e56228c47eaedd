"""Which rows are due on a device, and one call of the queue: run what fits, write after each row."""

import datetime
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.accelerator import cache, process, store
from experiments.accelerator.rows import Row

MARGIN = 8.0
"""Seconds of the budget that are kept for writing."""
FAST_COMPILE = "--xla_llvm_disable_expensive_passes=true"
"""For small forms on a CPU, which compile for longer than they compute."""
PICTURES = 5
"""As many come back: some services give back eight files, and three are results, log and compiled programs."""


def expected(row: Row, records: Iterable[Mapping], device: str) -> float:
    """Seconds that a row takes: those of its last run on the device, else the declared ones."""
    last = store.success(records, device, row.name)
    return last["seconds"] if last else row.seconds


def skipped(row: Row, records: Sequence[Mapping], about: Mapping) -> str | None:
    """Why a row is not due on a device, or None."""
    if about["platform"] not in row.platforms:
        return f"it is measured on a {' or '.join(row.platforms).upper()}"
    if last := store.success(records, about["device"], row.name):
        return f"measured on {last['date']}: {row.shown(last['numbers'])}"
    if store.failures(records, about["device"], row.name, store.code_of(row)) >= 2:
        return "it failed twice, and its code has not changed"
    return row.lacks()


@dataclass
class Call:
    """One call of the queue. `budget`: seconds from `began`; `known`: records of the calls before."""

    out: Path
    about: Mapping
    budget: float
    began: float
    known: list[dict] = field(default_factory=list)
    small: bool = False
    say: Callable[[str], None] = print
    records: list[dict] = field(default_factory=list)

    def __post_init__(self):
        self.out.mkdir(parents=True, exist_ok=True)
        self.programs = Path(tempfile.mkdtemp(prefix="jaxfast-programs-"))
        packed = Path(os.environ.get("JAXFAST_DATA", "")) / cache.NAME
        if "JAXFAST_DATA" in os.environ and (count := cache.unpack(packed, self.programs)):
            self.say(f"{count} compiled programs from {packed}")

    @property
    def rest(self) -> float:
        return self.budget - (time.monotonic() - self.began) - MARGIN

    def run(self, rows: Iterable[Row]) -> list[dict]:
        """Run the rows whose seconds fit the rest of the budget, in order; gives their records."""
        try:
            for row in rows:
                seconds = 0.0 if self.small else expected(row, self.known, self.about["device"])
                if seconds > self.rest:
                    self.say(f"{row.name:24} takes {seconds:.0f} s, {max(0, self.rest):.0f} s are left")
                    continue
                limit = min(self.rest, 1.5 * seconds + 30) if not self.small else self.rest
                self._keep(row, self._record(row, limit))
        finally:
            shutil.rmtree(self.programs, ignore_errors=True)
        return self.records

    def _record(self, row: Row, limit: float) -> dict:
        variables = {"JAX_COMPILATION_CACHE_DIR": str(self.programs), "PYTHONUNBUFFERED": "1"}
        if self.small and self.about["platform"] == "cpu":
            variables["JAX_PLATFORMS"] = "cpu"
            variables["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {FAST_COMPILE}".strip()
        with tempfile.TemporaryDirectory(prefix="jaxfast-row-") as folder, self._log() as log:
            out = Path(folder)
            ended = process.run(row, out, limit=limit, variables=variables, log=log, small=self.small)
            outcome = self._outcome(row, out, ended, limit)
            if "numbers" in outcome:
                self._take_pictures(row, out)
        now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
        about = {name: self.about[name] for name in ("device", "platform", "versions")}
        command = " ".join(["python", *row.command("DIR", self.small)])
        record = {"row": row.name, **about, "date": now, "seconds": round(ended.seconds, 1), "command": command}
        return record | {"code": store.code_of(row), **outcome} | ({"small": True} if self.small else {})

    def _outcome(self, row: Row, out: Path, ended: process.Ended, limit: float) -> dict:
        """{"numbers"}, or {"error", "failures"} with the numbers that there are."""
        numbers = error = None
        try:
            numbers = store.compact(json.loads((out / "result.json").read_text(encoding="utf-8")))
            row.shown(numbers)
        except FileNotFoundError:
            error = "it did not write result.json"
        except (ValueError, KeyError, TypeError, IndexError) as problem:
            error = f"its result.json cannot be shown: {type(problem).__name__}: {problem}"
        if ended.status is None:
            error = f"it was ended after {limit:.0f} s"
        elif ended.status:
            error = f"it ended with status {ended.status}"
        if error is None:
            return {"numbers": numbers}
        before = store.failures(self.known, self.about["device"], row.name, store.code_of(row))
        last = self._last_words() if ended.status else ""
        return {"error": error + last, "failures": before + 1} | ({"partial": numbers} if numbers else {})

    def _last_words(self) -> str:
        lines = [line for line in (self.out / "log.txt").read_text(errors="replace").splitlines() if line.strip()]
        return f": {lines[-1].strip()[:300]}"

    def _log(self):
        return open(self.out / "log.txt", "a", encoding="utf-8")

    def _take_pictures(self, row: Row, out: Path) -> None:
        there = len(list(self.out.glob("*.png")))
        for name in row.pictures[: max(0, PICTURES - there)]:
            if (out / name).exists():
                shutil.copy(out / name, self.out / f"{row.name}_{name}")

    def _keep(self, row: Row, record: dict) -> None:
        """Write results and programs, so that whoever ends this process now loses nothing."""
        self.records.append(record)
        before = store.read(self.out / "results.json")
        store.write(self.out / "results.json", store.newest([*before, record]))
        cache.pack(self.programs, self.out / cache.NAME)
        what = row.shown(record["numbers"]) if "numbers" in record else record["error"]
        self.say(f"{row.name:24} {record['seconds']:5.0f} s  {what}")
