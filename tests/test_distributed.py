"""The same numbers on 1 device, on 8, and on 2 processes of 4 each, in processes of their own."""

import jobs
import numpy as np
import pytest

LAYOUTS = {"1x1": (1, 1), "1x8": (1, 8), "2x4": (2, 4)}


def numbers(folder, layout, **options):
    processes, devices = LAYOUTS[layout]
    out = folder / f"{layout}.npz"
    jobs.run("numbers", processes=processes, devices=devices, out=str(out), **options)
    return dict(np.load(out))


def apart(a, b):
    return np.linalg.norm(a - b) / np.linalg.norm(b)


@pytest.mark.parametrize("resident", [True, False])
def test_two_processes_compute_what_one_does(tmp_path, resident):
    one, two = (numbers(tmp_path, layout, resident=resident) for layout in ("1x8", "2x4"))
    assert apart(two["gradient"], one["gradient"]) < 1e-4
    np.testing.assert_allclose(two["losses"], one["losses"], rtol=1e-4)
    assert one["losses"][-1] < one["losses"][0]


@pytest.mark.slow
def test_resnet18_on_three_layouts(tmp_path):
    # at a rate where rounding does not grow: at .01 it is 1e-6 for five steps and a hundredth after ten
    runs = {layout: numbers(tmp_path, layout, full=True, lr=0.001) for layout in LAYOUTS}
    for layout in ("1x8", "2x4"):
        assert apart(runs[layout]["gradient"], runs["1x1"]["gradient"]) < 1e-4
        np.testing.assert_allclose(runs[layout]["losses"], runs["1x1"]["losses"], rtol=1e-4)


@pytest.mark.slow
def test_resnet18_in_float64(tmp_path):
    options = {"full": True, "dropout": 0.0, "augment": False, "x64": 1, "steps": 2}
    runs = {layout: numbers(tmp_path, layout, **options) for layout in LAYOUTS}
    for layout in ("1x8", "2x4"):
        assert apart(runs[layout]["gradient"], runs["1x1"]["gradient"]) < 1e-9


def test_groups_decide_not_devices(tmp_path):
    few, many, others = (
        numbers(tmp_path, layout, groups=groups) for layout, groups in (("1x1", 4), ("1x8", 4), ("1x8", 8))
    )
    assert apart(many["gradient"], few["gradient"]) < 1e-4
    assert apart(others["gradient"], few["gradient"]) > 1e-2  # other groups are another model


@pytest.mark.slow
def test_a_sharded_state_gives_the_same_numbers(tmp_path):
    whole, split = (numbers(tmp_path, "1x8", full=True, steps=3, shard=shard) for shard in (False, True))
    assert apart(split["gradient"], whole["gradient"]) < 1e-4
    np.testing.assert_allclose(split["losses"], whole["losses"], rtol=1e-4)
