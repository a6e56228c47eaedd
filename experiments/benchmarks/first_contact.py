"""What a newcomer waits for: `import jaxfast`, and the quickstart's first step of training.

    python -m experiments.benchmarks.first_contact              # imports, and the quickstart's first and second run
    python -m experiments.benchmarks.first_contact --repeats 21 --skip-quickstart

Every figure is of processes of their own, from their start on, and a median (of the second run: of three). Imports are
measured in turns, beside `import jax`. The first step is the first of the learning-rate search: after it starts Python
again for large pages, reads the photographs, draws a batch, and has the training program, compiled in the first run
and read from JAX's persistent cache in the second.

Two shared CPU cores, jax 0.10.2, Python 3.11, CPU time: import jax 0.63 s, import jaxfast 0.02 s (it imports jax where
it is used), vision 0.94 s, tabular 0.95 s. Quickstart: first run 29.7 s (CPU 28.3 s), second 13.0 s (CPU 12.0 s).
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time

STATEMENTS = ("import jax", "import jaxfast", "from jaxfast import vision", "from jaxfast import tabular")


def cost(*arguments: str) -> tuple[float, float]:
    """Seconds of wall and of CPU time of one Python process."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run([sys.executable, *arguments], env=environment, check=True, stdout=subprocess.DEVNULL)
    wall, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def medians(costs: list[tuple[float, float]]) -> tuple[float, float]:
    wall, cpu = zip(*costs, strict=True)
    return statistics.median(wall), statistics.median(cpu)


def imports(repeats: int) -> dict[str, tuple[float, float]]:
    """The cost of each of STATEMENTS."""
    for statement in STATEMENTS:
        cost("-c", statement)  # writes the bytecode
    rounds = [[cost("-c", statement) for statement in STATEMENTS] for _ in range(repeats)]
    return {statement: medians([costs[i] for costs in rounds]) for i, statement in enumerate(STATEMENTS)}


def to_the_first_step(cache: str) -> None:
    """Run the quickstart and end this process when its first step of training is done."""
    from experiments import quickstart
    from experiments.runtime import start

    start(cache)
    from jaxfast.training import Pace

    # `Pace` learns how long a dispatch took when its losses have come back.
    Pace.learn = lambda *_: os._exit(0)
    quickstart.main(["--out", f"{cache}/run", "--cache", cache])


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.first_contact",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("--repeats", type=int, default=11, help="imports of each kind (%(default)s)")
    parser.add_argument("--skip-quickstart", action="store_true", help="measure the imports only")
    parser.add_argument("--to-first-step", metavar="CACHE", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.to_first_step:
        return to_the_first_step(options.to_first_step)
    costs = imports(options.repeats)
    for statement, (wall, cpu) in costs.items():
        print(f"{statement:30} {wall:6.2f} s, CPU {cpu:6.2f} s, {cpu / costs['import jax'][1]:.2f} of import jax")
    if not options.skip_quickstart:
        with tempfile.TemporaryDirectory() as cache:
            child = ("-m", "experiments.benchmarks.first_contact", "--to-first-step", cache)
            for title, runs in (("first run", 1), ("second run", 3)):
                wall, cpu = medians([cost(*child) for _ in range(runs)])
                print(f"quickstart, {title}: the first step after {wall:.1f} s, CPU {cpu:.1f} s", flush=True)


if __name__ == "__main__":
    main()
