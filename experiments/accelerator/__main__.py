"""Fill the numbers that were never measured on this accelerator, most valuable first, within a budget of seconds.

    python -m experiments.accelerator --budget 420 --out DIR      # what is still missing here and fits
    python -m experiments.accelerator --list                      # all rows, and what this device lacks
    python -m experiments.accelerator --only resnet50 'lstm*' --budget 300 --out DIR    # these, measured or not
    python -m experiments.accelerator --merge DIR                 # into experiments/results, README and documentation
    python -m experiments.accelerator --pack DIR --budget-mib 60  # data and packages for a machine without network
    python -m experiments.accelerator --small --out DIR           # every row, tiny, on any device: does it work?

Each row is a process of its own. DIR gets results.json after every row, log.txt with all that was printed, at most five
pictures, and the compiled programs. Data are read from JAXFAST_DATA, such as a folder that --pack has made; packages in
its folder site are importable. docs/accelerator.md says how to use a quarter of an hour.
"""

import argparse
import fnmatch
import os
import shutil
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

BEGAN = time.monotonic()


def chosen(patterns: Sequence[str], rows: Sequence) -> list:
    """The rows that the patterns name, in the queue's order; all without patterns. Raises ValueError if a pattern
    does not name any."""
    names = [row.name for row in rows]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise ValueError(f"no row is called {pattern!r}: give some of {', '.join(names)}")
    return [row for row in rows if not patterns or any(fnmatch.fnmatchcase(row.name, p) for p in patterns)]


def merge(folders: Sequence[Path], results: Path) -> list[Path]:
    """Take the records and pictures of --out folders into `results`; gives the files that were written. Raises
    ValueError if a folder is without records, or its records are of --small, which are not numbers."""
    from experiments.accelerator import store

    written = []
    for folder in folders:
        if not (folder / "results.json").exists():
            raise ValueError(f"{folder} holds no results.json: name a folder that --out has filled")
        records = store.read(folder / "results.json")
        if any(record.get("small") for record in records):
            raise ValueError(f"{folder} holds records of --small: they show that rows work, and are not numbers")
        for device in dict.fromkeys(record["device"] for record in records):
            path = results / f"{store.slug(device)}.json"
            own = [record for record in records if record["device"] == device]
            results.mkdir(parents=True, exist_ok=True)
            store.write(path, store.newest([*store.read(path), *own]))
            written.append(path)
            for picture in sorted(folder.glob("*.png")):
                (results / store.slug(device)).mkdir(exist_ok=True)
                shutil.copy(picture, results / store.slug(device) / picture.name)
    return written


def use_packed() -> None:
    """Make the packages of a --pack folder importable, here and in the rows."""
    site = Path(os.environ.get("JAXFAST_DATA", "")) / "site"
    if "JAXFAST_DATA" in os.environ and site.is_dir():
        sys.path.insert(0, str(site.resolve()))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(site.resolve()), os.environ.get("PYTHONPATH"))))


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.accelerator", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--budget", type=float, metavar="S", help="seconds from the start of this command")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder for results, log, pictures and programs")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="rows or patterns, also measured ones")
    parser.add_argument("--small", action="store_true", help="tiny sizes of every row on any device")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    parser.add_argument("--merge", nargs="+", type=Path, metavar="DIR", help="take the results of --out folders")
    parser.add_argument("--fill", action="store_true", help="fill the tables of README and documentation anew")
    parser.add_argument("--pack", type=Path, metavar="DIR", help="lay together what a machine without network needs")
    parser.add_argument("--budget-mib", type=float, default=60, help="the size of --pack (%(default)s)")
    parser.add_argument("--for", dest="rows", nargs="+", default=[], metavar="ROW", help="the rows of --pack (all)")
    parser.add_argument("--with", dest="extra", nargs="+", default=[], metavar="NAME", help="more packages of --pack")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    parser = make_parser()
    options = parser.parse_args(arguments)
    use_packed()
    from experiments.accelerator import pack, page, store
    from experiments.accelerator.rows import ROWS

    try:
        if options.merge:
            for path in merge(options.merge, store.RESULTS):
                print(path)
            page.fill()
        elif options.fill:
            page.fill()
        elif options.pack:
            size = int(options.budget_mib * 2**20)
            rows = chosen(options.rows, ROWS)
            pack.pack(rows, options.pack, size, there=pack.packages_there(), extra=options.extra)
        else:
            return measure(options, chosen(options.only, ROWS))
    except ValueError as error:
        parser.error(str(error))
    return 0


def measure(options: argparse.Namespace, rows: list) -> int:
    """Run or list rows. Raises ValueError if options do not fit together, or no accelerator is found."""
    from experiments.accelerator import device, store
    from experiments.accelerator.queue import Call, expected, skipped

    if not options.list and options.out is None:
        raise ValueError("--out DIR is missing: the folder that gets the results")
    if not options.list and not options.small and not (options.budget and options.budget > 0):
        raise ValueError("--budget S is missing: how many seconds the rows may take together")
    try:
        about = device.describe()
    except RuntimeError as error:
        raise ValueError(str(error)) from None
    if about["platform"] == "cpu" and not options.small and not options.list:
        raise ValueError("jax finds no accelerator here; --small shows on a CPU that every row works")
    known = store.stored() + (store.read(options.out / "results.json") if options.out else [])
    known = [record for record in known if not record.get("small")]
    print(f"{about['device']}, " + ", ".join(f"{name} {version}" for name, version in about["versions"].items()))
    if options.list:
        for row in rows:
            state = skipped(row, known, about) or "missing"
            print(f"{row.name:24} {expected(row, known, about['device']):4.0f} s  {row.title}: {state}")
        return 0
    due = []
    for row in rows:
        why = row.lacks() if options.only else skipped(row, known, about)
        if options.small or why is None:
            due.append(row)
        else:
            print(f"{row.name:24} {why}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # ends the row that runs, too
    budget = options.budget or 3600
    call = Call(options.out, about, budget, BEGAN, known, options.small, lambda line: print(line, flush=True))
    records = call.run(due)
    return int(any("error" in record for record in records))


if __name__ == "__main__":
    sys.exit(main())
