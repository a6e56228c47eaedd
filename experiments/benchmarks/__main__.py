"""How fast beside PyTorch, fastai and Pillow, in one run, and how near to the limit of the machine.

    python -m experiments.benchmarks                          # all rows of this device: a table
    python -m experiments.benchmarks resnet18 'lstm*'         # some of them
    python -m experiments.benchmarks --list                   # their names, what they are, what is missing
    python -m experiments.benchmarks --json experiments/benchmarks/results.json
    python -m experiments.benchmarks --readme                 # fill README's table from what is stored there
    python -m experiments.benchmarks --check                  # which ratios fell by more than 10 %? status 1 then
    python -m experiments.benchmarks --gpu --json experiments/benchmarks/results_gpu.json

Every side is a process of its own on one core (the last one that this process may use: `taskset -c 1 python ...`), both
run in turns, and the ratio is the median of the rounds', by CPU time; on a GPU by wall time. `harness` says more,
`NOTES.md` what was learnt. Of several variants of torch (channels_last, torch.compile, CUDA graphs) the fastest counts.
"""

import argparse
import fnmatch
import importlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from experiments.benchmarks import report
from experiments.benchmarks.harness import Unequal, Workload, load, measure, shared_programs
from experiments.benchmarks.machine import limits, now
from experiments.benchmarks.process import ROOT, WITHOUT_POOL, Process, SideError


def workloads() -> dict[str, Workload]:
    """All rows by name."""
    names = (
        "tabular", "collab", "lstm", "resnet", "lite", "gradcam", "fastai", "input", "first_contact",
        "unet", "augment", "sweep",
    )  # fmt: skip
    modules = [importlib.import_module(f"experiments.benchmarks.{name}") for name in names]
    return {name: workload for module in modules for name, workload in module.WORKLOADS.items()}


def chosen(patterns: list[str], known: dict[str, Workload]) -> dict[str, Workload]:
    """The rows that the patterns name; all without any. ValueError for a pattern that names none."""
    for pattern in patterns:
        if not fnmatch.filter(known, pattern):
            raise ValueError(f"no row is called {pattern!r}: give some of {', '.join(known)}")
    return {name: w for name, w in known.items() if not patterns or any(fnmatch.fnmatchcase(name, p) for p in patterns)}


def has_gpu() -> bool:
    """Whether jax finds one, asked in another process: this one must not hold its memory."""
    if os.environ.get("JAX_PLATFORMS") == "cpu":
        return False
    ask = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    return subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip() == "gpu"


def run(
    rows: dict[str, Workload],
    *,
    gpu: bool,
    rounds: int,
    small: bool,
    variants: int | None = None,
    keep: Callable[[dict], None] = lambda _: None,
) -> dict:
    """The results of all rows that can be measured here, as they are stored. Every row is printed when it is there, and
    `keep` gets the results so far, before the first one, too."""
    core = None if gpu else max(os.sched_getaffinity(0))
    found = []
    with tempfile.TemporaryDirectory() as folder:
        options = {"variables": shared_programs(small) if core is not None else WITHOUT_POOL}
        with Process("machine", limits, {"small": small}, Path(folder), core=core, **options) as machine:
            about = machine.open().run()

            def results() -> dict:
                return {
                    "device": about["device"], "versions": about["versions"], "load": load(), "date": now(),
                    "rounds": rounds, "small": small, "peak": about["peak"], "rows": found,
                }  # fmt: skip

            keep(results())
            for name, workload in rows.items():
                here = "gpu" if gpu else "cpu"
                other = None if small or workload.device == here else f"it is measured on a {workload.device.upper()}"
                if skipped := other or workload.lacks(alone=variants == 0):
                    found.append({"name": name, "skipped": skipped})
                else:
                    try:
                        shared = {"rounds": rounds, "variants": variants, "small": small, "core": core}
                        found.append(measure(name, workload, machine, **shared))
                    except (SideError, Unequal) as error:
                        found.append({"name": name, "error": str(error)})
                print(report.line(found[-1]), flush=True)
                keep(results())
            return results()


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("names", nargs="*", help="rows, or patterns such as 'input*' (default: all)")
    parser.add_argument("--list", action="store_true", help="say what there is, and measure nothing")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows there; others in it stay")
    parser.add_argument("--check", action="store_true", help="compare the ratios with the stored ones")
    parser.add_argument(
        "--readme", action="store_true", help="fill README's table from the stored rows, measure nothing"
    )
    parser.add_argument("--rounds", type=int, help="how often the sides take turns (7, on a GPU 3)")
    parser.add_argument("--variants", type=int, metavar="N", help="try the first N of theirs only, 0: ours alone (all)")
    parser.add_argument("--gpu", action="store_true", help="fail where there is no GPU")
    parser.add_argument("--small", action="store_true", help="tiny sizes of all rows on any device: does it work?")
    options = parser.parse_args(arguments)
    known = workloads()
    stored = [report.read(path) for path in sorted(report.STORED.parent.glob("results*.json"))]
    try:
        rows = chosen(options.names, known)
    except ValueError as error:
        parser.error(str(error))
    if options.rounds is not None and options.rounds < 1:
        parser.error(f"--rounds {options.rounds}: give at least 1")
    if options.readme:
        titles = {name: workload.title for name, workload in known.items()}
        report.fill(ROOT / "README.md", stored, titles)
        return 0
    if options.list:
        for name, workload in rows.items():
            missing = workload.lacks()
            print(f"{name:24} {workload.device}  {workload.title}{f' ({missing})' if missing else ''}")
        return 0
    gpu = has_gpu()
    if options.gpu and not gpu:
        parser.error("--gpu: jax finds no GPU here; pip install -e '.[cuda]' where there is one")
    if options.check and options.small:
        parser.error("--check --small: tiny sizes are not those that are stored")
    alike = lambda results: [before for before in stored if before["device"] == results["device"]]

    def keep(results: dict) -> None:
        if options.check and not alike(results):
            parser.error(f"--check: no results of {results['device']} are stored beside {report.STORED}")
        if options.json:
            try:
                report.store(options.json, results)
            except ValueError as error:
                parser.error(str(error))

    rounds = options.rounds or (3 if gpu else 7)
    results = run(rows, gpu=gpu, rounds=rounds, small=options.small, variants=options.variants, keep=keep)
    status = int(any("error" in row for row in results["rows"]))
    if options.check:
        sentences = [sentence for before in alike(results) for sentence in report.fallen(results["rows"], before)]
        print("\n".join(sentences or ["no ratio fell by more than 10 %"]))
        status = status or int(bool(sentences))
    return status


if __name__ == "__main__":
    sys.exit(main())
