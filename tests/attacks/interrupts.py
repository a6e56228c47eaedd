"""Ctrl-C at random moments of a fit: what was trained stays, bit for bit, and the next fit works.

`python -m tests.attacks.interrupts --n 200 --seed 0 --json` sends SIGINT to 200 fits of six kinds and ends with status
1 if one of them lost anything. Each kind has a process that compiles once; odd attempts interrupt its whole process
group, as a terminal does, and so the decode workers too.

A fit survives if it ends with KeyboardInterrupt, the learner then holds the state and the losses of an uninterrupted
run after some number of steps, no epoch that a recipe has seen is missing, and one more epoch gives the bits that the
uninterrupted run has there.
"""

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

SHARES = {"resident": 50, "threads": 30, "workers": 30, "table": 30, "ratings": 30, "language": 30}
"""The attempts of each kind in 200."""
PATIENCE = 90
"""Seconds of silence after which a process is taken to hang."""
NOISE = 200
"""Lines on stderr that an interrupt may cause at most."""
ROOT = Path(__file__).resolve().parents[2]


def plans(n: int, seed: int) -> dict[str, list[dict]]:
    """The attempts of each kind: when they interrupt, and whom. The first of many meets a fit that still compiles."""
    if n < len(SHARES):
        raise ValueError(f"n={n}: give at least {len(SHARES)}, an attempt for each kind")
    counts = {kind: max(1, n * share // 200) for kind, share in SHARES.items()}
    counts["resident"] += n - sum(counts.values())
    found = {}
    for number, (kind, count) in enumerate(counts.items()):
        rng = random.Random(f"{seed} {kind}")
        found[kind] = [
            {"chance": rng.random(), "group": (number + i) % 2 == 1, "cold": i == 0 and count > 2} for i in range(count)
        ]
    return found


def attack(kind: str, plan: list[dict]) -> list[dict]:
    """The results of all attempts; a process that hangs or dies fails one of them, and another makes the rest."""
    results = []
    while len(results) < len(plan):
        rest = [fate | {"cold": fate["cold"] and not results} for fate in plan[len(results) :]]
        ready, found, why = _watch(kind, rest)
        results += found
        if len(results) < len(plan):
            lost = plan[len(results) : len(results) + 1] if ready else plan[len(results) :]
            results += [fate | {"k": None, "when": "in the fit", "wrong": [why]} for fate in lost]
    return results


def _watch(kind: str, plan: list[dict]) -> tuple[bool, list[dict], str]:
    """Run one victim: whether it came to its attempts, their results, and why there are no more."""
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.attacks.interrupts", "--victim", json.dumps([kind, plan])],
            cwd=ROOT, env=os.environ | {"JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"}, text=True,
            stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
        )  # fmt: skip
        hung, lines = threading.Event(), []

        def kill():
            hung.set()
            os.killpg(process.pid, signal.SIGKILL)

        try:
            while True:
                timer = threading.Timer(PATIENCE, kill)
                timer.start()
                line = process.stdout.readline()
                timer.cancel()
                if line.startswith("@"):
                    lines.append(json.loads(line[1:]))
                if not line:
                    break
            process.wait()
        finally:
            if process.poll() is None:
                kill()
                process.wait()
        errors.seek(0)
        said = errors.read().splitlines()
    found = lines[1:]
    if len(said) > NOISE * len(plan) and found:
        found[-1]["wrong"].append(f"{len(said)} lines on stderr, the last: {said[-1]}")
    tail = " / ".join(line.strip() for line in said[-3:])
    why = f"no answer for {PATIENCE} s" if hung.is_set() else f"the process ended with {process.returncode}: {tail}"
    return bool(lines), found, why


def summary(results: dict[str, list[dict]]) -> dict:
    """{"survived", "attempts", "kinds": the same of each kind, "failures"}."""
    kinds, failures = {}, []
    for kind, found in results.items():
        kinds[kind] = {
            "attempts": len(found),
            "survived": sum(not result["wrong"] for result in found),
            "late": sum(result["when"] == "after its end" for result in found),
            "waited": round(max((result.get("waited", 0.0) for result in found), default=0.0), 2),
        }
        failures += [{"kind": kind, **result} for result in found if result["wrong"]]
    total = {name: sum(entry[name] for entry in kinds.values()) for name in ("survived", "attempts")}
    return {**total, "kinds": kinds, "failures": failures}


def main() -> int:
    parser = argparse.ArgumentParser(description="Interrupt fits at random moments.")
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    parser.add_argument("--victim", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.victim:
        from tests.attacks import victim  # not above: decode workers import this module, and need none of that

        victim.main(*json.loads(options.victim))
        return 0
    found = summary({kind: attack(kind, plan) for kind, plan in plans(options.n, options.seed).items()})
    if options.json:
        print(json.dumps(found))
    else:
        print(f"{'kind':<10}{'attempts':>9}{'survived':>9}{'after end':>10}{'longest wait, s':>17}")
        for kind, row in found["kinds"].items():
            print(f"{kind:<10}{row['attempts']:>9}{row['survived']:>9}{row['late']:>10}{row['waited']:>17}")
        for failure in found["failures"]:
            print(failure)
    return int(found["survived"] < found["attempts"])


if __name__ == "__main__":
    sys.exit(main())
