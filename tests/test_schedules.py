import math
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxfast.schedules import flat_cosine, lr_range, one_cycle, one_cycle_momentum, sgdr, triangular


def run(schedule, n: int) -> np.ndarray:
    return np.asarray(jax.jit(jax.vmap(schedule))(jnp.arange(n)))


# fastai's formulas, in double precision on the host (fastai/callback/schedule.py).


def fastai_cos(start, end, pos):
    return start + (1 + math.cos(math.pi * (1 - pos))) * (end - start) / 2


def fastai_combined(pcts, pieces, t):
    limits = np.cumsum([0.0, *pcts])
    i = min(np.nonzero(t >= limits)[0].max(), len(pieces) - 1)
    start, end = pieces[i]
    return fastai_cos(start, end, (t - limits[i]) / (limits[i + 1] - limits[i]))


def fastai(n, pcts, pieces):
    return np.array([fastai_combined(pcts, pieces, i / n) for i in range(n)])


@pytest.mark.parametrize("n", [1, 2, 7, 100, 937])
@pytest.mark.parametrize("pct", [0.0, 0.25, 0.3, 0.99])
def test_one_cycle_and_flat_cosine_are_fastais(n, pct):
    pcts = (pct, 1 - pct)
    ours = run(one_cycle(n, 2e-3, pct_start=pct, div=5.0), n)
    np.testing.assert_allclose(ours, fastai(n, pcts, [(4e-4, 2e-3), (2e-3, 2e-8)]), rtol=1e-4)
    ours = run(one_cycle_momentum(n, (0.95, 0.85, 0.9), pct_start=pct), n)
    np.testing.assert_allclose(ours, fastai(n, pcts, [(0.95, 0.85), (0.85, 0.9)]), rtol=1e-6)
    ours = run(flat_cosine(n, 2e-3, pct_start=pct), n)
    np.testing.assert_allclose(ours, fastai(n, pcts, [(2e-3, 2e-3), (2e-3, 2e-8)]), rtol=1e-4)


@pytest.mark.parametrize("n_cycles, cycle_len, mult", [(1, 5, 2), (3, 10, 2), (4, 3, 3), (2, 1, 2)])
def test_sgdr_is_fastais(n_cycles, cycle_len, mult):
    total = cycle_len * (mult**n_cycles - 1) // (mult - 1)
    ours = run(sgdr(n_cycles, cycle_len, 0.3, cycle_mult=mult), total)
    # In whole steps: fastai's cumulative fractions round, so a restart may come a step late in it.
    theirs = [
        fastai_cos(0.3, 0.0, i / length)
        for length in (cycle_len * mult**k for k in range(n_cycles))
        for i in range(length)
    ]
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("mult", [1, 2])
def test_sgdr_is_torchs_until_its_end(mult):
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.3)
    theirs = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 10, mult)
    total = 10 * (3 if mult == 1 else 7)
    np.testing.assert_allclose(
        run(sgdr(3, 10, 0.3, cycle_mult=mult), total), torch_rates(optimizer, theirs, total), rtol=1e-5
    )


def torch_rates(optimizer, scheduler, n, key="lr"):
    values = []
    for i in range(n):
        values.append(optimizer.param_groups[0][key])
        if i < n - 1:
            optimizer.step()
            scheduler.step()
    return np.array(values)


@pytest.mark.parametrize("n, pct", [(100, 0.3), (40, 0.25), (10, 0.5), (333, 0.1)])
def test_one_cycle_is_torchs_after_the_documented_shift(n, pct):
    def theirs(key):
        optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0, momentum=0.9)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            0.1,
            total_steps=n,
            pct_start=pct,
            div_factor=20.0,
            final_div_factor=1e3,
            base_momentum=0.8,
        )
        return torch_rates(optimizer, scheduler, n, key)

    rates, momenta = theirs("lr"), theirs("momentum")
    shifted = (pct * n - 1) / (n - 1)
    ours = run(one_cycle(n - 1, 0.1, pct_start=shifted, div=20.0, div_final=2e4), n)
    np.testing.assert_allclose(ours, rates, rtol=1e-4)
    ours = run(one_cycle_momentum(n - 1, (0.95, 0.8, 0.95), pct_start=shifted), n)
    np.testing.assert_allclose(ours, momenta, rtol=1e-5)
    ours, fall = run(one_cycle(n, 0.1, pct_start=pct, div=20.0, div_final=2e4), n + 1), math.ceil(pct * n)
    np.testing.assert_allclose(ours[fall + 1 :], rates[fall:], rtol=1e-4)
    assert abs(ours[1] - rates[1]) > 1e-5  # without the shift they differ


def test_one_cycle_is_optaxs_where_the_peak_is_on_a_step():
    theirs = optax.cosine_onecycle_schedule(100, 0.1, pct_start=0.3, div_factor=20.0, final_div_factor=10.0)
    np.testing.assert_allclose(
        run(one_cycle(100, 0.1, pct_start=0.3, div=20.0, div_final=200.0), 110), run(theirs, 110), rtol=1e-4
    )


