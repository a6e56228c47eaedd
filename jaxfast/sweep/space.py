"""The hyper-parameters of a sweep: distributions by name, and settings drawn from them."""

import json
import math
import numbers
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from jaxfast._extras import need
from jaxfast.messages import first, nearest

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

    def grid(self, n: int) -> list:
        """At most `n` values from one end to the other."""
        steps = np.linspace(0, 1, n)
        values = self.low * (self.high / self.low) ** steps if self.log else self.low + steps * (self.high - self.low)
        return sorted({round(value) for value in values.tolist()}) if self.whole else values.tolist()


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
        places = [i for i, known in enumerate(self.values) if plain(known) == plain(value)]
        if not places:
            raise ValueError(f"{value!r} is not among {first([repr(v) for v in self.values])}")
        return float(places[0])

    def grid(self, n: int) -> list:
        """All values; there is nothing between them."""
        return list(self.values)


def uniform(low: float, high: float) -> Uniform:
    """Numbers from `low` to `high`, evenly spread."""
    return Uniform(*_range(low, high))


def log_uniform(low: float, high: float) -> Uniform:
    """Numbers from `low` to `high` whose logarithms are evenly spread, for rates and decays; 0 < low."""
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
    if len(values) < 2 or len({json.dumps(plain(value)) for value in values}) < len(values):
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
    check_space(space)
    if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 1:
        raise ValueError(f"n={n!r}: give the number of settings, a whole number from 1 on")
    if method == "random":
        points = np.random.default_rng(seed).random((n, len(space)))
    elif method == "sobol":
        qmc = need("scipy.stats.qmc", extra="sweep", purpose="Sobol points")
        # Sobol points come in powers of two; their first n are taken of the next one.
        points = qmc.Sobol(len(space), rng=seed).random_base2(math.ceil(math.log2(n)))[:n]
    else:
        raise ValueError(
            f"method={method!r} is unknown: give 'sobol' or 'random'{nearest(method, ['sobol', 'random'])}"
        )
    return [{name: space[name].at(float(u)) for name, u in zip(space, point, strict=True)} for point in points]


def plain(value: Any) -> Any:
    """JSON's form of a value: tuples are lists, numpy numbers are Python's."""
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (tuple, list)):
        return [plain(entry) for entry in value]
    return value.item() if isinstance(value, np.generic) else value


def check_space(space: Mapping) -> None:
    if not isinstance(space, Mapping) or not space:
        raise ValueError("a space is a dict of distributions by name, such as {'lr': log_uniform(1e-4, 1e-1)}")
    wrong = [name for name, values in space.items() if not isinstance(values, (Uniform, Choice))]
    if wrong:
        raise ValueError(f"{wrong[0]!r} is {space[wrong[0]]!r}: give uniform, log_uniform, integers or choice")
