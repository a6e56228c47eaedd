"""Ctrl-C at random moments of a fit: what was trained stays, bit for bit, and the next fit works.

`python -m tests.attacks.interrupts --n 200 --seed 0 --json` sends SIGINT to 200 fits of six kinds and ends with status
1 if one of them lost anything. Each kind has a process that compiles once. Every other attempt interrupts its whole
process group, as a terminal does, and so the decode workers too.

A fit survives if it ends with KeyboardInterrupt, the learner then holds the state and the losses of an uninterrupted
run after some number of steps, no epoch that a recipe has seen is missing, and one more epoch gives the bits that the
uninterrupted run has there.
"""

import argparse
import contextlib
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
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
            {"chance": rng.random(), "group": (number + i) % 2 == 0, "cold": i == 0 and count > 2} for i in range(count)
        ]
    return found


def attack(kind: str, plan: list[dict], seconds: float = 3.0) -> list[dict]:
    """The results of all attempts on fits that take at least `seconds`.

    A process that hangs or dies fails one attempt, and another process makes those that remain.
    """
    results = []
    while len(results) < len(plan):
        rest = [fate | {"cold": fate["cold"] and not results} for fate in plan[len(results) :]]
        ready, found, why = _watch(kind, rest, seconds)
        results += found
        if len(results) < len(plan):
            lost = plan[len(results) : len(results) + 1] if ready else plan[len(results) :]
            results += [fate | {"k": None, "when": "in the fit", "wrong": [why]} for fate in lost]
    return results


def _listen(victim: subprocess.Popen) -> tuple[list[dict], bool]:
    """The lines that the victim reports until it ends, and whether it had to be killed for its silence."""
    lines, hung = [], threading.Event()

    def kill():
        hung.set()
        os.kill(victim.pid, signal.SIGUSR1)  # it writes down where it hangs
        time.sleep(1)
        os.killpg(victim.pid, signal.SIGKILL)

    try:
        while True:
            timer = threading.Timer(PATIENCE, kill)
            timer.start()
            line = victim.stdout.readline()
            timer.cancel()
            if not line:
                return lines, hung.is_set()
            if line.startswith("@"):
                lines.append(json.loads(line[1:]))
    finally:
        timer.cancel()
        with contextlib.suppress(ProcessLookupError):  # decode workers may outlive a victim that died
            os.killpg(victim.pid, signal.SIGKILL)


def _stack(said: list[str]) -> str:
    """Where the main thread hangs, the innermost call first, of what a victim wrote."""
    main = re.split(r"hread 0x\w+", "\n".join(said))[-1]  # it comes last
    calls = re.findall(r'File "[^"]*?([^/"]+)", line (\d+) in (\w+)', main)
    return ", ".join(f"{name}:{line} {function}" for name, line, function in calls[:9])


def _watch(kind: str, plan: list[dict], seconds: float) -> tuple[bool, list[dict], str]:
    """Run one victim: whether it came to its attempts, their results, and why there are no more."""
    with tempfile.TemporaryFile("w+") as errors:
        victim = subprocess.Popen(
            [sys.executable, "-m", "attacks.interrupts", "--victim", json.dumps([kind, plan, seconds])], cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT / "tests"), "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": "1"},
            text=True, stdout=subprocess.PIPE, stderr=errors, start_new_session=True,
        )  # fmt: skip
        with victim:
            lines, hung = _listen(victim)
        errors.seek(0)
        said = errors.read().splitlines()
    found, last = lines[1:], said[-1] if said else "nothing on stderr"
    why = f"the process ended with {victim.returncode}: {last}"
    if hung and victim.returncode == -signal.SIGKILL:  # not if only its workers were left
        why = f"no answer for {PATIENCE} s, in {_stack(said)}"
    if found:
        found[-1]["noise"] = len(said)
        if len(said) > NOISE * len(plan):
            found[-1]["wrong"].append(f"{len(said)} lines on stderr, the last: {last}")
        if len(found) == len(plan) and victim.returncode:
            found[-1]["wrong"].append(why)
    return bool(lines), found, why


def summary(results: dict[str, list[dict]]) -> dict:
    """{"survived", "attempts", "kinds": these and more of each kind, "failures"}.

    Of a kind also: "late", the interrupts that came after the end of the fit; "waited", the longest time from an
    interrupt to the end of its fit, in seconds; "noise", lines on stderr; "steps", at which each attempt stopped.
    """
    kinds, failures = {}, []
    for kind, found in results.items():
        kinds[kind] = {
            "attempts": len(found),
            "survived": sum(not result["wrong"] for result in found),
            "late": sum(result["when"] == "after its end" for result in found),
            "waited": round(max(result.get("waited", 0.0) for result in found), 2),
            "noise": sum(result.get("noise", 0) for result in found),
            "steps": [result["k"] for result in found],
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
        from attacks import victim  # not above: decode workers import this module, and need none of that

        victim.main(*json.loads(options.victim))
        return 0
    found = summary({kind: attack(kind, plan) for kind, plan in plans(options.n, options.seed).items()})
    if options.json:
        print(json.dumps(found))
    else:
        columns = {"attempts": 9, "survived": 10, "late": 6, "waited": 8, "noise": 7}
        print(f"{'kind':<10}", *(f"{name:>{width}}" for name, width in columns.items()), sep="")
        for kind, row in found["kinds"].items():
            print(f"{kind:<10}", *(f"{row[name]:>{width}}" for name, width in columns.items()), sep="")
        print(
            "late: the interrupt came after the fit; waited: the longest it took to end, in s; noise: lines on stderr"
        )
        for failure in found["failures"]:
            print(failure)
    return int(found["survived"] < found["attempts"])


if __name__ == "__main__":
    sys.exit(main())
