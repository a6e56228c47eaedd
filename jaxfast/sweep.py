"""Sweeps of hyper-parameters, and a random forest that says which of them matter (the course's advice in its random forest lessons).

    space = {"lr": log_uniform(1e-4, 1e-1), "weight_decay": log_uniform(1e-3, 1.), "layers": choice((200, 100), (400,))}
    rows = run(lambda setting: fit_and_validate(**setting), space, 32, path="runs/sweep.jsonl")
    forest = Forest(rows, space, "valid_loss")
    forest.importance(); forest.plot_importance(); forest.propose(8)
"""

import json
import math
import numbers
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from jaxfast._extras import need
from jaxfast.messages import first, nearest
from jaxfast.plot import BLUE, ORANGE, _figure, _finish

Setting = dict[str, Any]


@dataclass(frozen=True)
class Uniform:
    """Numbers from `low` to `high`: evenly spread, or their logarithms with `log`; whole ones with `whole`."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def at(self, u: float) -> float | int:
        """The value at the share `u` of the way, from 0 up to 1."""
        low, high = (self.low, self.high + 1) if self.whole else (self.low, self.high)
        value = math.exp(math.log(low) + u * (math.log(high) - math.log(low))) if self.log else low + u * (high - low)
        return min(int(value), int(self.high)) if self.whole else min(value, high)

    def code(self, value: Any) -> float:
        """The number that a forest sees; ValueError for what is not in the range."""
        ok = isinstance(value, numbers.Real) and self.low <= value <= self.high * (1 + 1e-9)
        if not ok:
            raise ValueError(f"{value!r} is not in {self.low:g} to {self.high:g}")
        return math.log(value) if self.log else float(value)

    def decode(self, code: float) -> float:
        """The inverse of `code`."""
        return math.exp(code) if self.log else code


@dataclass(frozen=True)
class Choice:
    """One of `values`, each as likely as the others."""

    values: tuple

    def at(self, u: float) -> Any:
        """The value at the share `u` of the way, from 0 up to 1."""
        return self.values[min(int(u * len(self.values)), len(self.values) - 1)]

    def code(self, value: Any) -> float:
        """The place of `value`; ValueError for what is not among the values."""
        # What comes back from a file has lists where there were tuples.
        places = [i for i, known in enumerate(self.values) if _plain(known) == _plain(value)]
        if not places:
            raise ValueError(f"{value!r} is not among {first([repr(v) for v in self.values])}")
        return float(places[0])


def uniform(low: float, high: float) -> Uniform:
    """Numbers from `low` to `high`, evenly spread."""
    return Uniform(*_range(low, high))


def log_uniform(low: float, high: float) -> Uniform:
    """Numbers from `low` to `high` whose logarithms are evenly spread: for rates and decays. ValueError unless 0 < low."""
    low, high = _range(low, high)
    if low <= 0:
        raise ValueError(f"log_uniform({low:g}, {high:g}): the logarithm takes a low end above zero, such as 1e-5")
    return Uniform(low, high, log=True)


def integers(low: int, high: int, *, log: bool = False) -> Uniform:
    """Whole numbers from `low` to `high`, both included."""
    if not all(isinstance(end, (int, np.integer)) for end in (low, high)):
        raise ValueError(f"integers({low!r}, {high!r}): give whole numbers")
    low, high = _range(low, high)
    if log and low <= 0:
        raise ValueError(f"integers({low}, {high}, log=True): the logarithm takes a low end above zero")
    return Uniform(low, high, log, whole=True)


def choice(*values: Any) -> Choice:
    """One of `values`: numbers, text, booleans, None, tuples of them. ValueError for fewer than two, or equal ones."""
    if len(values) < 2 or len({json.dumps(_plain(value)) for value in values}) < len(values):
        raise ValueError(f"choice takes at least two different values, got {first([repr(v) for v in values])}")
    return Choice(tuple(values))


def _range(low: float, high: float) -> tuple:
    if not all(isinstance(end, numbers.Real) and math.isfinite(end) for end in (low, high)) or not low < high:
        raise ValueError(f"a range goes from low to high, two finite numbers, got {low!r} and {high!r}")
    return low, high


def settings(space: Mapping[str, Uniform | Choice], n: int, *, method: str = "sobol", seed: int = 0) -> list[Setting]:
    """`n` settings drawn from `space`: "sobol" fills it evenly (scrambled Sobol points), "random" draws independently.

    The first k settings are the same whatever `n` is, so that a longer sweep goes on where a shorter one ended.
    ValueError for an empty space, what is no distribution, and another method.
    """
    _check_space(space)
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"n={n!r}: give the number of settings, a whole number from 1 on")
    if method == "random":
        points = np.random.default_rng(seed).random((n, len(space)))
    elif method == "sobol":
        qmc = need("scipy.stats.qmc", extra="sweep", purpose="Sobol points")
        # Sobol points come in powers of two; their first n are taken of the next one.
        points = qmc.Sobol(len(space), rng=seed).random_base2(math.ceil(math.log2(n)))[:n]
    else:
        raise ValueError(f"method={method!r} is unknown: give 'sobol' or 'random'{nearest(method, ['sobol', 'random'])}")
    return [{name: space[name].at(float(u)) for name, u in zip(space, point, strict=True)} for point in points]


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

    Gives a row per setting: the setting, its metrics and "seconds"; a setting whose training diverges (FloatingPointError) has the
    row's "error" instead of metrics. `path`: a JSON lines file that each row is added to when it is done; settings that it holds are not run
    again, so a sweep that was killed goes on. ValueError for a file of another space, and for metrics that are no
    numbers or have the name of a hyper-parameter.
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
            raise ValueError(f"line {i} of {file} has no {missing[0]!r}: it belongs to another sweep, give another path")
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
    return {**_plain(setting), **metrics, "seconds": time.perf_counter() - start}


def _plain(value: Any) -> Any:
    """JSON's form of a value: tuples are lists, numpy numbers are Python's."""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


def _key(row: Mapping, names: Sequence[str]) -> str:
    return json.dumps({name: _plain(row[name]) for name in names}, sort_keys=True)


def _check_space(space: Mapping) -> None:
    if not isinstance(space, Mapping) or not space:
        raise ValueError("a space is a dict of distributions by name, such as {'lr': log_uniform(1e-4, 1e-1)}")
    wrong = [name for name, values in space.items() if not isinstance(values, (Uniform, Choice))]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is {space[wrong[0]]!r}: give uniform, log_uniform, integers or choice")
