"""Sweeps of hyper-parameters, and a random forest that says which of them matter (fast.ai's random forest lessons).

space = {"lr": log_uniform(1e-4, 1e-1), "weight_decay": log_uniform(1e-3, 1.), "layers": choice((200, 100), (400,))}
rows = run(lambda setting: fit_and_validate(**setting), space, 32, path="runs/sweep.jsonl")
forest = Forest(rows, space, "valid_loss")
forest.plot_importance(); forest.plot_dependence()
rows = run(fit_and_validate, None, forest.propose(8), path="runs/sweep.jsonl")
"""

import json
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np

from jaxfast.sweep.forest import Forest
from jaxfast.sweep.space import Choice, Setting, Uniform, choice, integers, log_uniform, plain, settings, uniform
from jaxfast.sweep.together import run_together

__all__ = [
    "Choice",
    "Forest",
    "Uniform",
    "choice",
    "integers",
    "log_uniform",
    "read",
    "run",
    "run_together",
    "settings",
    "uniform",
]


def run(
    evaluate: Callable[[Setting], Mapping[str, float]],
    space: Mapping[str, Uniform | Choice] | None,
    n: int | Sequence[Setting],
    *,
    path: str | Path | None = None,
    method: str = "sobol",
    seed: int = 0,
    on_result: Callable[[dict], None] = lambda row: None,
) -> list[dict]:
    """Run `evaluate(setting) -> metrics` for `n` settings of `space`, or for the given ones, one after the other.

    Gives a row per setting: the setting, its metrics and "seconds"; a setting whose training diverges
    (FloatingPointError) has an "error" instead of metrics. `path`: a JSON lines file that each row is added to when it
    is done; settings that it holds are not run again, so a sweep that was killed goes on. ValueError for a file of
    another space, and for metrics that are no numbers or have the name of a hyper-parameter.
    """
    asked = settings(space, n, method=method, seed=seed) if isinstance(n, (int, np.integer)) else list(n)
    if not asked:
        raise ValueError("there are no settings to run: give at least one")
    names = tuple(asked[0])
    done = {_key(row, names): row for row in (read(path, names) if path else [])}
    rows = []
    for setting in asked:
        key = _key(setting, names)
        if key not in done:
            done[key] = _one(evaluate, setting)
            if path:
                Path(path).parent.mkdir(parents=True, exist_ok=True)
                with open(path, "a", encoding="utf-8") as file:
                    file.write(json.dumps(done[key]) + "\n")
            on_result(done[key])
        rows.append(done[key])
    return rows


def read(path: str | Path, names: Sequence[str] | None = None) -> list[dict]:
    """The rows of a sweep's file, none where there is no file; a last line that a kill cut short is taken out of it.

    ValueError where a row lacks one of the hyper-parameters `names`, and for what is no JSON.
    """
    file = Path(path)
    if not file.exists():
        return []
    text = file.read_text(encoding="utf-8")
    whole, _, torn = text.rpartition("\n")
    rows = []
    for i, line in enumerate(whole.splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            raise ValueError(f"line {i} of {file} is no JSON: it is not the file of a sweep") from None
        missing = [name for name in names or () if name not in rows[-1]]
        if missing:
            raise ValueError(f"line {i} of {file} has no {missing[0]!r}: it is of another sweep, give another path")
    if torn:
        file.write_text(whole + "\n" if whole else "", encoding="utf-8")
    return rows


def _one(evaluate: Callable, setting: Setting) -> dict:
    start = time.perf_counter()
    try:
        metrics = dict(evaluate(dict(setting)))
    except FloatingPointError as error:
        metrics = {"error": str(error)}
    else:
        both = [name for name in metrics if name in setting or name in ("seconds", "error")]
        if both:
            raise ValueError(f"the metric {both[0]!r} has the name of a hyper-parameter or column: rename it")
        strange = [name for name, value in metrics.items() if not isinstance(value, (numbers.Real, np.ndarray))]
        if strange:
            raise ValueError(f"the metric {strange[0]!r} is {metrics[strange[0]]!r}: evaluate gives numbers by name")
        metrics = {name: float(value) for name, value in metrics.items()}
    return {**plain(setting), **metrics, "seconds": time.perf_counter() - start}


def _key(row: Mapping, names: Sequence[str]) -> str:
    return json.dumps({name: plain(row[name]) for name in names}, sort_keys=True)
