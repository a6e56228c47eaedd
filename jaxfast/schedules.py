r"""Schedules of learning rate and momentum, as optax schedules (step -> scalar).

Step i of N stands at t = i / N, as in fastai: the first step (i = 0) takes the start value, the last one (i =
N - 1) comes just short of the end value, and steps from N on stay at the end value. Steps may be Python
numbers or traced, every numeric argument may be traced (so a schedule can be vmapped over rates, lengths and
shapes), and a rate may be an array of one rate per group. The results are in JAX's default float type. A
schedule is a `jax.tree_util.Partial`, a function that is a pytree of its numbers: as an argument of a jitted
function it compiles once, whatever the numbers. What is plainly wrong (no steps, `pct_start` outside [0, 1], a
divisor that is not positive) is a ValueError if the value is a concrete number.

How `one_cycle` differs from its relatives, all of two half cosines (p = `pct_start`):

==============================  =========  ==================  =====================  =============
schedule                        t          peak at t =         start; end             momentum
==============================  =========  ==================  =====================  =============
`one_cycle(N, lr)`              i / N      p, also 0 and 1     lr / div;              its twin
                                                               lr / div_final
fastai `fit_one_cycle`          i / N      p; NaN at t = p = 1 lr / div;              yes
(`combined_cos`)                                               lr / div_final
optax `cosine_onecycle_-        i / N      int(p N) / N; none  lr / div;              no
schedule(N)`                               at p = 1            lr / (div * div_final)
torch `OneCycleLR(N)`           i / (N-1)  (p N - 1) / (N - 1) lr / div;              two values
                                                               lr / (div * div_final)
==============================  =========  ==================  =====================  =============

So torch's equals `one_cycle(N - 1, lr, pct_start=(p * N - 1) / (N - 1), div=div, div_final=div * final_div)`:
it is one step ahead, and after its peak its step i is the step i + 1 of `one_cycle(N, lr, pct_start=p, ...)`.
fastai's is this `one_cycle`, computed on the host in double precision.
"""

import math
import numbers

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial


def _check(name: str, value, low: float, high: float = math.inf, *, above: bool = False) -> None:
    """Raise ValueError if a concrete number lies outside [low, high], or is `low` itself with `above`."""
    if isinstance(value, numbers.Real) and not (low <= value <= high and not (above and value == low)):
        limits = f"above {low:g}" if above else f"at least {low:g}"
        limits += f" and at most {high:g}" if high < math.inf else ""
        raise ValueError(f"{name} must be {limits}, got {value}")


def _float(x) -> jax.Array:
    return jnp.asarray(x, float)


def _progress(step, total_steps) -> jax.Array:
    return jnp.clip(_float(step) / _float(total_steps), 0.0, 1.0)


def _cosine(start, end, position) -> jax.Array:
    """Half a cosine from `start` at position 0 to `end` at 1: fastai's `sched_cos`.

    The two squared sines keep an end value of 1e-5 of the start exact in float32, where
    `start + (end - start) * ...` loses half a percent; the clip takes back their last bit (flat stays flat).
    """
    start, end, right = _float(start), _float(end), math.pi / 2
    value = start * jnp.sin(right * (1 - position)) ** 2 + end * jnp.sin(right * position) ** 2
    return jnp.clip(value, jnp.minimum(start, end), jnp.maximum(start, end))


def _two_cosines(total_steps, pct_start, start, middle, end) -> optax.Schedule:
    """fastai's `combined_cos`: start to middle until t = pct_start, then middle to end."""
    _check("total_steps", total_steps, 1)
    _check("pct_start", pct_start, 0, 1)

    return Partial(_combined_cosines, total_steps, pct_start, start, middle, end)


def _combined_cosines(total_steps, pct_start, start, middle, end, step):
    t, pct = _progress(step, total_steps), _float(pct_start)
    up = t / jnp.where(pct > 0, pct, 1.0)
    down = jnp.where(pct < 1, (t - pct) / jnp.where(pct < 1, 1 - pct, 1.0), 0.0)
    return jnp.where(t < pct, _cosine(start, middle, up), _cosine(middle, end, down))


def one_cycle(total_steps, lr_max, *, pct_start=0.25, div=25.0, div_final=1e5) -> optax.Schedule:
    """Learning rate from `lr_max / div` up to `lr_max` at t = `pct_start`, then down to `lr_max / div_final`.

    `pct_start` 0 starts at the peak, 1 ends at it. Source: fastai `fit_one_cycle` (its defaults); Smith and
    Topin 2018, "Super-Convergence" (https://arxiv.org/abs/1708.07120).

    >>> schedule = one_cycle(100, 1e-2)
    >>> [f"{schedule(i):.1e}" for i in (0, 25, 100)]
    ['4.0e-04', '1.0e-02', '1.0e-07']
    """
    _check("div", div, 0, above=True)
    _check("div_final", div_final, 0, above=True)
    lr = lr_max if isinstance(lr_max, numbers.Real) else _float(lr_max)
    return _two_cosines(total_steps, pct_start, lr / div, lr, lr / div_final)


def one_cycle_momentum(total_steps, moms=(0.95, 0.85, 0.95), *, pct_start=0.25) -> optax.Schedule:
    """Momentum (Adam's b1) for `one_cycle`: from `moms[0]` to `moms[1]` at t = `pct_start`, then `moms[2]`.

    It mirrors the rate: lowest where the rate is highest. Source: fastai `fit_one_cycle`.

    >>> schedule = one_cycle_momentum(100)
    >>> [f"{schedule(i):.3f}" for i in (0, 25, 100)]
    ['0.950', '0.850', '0.950']
    """
    n = len(moms) if hasattr(moms, "__len__") else 1
    if n != 3:
        raise ValueError(f"moms must be three momenta (start, at the peak of the rate, end), got {n}")
    for mom in moms:
        _check("a momentum", mom, 0, 1)
    return _two_cosines(total_steps, pct_start, *moms)


