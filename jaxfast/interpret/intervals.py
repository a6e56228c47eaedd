"""How far a test metric can be trusted: confidence intervals over the examples of a test set."""

from collections.abc import Callable
from statistics import NormalDist
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxfast.metrics import HostMetric, Metric, Undefined, resolve
from jaxfast.metrics.protocol import total

_BLOCK = 256


class Interval(NamedTuple):
    """A metric's value on the test set, and the ends of its confidence interval."""

    value: float
    low: float
    high: float
    level: float
    """The chance, 0..1, that an interval so made covers the value on the whole population."""

    def __str__(self) -> str:
        return f"{self.value:.4f} ({100 * self.level:g}% {self.low:.4f} to {self.high:.4f})"


def wilson(hits: float, n: int, level: float = 0.95) -> Interval:
    """The interval of a share of `hits` among `n` independent examples (Wilson 1927); it holds near 0 and 1 too.

    >>> print(wilson(9, 10))
    0.9000 (95% 0.5958 to 0.9821)
    """
    if not 0 <= hits <= n or not n:
        raise ValueError(f"wilson({hits}, {n}): give the hits among at least one example")
    z = NormalDist().inv_cdf((1 + check_level(level)) / 2)
    share = hits / n
    middle = share + z**2 / (2 * n)
    half = z * np.sqrt(share * (1 - share) / n + z**2 / (4 * n**2))
    low, high = ((middle + side) / (1 + z**2 / n) for side in (-half, half))
    return Interval(float(share), max(float(low), 0.0), min(float(high), 1.0), level)


def confidence_interval(
    metric: str | Metric | HostMetric | Callable,
    outputs: np.ndarray,
    targets: np.ndarray,
    *,
    level: float = 0.95,
    n: int = 1000,
    seed: int = 0,
) -> Interval:
    """The value of a metric on a test set, with an interval over what other test sets of its size would have given.

    `metric`: as `Learner` takes it. `outputs` are the model's raw outputs, a row for each of the `targets`; for
    metrics that look at the order of the classes only (accuracy, F-beta of labels) probabilities serve as well. A
    metric that is right or wrong about each example, such as accuracy, has the interval of Wilson; any other the
    percentiles of `n` bootstrap samples of the examples (Efron 1979), in which those that leave the metric undefined
    do not count. ValueError for lengths that differ, an empty set, n < 1 and a level outside 0..1.
    """
    (metric,) = resolve(metric)
    outputs, targets = np.asarray(outputs), np.asarray(targets)
    if len(outputs) != len(targets) or not len(targets):
        raise ValueError(
            f"{len(outputs)} rows of outputs and {len(targets)} targets: give as many of both, at least one"
        )
    if n < 1:
        raise ValueError(f"n is {n}: draw at least 1 bootstrap sample")
    check_level(level)
    rng = np.random.default_rng(seed)
    if isinstance(metric, HostMetric):
        value, samples = metric.compute(outputs, targets), _host_samples(metric, outputs, targets, n, rng)
    else:
        sums, once = _bootstrap_sums(metric, outputs, targets, n, rng)
        value, *samples = [metric.compute(_row(sums, i)) for i in range(n + 1)]
        if once and value == total(sums["sum"])[0] / len(targets):
            return wilson(total(sums["sum"])[0], len(targets), level)
    low, high = np.quantile(samples, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(value), float(low), float(high), level)


def _bootstrap_sums(metric: Metric, outputs, targets, n: int, rng: np.random.Generator) -> tuple[Any, bool]:
    """The metric's sums over all examples and over `n` samples of them, fp64 with a leading axis n + 1; and whether
    they count each example once, as a hit or not.

    The sums of a sample are those of each example times how often it was drawn: no example is evaluated twice.
    """
    rows, block = len(targets), min(len(targets), _BLOCK)
    each = jax.jit(jax.vmap(lambda output, target: metric.update(output[None], target[None], jnp.ones(1, bool))))
    sums, once, left = None, True, np.full(n, rows)
    for start in range(0, rows, block):
        index = np.arange(start, start + block)
        here = min(block, rows - start)
        parts = each(outputs[index % rows], targets[index % rows])
        once = once and _counts_once(parts)
        # A multinomial over all examples, block after block.
        drawn = rng.binomial(left, here / (rows - start))
        left = left - drawn
        weights = np.concatenate([np.ones((1, here)), rng.multinomial(drawn, np.full(here, 1 / here))])
        added = _weighted(np.pad(weights, ((0, 0), (0, block - here))), parts)
        sums = added if sums is None else jax.tree.map(np.add, sums, added)
    return sums, once


def _weighted(weights: np.ndarray, parts: Any) -> Any:
    return jax.tree.map(lambda leaf: np.tensordot(weights, np.asarray(leaf, np.float64), 1), parts)


def _row(tree: Any, i: int) -> Any:
    return jax.tree.map(lambda leaf: leaf[i], tree)


def _counts_once(parts: Any) -> bool:
    if not isinstance(parts, dict) or set(parts) != {"sum", "count"}:
        return False
    return isinstance(parts["sum"], dict) and bool((total(parts["count"]) == 1).all())


def _host_samples(metric: HostMetric, outputs, targets, n: int, rng: np.random.Generator) -> list[float]:
    values = []
    while len(values) < n:
        index = rng.integers(len(targets), size=len(targets))
        try:
            values.append(metric.compute(outputs[index], targets[index]))
        except Undefined:
            continue  # such as a sample of one class: the whole set has a value, so that others do
    return values


def check_level(level: float) -> float:
    """`level`; ValueError where it is no chance between 0 and 1."""
    if not 0 < level < 1:
        raise ValueError(f"level is {level}: give a chance between 0 and 1, such as .95")
    return level
