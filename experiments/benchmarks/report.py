"""What is done with the rows: print them, keep them, compare them with those that were kept, fill README's table."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

STORED = Path(__file__).with_name("results.json")
MARKERS = "<!-- benchmarks -->", "<!-- /benchmarks -->"
FELL = 0.9


def line(row: Mapping) -> str:
    """A row on the terminal.

    >>> line({"name": "lstm", "skipped": "torch is not installed"})
    'lstm                     skipped: torch is not installed'
    """
    for why in ("skipped", "error"):
        if why in row:
            return f"{row['name']:24} {why}: {row[why]}"
    share = f", {shares(row)} of the peak" if shares(row) else ""
    if row["ratio"] is None:
        return f"{row['name']:24} {number(row['ours'])} {row['unit']}{share}"
    spread = f"{row['ratio']:6.2f}x ({row['ratio_low']:.2f}-{row['ratio_high']:.2f})"
    both = f"{number(row['ours'])} beside {number(row['theirs'])} {row['unit']} of {row['variant']}"
    return f"{row['name']:24} {spread}  {both}{share}"


def number(value: float) -> str:
    """Three digits that count.

    >>> [number(value) for value in (12345.6, 12.345, 0.012345)]
    ['12,346', '12.3', '0.0123']
    """
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def store(path: Path, results: dict) -> None:
    """Write results; what the file already holds of the same device and versions stays where it was not measured anew.

    ValueError for a file of another device, of other versions, or of other sizes.
    """
    if path.exists():
        before = read(path)
        for key in ("device", "versions"):
            if before[key] != results[key]:
                raise ValueError(
                    f"{path} holds results of {before[key]}, these are of {results[key]}: write them to another file, "
                    "or delete that one and measure all rows"
                )
        if before.get("small", False) != results.get("small", False):
            raise ValueError(f"{path} holds results of other sizes (--small): write these to another file")
        rows = {row["name"]: row for row in before["rows"]}
        measured = {row["name"]: row for row in results["rows"] if "ours" in row or row["name"] not in rows}
        results = results | {"rows": list((rows | measured).values())}
    path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")


def fallen(rows: Iterable[Mapping], stored: Mapping) -> list[str]:
    """A sentence for each row whose ratio is more than 10 % below the stored one."""
    before = {row["name"]: row["ratio"] for row in stored["rows"] if row.get("ratio")}
    pairs = [
        (row["name"], row["ratio"], before[row["name"]]) for row in rows if row.get("ratio") and row["name"] in before
    ]
    return [
        f"{name} fell to {new:.2f}x from {old:.2f}x, by {1 - new / old:.0%}"
        for name, new, old in pairs
        if new < FELL * old
    ]


def table(results: Mapping, titles: Mapping[str, str]) -> str:
    """A Markdown table of the rows that have a ratio or a time, and under it where and when they were measured."""
    head = (
        "| what | ours | theirs | ratio | by wall time | of the peak | memory, ours and theirs "
        "| compiling, cold and cached |"
    )
    lines = [head, "|" + "---|" * 8]
    place = {name: i for i, name in enumerate(titles)}
    for row in sorted(results["rows"], key=lambda row: place.get(row["name"], len(place))):
        if "ours" not in row:
            continue
        title = titles.get(row["name"], row["name"])
        theirs, ratio, memory = "–", "–", size(row["memory"])
        wall = f"{row['ratio_wall']:.2f}" if row.get("ratio_wall") else "–"
        if row["ratio"] is not None:
            theirs = f"{number(row['theirs'])} ({row['variant']})"
            ratio = f"**{row['ratio']:.2f}** ({row['ratio_low']:.2f}–{row['ratio_high']:.2f})"
            memory += f", {size(row['memory_theirs'])}"
        compiling = f"{row['compile_cold_s']:.1f} s"
        compiling += f", {row['compile_cached_s']:.1f} s" if "compile_cached_s" in row else ""
        cells = (
            f"{title} (`{row['name']}`)",
            f"{number(row['ours'])} {row['unit']}",
            theirs,
            ratio,
            wall,
            shares(row) or "–",
            memory,
            compiling,
        )
        lines.append(f"| {' | '.join(cells)} |")
    measured = [row for row in results["rows"] if "ours" in row]
    versions = dict(results["versions"])
    for row in measured:
        versions |= row.get("versions", {})
    versions = ", ".join(f"{name} {version}" for name, version in versions.items())
    where = f"{results['device']}; {versions}; {span(measured, 'date')}, load {span(measured, 'load')}"
    return "\n".join(lines) + f"\n\n{where}, {span(measured, 'rounds')} rounds."


def shares(row: Mapping) -> str:
    """Of the machine's limits: of its matrix products, and of its copying.

    >>> shares({"share_of_peak": 0.5, "share_of_bandwidth": 0.25}), shares({"share_of_peak": None})
    ('50%, copying 25%', '')
    """
    kinds = {"": row["share_of_peak"], "copying ": row.get("share_of_bandwidth")}
    return ", ".join(f"{kind}{share:.0%}" for kind, share in kinds.items() if share)


def span(rows: Sequence[Mapping], key: str) -> str:
    """From the least to the greatest.

    >>> span([{"load": 2.5}, {"load": 1.0}], "load"), span([{"load": 1.0}], "load")
    ('1.0 to 2.5', '1.0')
    """
    values = [row[key] for row in rows]
    return " to ".join(map(str, dict.fromkeys((min(values), max(values)))))


def size(n: float) -> str:
    """Bytes in words.

    >>> size(3 * 2**30), size(5 * 2**20)
    ('3.0 GiB', '5 MiB')
    """
    return f"{n / 2**30:.1f} GiB" if n >= 2**30 else f"{n / 2**20:.0f} MiB"


def fill(readme: Path, stored: Sequence[Mapping], titles: Mapping[str, str]) -> None:
    """Put the tables between the two MARKERS of a file. ValueError where they are not there, once each."""
    text = readme.read_text(encoding="utf-8")
    first, last = MARKERS
    if text.count(first) != 1 or text.count(last) != 1 or text.index(last) < text.index(first):
        raise ValueError(f"{readme} has no place for the table: write a line {first} and a line {last} below it")
    before, _, rest = text.partition(first)
    after = rest.partition(last)[2]
    tables = "\n\n".join(table(results, titles) for results in stored)
    readme.write_text(f"{before}{first}\n{tables}\n{last}{after}", encoding="utf-8")