def flat_cosine(total_steps, lr, *, div_final=1e5, pct_start=0.75) -> optax.Schedule:
    """Learning rate `lr` until t = `pct_start`, then a cosine to `lr / div_final` (fastai `fit_flat_cos`).

    >>> schedule = flat_cosine(100, 1e-2)
    >>> [f"{schedule(i):.1e}" for i in (0, 75, 100)]
    ['1.0e-02', '1.0e-02', '1.0e-07']
    """
    _check("div_final", div_final, 0, above=True)
    rate = lr if isinstance(lr, numbers.Real) else _float(lr)
    return _two_cosines(total_steps, pct_start, rate, rate, rate / div_final)


def lr_range(total_steps, start=1e-7, end=10.0, kind: str = "exponential") -> optax.Schedule:
    """Learning rates of a range test, from `start` to `end`.

    `kind` "exponential" has equal ratios between steps, "linear" equal differences. Source: fastai `lr_find`
    (`SchedExp`); Smith 2017, "Cyclical Learning Rates" (https://arxiv.org/abs/1506.01186), whose test is
    linear.

    >>> schedule = lr_range(4, 1e-3, 10.)
    >>> [f"{schedule(i):.3f}" for i in range(5)]
    ['0.001', '0.010', '0.100', '1.000', '10.000']
    """
    if kind not in ("exponential", "linear"):
        raise ValueError(f"kind must be 'exponential' or 'linear', got {kind!r}")
    _check("total_steps", total_steps, 1)
    for name, value in (("start", start), ("end", end)):
        _check(name, value, 0, above=kind == "exponential")

    return Partial(_geometric if kind == "exponential" else _linear, total_steps, start, end)


def _geometric(total_steps, start, end, step):
    t = _progress(step, total_steps)
    return _float(start) ** (1 - t) * _float(end) ** t


def _linear(total_steps, start, end, step):
    t = _progress(step, total_steps)
    return _float(start) * (1 - t) + _float(end) * t


@jax.jit  # so that a Python step does not compile the loop anew at every call
def _cycle(step, n_cycles, cycle_len, cycle_mult):
    """Start and length of the cycle that holds `step`; the last cycle holds all later steps.

    A loop of sums, not a logarithm: whole numbers of steps stay exact, and a multiplier of 1 is no special
    case.
    """

    def is_later(carry):
        cycle, start, length = carry
        return (step >= start + length) & (cycle < n_cycles - 1)

    def advance(carry):
        cycle, start, length = carry
        return cycle + 1, start + length, length * cycle_mult

    return jax.lax.while_loop(is_later, advance, (_float(0), _float(0), cycle_len))[1:]


def sgdr(n_cycles, cycle_len, lr_max, *, cycle_mult=2) -> optax.Schedule:
    """`n_cycles` half cosines from `lr_max` to 0 with warm restarts.

    The first lasts `cycle_len` steps, each next one `cycle_mult` times as long. The whole lasts `cycle_len *
    (1 + cycle_mult + ... + cycle_mult ** (n_cycles - 1))` steps and stays at 0 afterwards, where torch's
    `CosineAnnealingWarmRestarts` (the same until there) begins another cycle. `cycle_mult` 1, at which
    fastai's `fit_sgdr` divides by zero, gives cycles of equal length. Source: fastai `fit_sgdr`; Loshchilov
    and Hutter 2017, "SGDR" (https://arxiv.org/abs/1608.03983).

    >>> schedule = sgdr(2, 4, 1.)
    >>> [f"{schedule(i):.2f}" for i in (0, 2, 4, 8, 12)]
    ['1.00', '0.50', '1.00', '0.50', '0.00']
    """
    _check("n_cycles", n_cycles, 1)
    _check("cycle_len", cycle_len, 1)
    _check("cycle_mult", cycle_mult, 0, above=True)

    return Partial(_restarts, n_cycles, cycle_len, cycle_mult, lr_max)


def _restarts(n_cycles, cycle_len, cycle_mult, lr_max, step):
    step = _float(step)
    start, length = _cycle(step, _float(n_cycles), _float(cycle_len), _float(cycle_mult))
    return _cosine(lr_max, 0.0, _progress(step - start, length))


def triangular(total_steps, lr_max, *, n_cycles=1, div=4.0) -> optax.Schedule:
    """`n_cycles` equal triangles from `lr_max / div` straight up to `lr_max` and straight down again.

    Smith's step size is `total_steps / (2 * n_cycles)`; he advises 2 to 10 epochs, a `div` of 3 or 4 and to
    stop at the end of a cycle. torch's `CyclicLR` is the same until t = 1 and then goes on. Source: Smith
    2017, "Cyclical Learning Rates" (https://arxiv.org/abs/1506.01186), policy "triangular".

    >>> schedule = triangular(8, 1., n_cycles=2)
    >>> [f"{schedule(i):.3f}" for i in range(9)]
    ['0.250', '0.625', '1.000', '0.625', '0.250', '0.625', '1.000', '0.625', '0.250']
    """
    _check("total_steps", total_steps, 1)
    _check("n_cycles", n_cycles, 1)
    _check("div", div, 0, above=True)

    return Partial(_triangles, total_steps, lr_max, n_cycles, div)


def _triangles(total_steps, lr_max, n_cycles, div, step):
    total, peak = _float(total_steps), _float(lr_max)
    place = jnp.clip(_float(step), 0.0, total) * _float(n_cycles) / total % 1.0
    height = 1 - jnp.abs(2 * place - 1)
    return peak * height + peak / _float(div) * (1 - height)
