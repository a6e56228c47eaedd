"""Records of rows: what one holds, where they lie, which of them counts.

A record says what a run of a row gave on a device: {"row", "device", "platform", "versions", "date", "seconds",
"command", "code"} and either "numbers", the content of its `result.json`, or "error" and "failures", how many there
were in a row with the same code. Of every device, versions and row the newest success and the newest failure are kept.
"""

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments.accelerator.rows import Row
from experiments.benchmarks.process import ROOT

RESULTS = Path(__file__).resolve().parents[1] / "results"
LONGEST = 12
"""Lists of results that have more members, such as losses of all steps, are not kept."""


def slug(device: str) -> str:
    """The name of a device in file names.

    >>> slug("NVIDIA H100 80GB HBM3")
    'nvidia-h100-80gb-hbm3'
    """
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def read(*paths: Path) -> list[dict]:
    """The records of all files that exist. Raises ValueError if a file does not hold records."""
    records = []
    for path in paths:
        if not path.exists():
            continue
        try:
            records += json.loads(path.read_text(encoding="utf-8"))["records"]
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"{path} does not hold records of the queue: name the folder of --out") from None
    return records


def stored(folder: Path = RESULTS) -> list[dict]:
    """The records of all devices that are kept in the repository."""
    return read(*sorted(folder.glob("*.json")))


def write(path: Path, records: Sequence[Mapping]) -> None:
    """Replace a file of records whole, so that whoever is killed meanwhile leaves the old one."""
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps({"records": list(records)}, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def newest(records: Iterable[Mapping]) -> list[dict]:
    """One record for each device, versions, row and outcome: that of the newest date, in the order of the dates."""
    found: dict[tuple, dict] = {}
    for record in sorted(records, key=lambda record: record["date"]):
        versions = json.dumps(record["versions"], sort_keys=True)
        found[record["device"], versions, record["row"], "error" in record] = dict(record)
    return sorted(found.values(), key=lambda record: record["date"])


def success(records: Iterable[Mapping], device: str, row: str) -> Mapping | None:
    """The newest record of a row on a device that has numbers, whatever the versions."""
    fits = [r for r in records if r["device"] == device and r["row"] == row and "numbers" in r]
    return max(fits, key=lambda record: record["date"], default=None)


def failures(records: Iterable[Mapping], device: str, row: str, code: str) -> int:
    """How often a row has failed on a device with this code."""
    fits = [r for r in records if (r["device"], r["row"], r.get("code")) == (device, row, code) and "error" in r]
    return max((record["failures"] for record in fits), default=0)


def code_of(row: Row) -> str:
    """A digest of what the row runs: the library, the row's own modules, and its command."""
    folders = [ROOT / "jaxfast", *(ROOT / "experiments" / source for source in row.sources)]
    digest = hashlib.sha256(repr((row.module, row.arguments, row.seconds)).encode())
    for folder in folders:
        files = sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]
        for file in files:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def compact(value):
    """What is kept of a result: everything but lists of more than LONGEST members.

    >>> compact({"accuracy": 0.5, "losses": list(range(100)), "runs": [{"seed": 0, "losses": list(range(100))}]})
    {'accuracy': 0.5, 'runs': [{'seed': 0}]}
    """
    kept = lambda item: not isinstance(item, list) or len(item) <= LONGEST
    if isinstance(value, dict):
        return {name: compact(item) for name, item in value.items() if kept(item)}
    return [compact(item) for item in value] if isinstance(value, list) else value