def test_triangular_is_torchs():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    theirs = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.1, 0.4, step_size_up=5, cycle_momentum=False)
    np.testing.assert_allclose(
        run(triangular(30, 0.4, n_cycles=3), 30), torch_rates(optimizer, theirs, 30), rtol=1e-5
    )


@pytest.mark.parametrize(
    "schedule, table",  # worked by hand
    [
        (
            one_cycle(8, 1.0, pct_start=0.25, div=10.0, div_final=100.0),
            {0: 0.1, 1: 0.55, 2: 1.0, 5: 0.505, 8: 0.01, 99: 0.01},
        ),
        (one_cycle(1, 1.0), {0: 0.04, 1: 1e-5, 2: 1e-5}),
        (one_cycle(4, 1.0, pct_start=0), {-1: 1.0, 0: 1.0, 2: 0.500005, 4: 1e-5}),
        (one_cycle(4, 1, pct_start=1), {0: 0.04, 2: 0.52, 4: 1.0, 5: 1.0}),
        (one_cycle_momentum(8), {0: 0.95, 1: 0.9, 2: 0.85, 5: 0.9, 8: 0.95}),
        (flat_cosine(8, 1.0, div_final=10.0), {0: 1.0, 6: 1.0, 7: 0.55, 8: 0.1}),
        (flat_cosine(8, 1.0, pct_start=1.0), {0: 1.0, 8: 1.0}),
        (lr_range(8), {0: 1e-7, 4: 1e-3, 8: 10.0, 9: 10.0}),
        (lr_range(4, 0.0, 2.0, "linear"), {0: 0.0, 1: 0.5, 4: 2.0, 7: 2.0}),
        (sgdr(3, 2, 1.0, cycle_mult=1), {0: 1.0, 1: 0.5, 2: 1.0, 3: 0.5, 4: 1.0, 5: 0.5, 6: 0.0, 7: 0.0}),
        (sgdr(2, 2, 1.0, cycle_mult=2), {0: 1.0, 1: 0.5, 2: 1.0, 4: 0.5, 6: 0.0, 100: 0.0}),
        (triangular(4, 1.0), {0: 0.25, 1: 0.625, 2: 1.0, 3: 0.625, 4: 0.25, 5: 0.25}),
    ],
)
def test_values_by_hand(schedule, table):
    jitted = jax.jit(schedule)
    for step, value in table.items():
        np.testing.assert_allclose(schedule(step), value, rtol=2e-6, err_msg=f"step {step}")
        np.testing.assert_allclose(jitted(step), value, rtol=2e-6, err_msg=f"step {step}")


@jax.jit  # compiled once: every argument is traced
def traced(step, n, pct, lr, div, div_final):
    cycle = one_cycle(n, lr, pct_start=pct, div=div, div_final=div_final)
    # With one divisor for both ends the rate's place between its bounds is the momentum's, upside down.
    rate_place = one_cycle(n, 1.0, pct_start=pct, div=2.0, div_final=2.0)(step) * 2 - 1
    mom = one_cycle_momentum(n, pct_start=pct)(step)
    return cycle(step), mom, rate_place, cycle(0), cycle(n), cycle(n + abs(step))


@settings(max_examples=200, deadline=None)
@given(
    st.integers(1, 50_000),
    st.integers(0, 1000).map(lambda k: k / 1000),
    st.floats(1e-6, 10),
    st.floats(1, 1e3),
    st.floats(1, 1e6),
    st.data(),
)
def test_properties(n, pct, lr, div, div_final, data):
    step = data.draw(st.integers(-5, 2 * n))
    value, mom, rate_place, first, last, later = traced(step, n, pct, lr, div, div_final)
    assert value.dtype == mom.dtype == jnp.float32 and value.shape == ()
    assert lr / max(div, div_final) * (1 - 1e-6) <= value <= lr * (1 + 1e-6)
    assert 0.85 - 1e-6 <= mom <= 0.95 + 1e-6
    np.testing.assert_allclose(first, lr if pct == 0 else lr / div, rtol=1e-6)
    np.testing.assert_allclose(last, lr if pct == 1 else lr / div_final, rtol=1e-6)
    assert later == last
    np.testing.assert_allclose(rate_place, (0.95 - mom) / 0.1, atol=2e-5)


numeric_arguments = [
    (
        one_cycle,
        dict(total_steps=20, lr_max=0.1, pct_start=0.3, div=25.0, div_final=1e3),
        dict(pct_start=[0.0, 0.4, 1.0]),
    ),
    (
        flat_cosine,
        dict(total_steps=20, lr=0.1, pct_start=0.3, div_final=1e3),
        dict(pct_start=[0.0, 0.4, 1.0]),
    ),
    (lr_range, dict(total_steps=20, start=1e-3, end=1.0), {}),
    (sgdr, dict(n_cycles=2, cycle_len=4, lr_max=0.1, cycle_mult=2), dict(cycle_mult=[1, 2, 3])),
    (triangular, dict(total_steps=20, lr_max=0.1, n_cycles=2, div=4.0), {}),
]
cases = [(f, args, name, special.get(name)) for f, args, special in numeric_arguments for name in args]


