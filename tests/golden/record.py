"""Write the golden numbers anew: `python -m tests.golden.record`, with `files` also the export and the checkpoint.

Numbers change on purpose only: say in the commit why. `python -m tests.golden.record --show` writes nothing and prints
how far today's numbers are from the recorded ones.
"""

import json
import sys
from pathlib import Path

import jax

from . import files, learners, measure, programs

HERE = Path(__file__).parent
LEARNERS, PROGRAMS = HERE / "learners.json", HERE / "programs.json"


def recorded(path: Path) -> dict:
    return json.loads(path.read_text())


def record() -> None:
    """Measure every learner and program, and replace both files."""
    found = {}
    for name, road in learners.LEARNERS.items():
        found[name] = measure.measured(road)
        print(name, flush=True)
    _write(LEARNERS, found)
    found = {}
    for name, program in programs.PROGRAMS.items():
        found[name] = programs.measured(program)
        print(name, flush=True)
    _write(PROGRAMS, found)


def show() -> None:
    """Print the largest relative difference of every learner, and every program's numbers that differ."""
    then = recorded(LEARNERS)["measured"]
    for name, road in learners.LEARNERS.items():
        now = measure.measured(road)
        bits = "equal" if now["sha256"] == then[name]["sha256"] else "other"
        print(f"{name}: {bits} bits, at most {measure.distance(now, then[name]):.1e}", flush=True)
    then = recorded(PROGRAMS)["measured"]
    for name, program in programs.PROGRAMS.items():
        print(f"{name}: {'; '.join(programs.differences(programs.measured(program), then[name])) or 'as recorded'}")


def _write(path: Path, found: dict) -> None:
    path.write_text(json.dumps({"machine": measure.machine(), "measured": found}, indent=1) + "\n")


def main(arguments: list[str]) -> None:
    # as the tests have it, and before anything asks for a device
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    if unknown := set(arguments) - {"files", "--show"}:
        raise SystemExit(f"unknown: {', '.join(sorted(unknown))}; give nothing, files or --show")
    if "files" in arguments:
        files.write()
    if "--show" in arguments:
        show()
    else:
        record()


if __name__ == "__main__":
    main(sys.argv[1:])
