"""README's and the documentation's tables of accelerators, filled from the records."""

from collections.abc import Sequence
from pathlib import Path

from experiments.accelerator import store
from experiments.accelerator.rows import ROWS, Row
from experiments.benchmarks.process import ROOT

MARKERS = "<!-- accelerator -->", "<!-- /accelerator -->"
PAGES = (ROOT / "README.md", ROOT / "docs" / "accelerator.md")


def table(records: Sequence[dict], rows: Sequence[Row] = ROWS) -> str:
    """A Markdown table: a row of the queue a line, each device's newest number, or a dash where there is none."""
    names = {row.name for row in rows}
    records = [record for record in records if record["row"] in names and "numbers" in record]
    devices = sorted({record["device"] for record in records})
    lines = ["| what | command | result |", "|---|---|---|"]
    for row in rows:
        found = [(device, last) for device in devices if (last := store.success(records, device, row.name))]
        cells = [f"{device}: {row.shown(last['numbers'])}" for device, last in found]
        words = [word for word in row.command("DIR") if word not in ("--out", "DIR", "--json", "DIR/result.json")]
        command = " ".join(["python", *words])
        lines.append(f"| {row.title} (`{row.name}`) | `{command}` | {'<br>'.join(cells) or '–'} |")
    notes = [f"{device}: {_versions(records, device)}." for device in devices]
    ending = notes or ["Nothing has been measured on an accelerator yet: a dash is a command that has not run there."]
    return "\n".join([*lines, "", *ending])


def _versions(records: Sequence[dict], device: str) -> str:
    """The versions and days of the records of a device."""
    newest = [record for record in records if record["device"] == device]
    versions = dict.fromkeys(", ".join(f"{k} {v}" for k, v in record["versions"].items()) for record in newest)
    days = sorted({record["date"][:10] for record in newest})
    return f"{'; '.join(versions)}; {' to '.join(dict.fromkeys((days[0], days[-1])))}"


def fill(pages: Sequence[Path] = PAGES, records: Sequence[dict] | None = None) -> None:
    """Put the table between the two MARKERS of each page. Raises ValueError if a page lacks one of them."""
    text = table(store.stored() if records is None else records)
    first, last = MARKERS
    for page in pages:
        before = page.read_text(encoding="utf-8")
        if before.count(first) != 1 or before.count(last) != 1:
            raise ValueError(f"{page} has no place for the table: write a line {first} and a line {last} below it")
        head, _, rest = before.partition(first)
        page.write_text(f"{head}{first}\n{text}\n{last}{rest.partition(last)[2]}", encoding="utf-8")