@pytest.mark.parametrize(
    "make, arguments, name, values", cases, ids=[f"{c[0].__name__}-{c[2]}" for c in cases]
)
def test_vmap_over_every_argument(make, arguments, name, values):
    values = values or [arguments[name] * k for k in (1, 2, 3)]
    steps = jnp.arange(25)

    @jax.jit
    def curve(value):
        return jax.vmap(make(**{**arguments, name: value}))(steps)

    ours = jax.vmap(curve)(jnp.asarray(values))
    np.testing.assert_allclose(
        ours, [run(make(**{**arguments, name: v}), 25) for v in values], rtol=2e-5, atol=1e-8
    )


def test_vmap_over_momenta_and_all_arguments_at_once():
    moms = jnp.array([[0.95, 0.85, 0.95], [0.8, 0.7, 0.8]])
    ours = jax.vmap(lambda moms, n, pct: one_cycle_momentum(n, tuple(moms), pct_start=pct)(5))
    expected = [
        one_cycle_momentum(20, pct_start=0.25)(5),
        one_cycle_momentum(10, (0.8, 0.7, 0.8), pct_start=1.0)(5),
    ]
    np.testing.assert_allclose(ours(moms, jnp.array([20, 10]), jnp.array([0.25, 1.0])), expected, rtol=1e-6)


@pytest.mark.parametrize("make", [one_cycle, flat_cosine, lambda n, lr: sgdr(2, n, lr), triangular])
def test_a_rate_per_group(make):
    rates = np.array([1e-3, 1e-2, 1e-1], np.float32)
    grouped = run(make(10, rates), 12)
    assert grouped.shape == (12, 3)
    np.testing.assert_allclose(
        grouped, np.stack([run(make(10, float(r)), 12) for r in rates], 1), rtol=1e-5, atol=1e-9
    )


@pytest.mark.parametrize("pct", [0, 1])
def test_no_nan_arises_at_the_edges(pct):
    with jax.debug_nans(True):  # as those who look for their own NaN run it
        for step in (0, 4):
            assert one_cycle(4, 1.0, pct_start=pct)(step) > 0


def test_sgdr_restarts_on_the_exact_step():
    schedule = sgdr(12, 7, 1.0, cycle_mult=3)
    starts = [7 * (3**k - 1) // 2 for k in range(12)]  # up to step 620,011
    np.testing.assert_array_equal(jax.vmap(schedule)(jnp.array(starts)), 1.0)
    assert (jax.vmap(schedule)(jnp.array(starts[1:]) - 1) < 0.06).all()


def test_schedules_drive_optax():
    tx = optax.sgd(one_cycle(4, 1.0, div=10.0))
    state, params = tx.init(jnp.zeros(2)), jnp.zeros(2)
    for _ in range(2):
        updates, state = tx.update(jnp.ones(2), state)
        params = optax.apply_updates(params, updates)
    np.testing.assert_allclose(params, -1.1, rtol=1e-6)  # 0.1 at t = 0 and the peak 1 at t = 1/4


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: one_cycle(0, 0.1), "total_steps must be at least 1, got 0"),
        (lambda: one_cycle(10, 0.1, pct_start=1.5), "pct_start must be at least 0 and at most 1, got 1.5"),
        (lambda: one_cycle(10, 0.1, pct_start=math.nan), "pct_start must be"),
        (lambda: one_cycle(10, 0.1, div=0), "div must be above 0, got 0"),
        (lambda: flat_cosine(10, 0.1, div_final=-1.0), "div_final must be above 0"),
        (lambda: one_cycle_momentum(10, (0.95, 0.85)), "three momenta .* got 2"),
        (lambda: one_cycle_momentum(10, (0.95, 85, 0.95)), "at most 1, got 85"),
        (lambda: lr_range(10, kind="cosine"), "'exponential' or 'linear', got 'cosine'"),
        (lambda: lr_range(10, start=0.0), "start must be above 0"),
        (lambda: sgdr(0, 5, 0.1), "n_cycles must be at least 1"),
        (lambda: sgdr(2, 0, 0.1), "cycle_len must be at least 1"),
        (lambda: sgdr(2, 5, 0.1, cycle_mult=0), "cycle_mult must be above 0"),
        (lambda: triangular(10, 0.1, n_cycles=0), "n_cycles must be at least 1"),
    ],
)
def test_errors(make, message):
    with pytest.raises(ValueError, match=message) as error:
        make()
    assert "\n" not in str(error.value)


def test_import_loads_no_flax():
    code = "import sys, jaxfast.schedules, jaxfast.optim; print({'flax', 'grain', 'rich'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
