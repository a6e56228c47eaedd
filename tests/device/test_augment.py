"""Random changes of images on the device: the CPU's within a grey level, with what lies in the images."""

import jax
import numpy as np
import pytest

from jaxfast.augment import image_augment

from .parity import accelerator, host, on

COUNT, STORED, SIZE = 8, 20, 16


def examples(target):
    rng = np.random.default_rng(0)
    targets = {
        None: rng.integers(0, 3, COUNT).astype(np.int32),
        "mask": rng.integers(0, 9, (COUNT, STORED, STORED), np.uint8),
        "points": rng.uniform(-1, 1, (COUNT, 5, 2)).astype(np.float32),
    }
    return {"image": rng.integers(0, 256, (COUNT, STORED, STORED, 3), np.uint8), "target": targets[target]}


# A mask is read at the nearest pixel: where two are as near, rounding chooses one.
CHANGES = {
    "defaults": (None, {}, 0.0),
    "symmetries and erasing": (None, {"flip_vert": True, "erase": 1.0, "rotate": 180.0}, 0.0),
    "masks": ("mask", {"rotate": 45.0, "warp": 0.35}, 0.002),
    "points": ("points", {"zoom": 2.0, "warp": 0.35}, 1e-4),
}
"""What of the target lies in the image, settings, and how far targets may be apart: a share of pixels, or a length."""


@pytest.mark.parametrize("name", CHANGES)
def test_augmentation_equals_the_cpus_within_a_grey_level(name):
    target, settings, tolerance = CHANGES[name]
    augment, batch = image_augment(SIZE, target=target, **settings), examples(target)
    ours, theirs = (on(device, augment, jax.random.key(3), batch) for device in (accelerator(), host()))
    assert ours["image"].shape == (COUNT, SIZE, SIZE, 3)
    still = batch["image"][:, 2:-2, 2:-2]
    assert np.abs(ours["image"] - still).mean((1, 2, 3)).min() > 1  # every image is changed, if only cut elsewhere
    np.testing.assert_allclose(ours["image"], theirs["image"], rtol=0, atol=1)
    if target == "points":
        np.testing.assert_allclose(ours["target"], theirs["target"], rtol=0, atol=tolerance)
    else:
        assert ours["target"].dtype == batch["target"].dtype
        assert np.mean(ours["target"] != theirs["target"]) <= tolerance
