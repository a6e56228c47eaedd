import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from skimage import data, transform

from jaxfast.augment import (
    center_crop,
    flip_matrix,
    image_augment,
    move_points,
    random_erasing,
    relight,
    resample,
    resample_mask,
    rotate_matrix,
    turn_matrix,
    warp_matrix,
    zoom_matrix,
)
from jaxfast.mix import compose

NOTHING = dict(flip=0.0, rotate=0.0, zoom=1.0, lighting=0.0, warp=0.0)
TYPES = (jnp.bfloat16, jnp.float32)
# fastai's Warp: where the corners (-1, -1), (-1, 1), (1, -1), (1, 1) of the input end up
CORNERS = np.array([[-1, -1], [-1, 1], [1, -1], [1, 1]], float)


def warped_corners(x, y):
    return np.array([[-1 - y, -1 - x], [-1 + y, 1 + x], [1 + y, -1 + x], [1 - y, 1 - x]])


@pytest.fixture(scope="module")
def cat():
    """A photograph, 60 by 80 pixels."""
    small = transform.resize(data.chelsea()[:300, 25:425], (60, 80), anti_aliasing=True)
    return np.round(255 * small).astype(np.float32)


@pytest.fixture(scope="module")
def half(cat):
    return (cat.shape[1] - 1) / 2, (cat.shape[0] - 1) / 2


def ruler(count, size):
    """Images whose channels are the column, the row and a constant: resampled, they tell where they were read."""
    row, column = np.mgrid[:size, :size]
    return np.tile(np.stack([column, row, np.full_like(row, 128)], -1).astype(np.uint8), (count, 1, 1, 1))


def read_positions(images, size):
    """Columns and rows, from the centre, at which the middle pixels of resampled rulers were read."""
    middle = slice(size // 2 - 8, size // 2 + 8)
    return np.asarray(images, np.float64)[:, middle, middle, :2] - (size - 1) / 2


def linear_parts(images, size):
    """The (2, 2) matrices and (2,) shifts of affinely resampled rulers, by least squares."""
    read = read_positions(images, size).reshape(len(images), -1, 2)
    offset = np.arange(16) + (size // 2 - 8) - (size - 1) / 2
    y, x = np.meshgrid(offset, offset, indexing="ij")
    places = np.stack([x.ravel(), y.ravel(), np.ones(256)], 1)
    fitted = np.stack([np.linalg.lstsq(places, one, rcond=None)[0].T for one in read])
    return fitted[:, :, :2], fitted[:, :, 2]


# --- each transform against an independent implementation


@pytest.mark.parametrize(("channels", "dtype"), [(1, np.uint8), (3, np.float32), (4, np.uint8)])
def test_nothing_asked_gives_the_very_images(channels, dtype):
    images = np.random.default_rng(0).uniform(0, 255, (4, 7, 10, channels)).astype(dtype)
    output = jax.jit(image_augment(**NOTHING))(jax.random.key(0), {"image": images})["image"]
    assert output.dtype == jnp.float32
    np.testing.assert_array_equal(output, images)


def test_nothing_happens_where_all_chances_are_zero():
    images = ruler(4, 12)
    augment = jax.jit(image_augment(flip=0, p_affine=0, p_lighting=0))
    np.testing.assert_array_equal(augment(jax.random.key(0), {"image": images})["image"], images)


def test_flip_is_numpys(cat):
    output = jax.jit(image_augment(**NOTHING | {"flip": 1}))(jax.random.key(0), {"image": cat[None]})["image"]
    np.testing.assert_array_equal(output[0], cat[:, ::-1])
    np.testing.assert_array_equal(resample(cat, flip_matrix(True), cat.shape[:2]), cat[:, ::-1])


@pytest.mark.parametrize("degrees", [-170, -30, -5, 10, 45, 90])
def test_rotation_is_skimages(cat, degrees):
    ours = resample(cat, rotate_matrix(degrees), cat.shape[:2])
    theirs = transform.rotate(cat, degrees, order=1, mode="reflect", preserve_range=True)
    np.testing.assert_allclose(ours, theirs, atol=0.02)


@pytest.mark.parametrize(("factor", "x", "y"), [(1.1, 0, 0), (1.5, 1, -1), (2, -0.3, 0.8)])
def test_zoom_shows_the_part_that_fastai_shows(cat, half, factor, x, y):
    ours = resample(cat, zoom_matrix(factor, x, y, half), cat.shape[:2])
    theta = torch.tensor([[[1 / factor, 0, (1 - 1 / factor) * x], [0, 1 / factor, (1 - 1 / factor) * y]]])
    np.testing.assert_allclose(ours, torch_resample(cat, theta.double()), atol=0.02)


@pytest.mark.parametrize(("x", "y"), [(0.2, 0), (0, -0.2), (0.15, 0.2), (-0.35, 0.35)])
def test_warp_takes_the_corners_where_fastai_does(cat, half, x, y):
    ours = resample(cat, warp_matrix(x, y, half), cat.shape[:2])
    scale, shift = np.array(half), np.array(half)
    move = transform.ProjectiveTransform.from_estimate(warped_corners(x, y) * scale + shift, CORNERS * scale + shift)
    theirs = transform.warp(cat, move, order=1, mode="reflect", preserve_range=True)
    np.testing.assert_allclose(ours, theirs, atol=0.05)


def torch_resample(image, theta, perspective=None):
    """fastai's resample: torch's affine grid, a perspective of its coordinates, and grid_sample."""
    pixels = torch.tensor(image, dtype=torch.float64).permute(2, 0, 1)[None]
    coordinates = torch.nn.functional.affine_grid(theta, list(pixels.shape), align_corners=True)
    if perspective is not None:
        homogeneous = torch.cat([coordinates, torch.ones_like(coordinates[..., :1])], -1) @ perspective.T
        coordinates = homogeneous[..., :2] / homogeneous[..., 2:]
    read = torch.nn.functional.grid_sample(pixels, coordinates, padding_mode="reflection", align_corners=True)
    return read[0].permute(1, 2, 0).numpy()


def test_one_resample_of_all_equals_fastais_chain(cat, half):
    """Flip, rotation and zoom as fastai multiplies them, then its perspective of the coordinates."""
    degrees, factor, x, y = 8.0, 1.08, 0.1, -0.15
    matrix = warp_matrix(x, y, half) @ flip_matrix(True) @ rotate_matrix(degrees)
    ours = resample(cat, matrix @ zoom_matrix(factor, 0.5, -0.2, half), cat.shape[:2])

    angle, aspect = -math.radians(degrees), half[1] / half[0]  # fastai's rotation is clockwise
    flip = np.diag([-1.0, 1, 1])
    turn = np.array([[math.cos(angle), math.sin(angle), 0], [-math.sin(angle), math.cos(angle), 0], [0, 0, 1]])
    turn = turn * np.array([[1, aspect, 1], [1 / aspect, 1, 1], [1, 1, 1]])
    scale = 1 / factor
    zoom = np.array([[scale, 0, (1 - scale) * 0.5], [0, scale, (1 - scale) * -0.2], [0, 0, 1]])
    rows, right = [], []
    for (to_x, to_y), (u, v) in zip(CORNERS, warped_corners(x, y), strict=True):
        rows += [[u, v, 1, 0, 0, 0, -to_x * u, -to_x * v], [0, 0, 0, u, v, 1, -to_y * u, -to_y * v]]
        right += [to_x, to_y]
    perspective = np.append(np.linalg.solve(rows, right), 1).reshape(3, 3)
    theirs = torch_resample(cat, torch.tensor((flip @ turn @ zoom)[None, :2]), torch.tensor(perspective))
    np.testing.assert_allclose(ours, theirs, atol=0.05)


@pytest.mark.parametrize(("brightness", "contrast"), [(0.6, 1.0), (0.5, 0.8), (0.42, 1.25)])
def test_lighting_is_fastais_in_logit_space(cat, brightness, contrast):
    share = torch.tensor(cat / 255, dtype=torch.float64).clamp(1e-7, 1 - 1e-7)
    shift = torch.logit(torch.tensor(brightness, dtype=torch.float64))
    theirs = 255 * torch.sigmoid((torch.logit(share) + shift) * contrast)
    np.testing.assert_allclose(relight(cat, brightness, contrast), theirs, atol=0.01)


def test_relight_without_change_gives_the_very_image(cat):
    np.testing.assert_array_equal(relight(cat, 0.5, 1.0), cat)


# --- what image_augment draws


def changed(**options):
    """256 rulers of 64 px with one kind of change alone."""
    augment = jax.jit(image_augment(**NOTHING | options))
    return np.asarray(augment(jax.random.key(3), {"image": ruler(256, 64)})["image"])


def test_flips_happen_at_their_rate():
    linear, _ = linear_parts(changed(flip=0.3), 64)
    assert set(np.round(linear[:, 0, 0]).astype(int)) == {-1, 1}
    assert abs((linear[:, 0, 0] < 0).mean() - 0.3) < 0.1


def test_rotations_fill_their_range_at_their_rate():
    linear, shift = linear_parts(changed(rotate=10, p_affine=0.75), 64)
    angles = np.degrees(np.arctan2(linear[:, 1, 0], linear[:, 0, 0]))
    np.testing.assert_allclose(np.linalg.det(linear), 1, atol=1e-3)
    np.testing.assert_allclose(shift, 0, atol=1e-3)
    assert 9 < angles.max() <= 10.01 and -10.01 <= angles.min() < -9
    assert abs((np.abs(angles) > 1e-4).mean() - 0.75) < 0.1


def test_zooms_fill_their_range_about_random_points():
    linear, shift = linear_parts(changed(zoom=1.5, p_affine=0.75), 64)
    factors = 1 / linear[:, 0, 0]
    assert 1.45 < factors.max() <= 1.501 and factors.min() > 0.999
    assert abs((factors > 1.0001).mean() - 0.75) < 0.1
    room = (1 - linear[:, 0, 0]) * 31.5  # what is shown stays inside of the image
    assert (np.abs(shift) <= room[:, None] + 0.01).all()
    assert (shift[:, 0] > 1).any() and (shift[:, 0] < -1).any() and (shift[:, 1] > 1).any()


def test_warps_tilt_both_ways_on_both_axes():
    images = changed(warp=0.2, p_affine=0.75)
    read = read_positions(images, 64)
    taller = read[:, -1, 0, 1] - read[:, 0, 0, 1] - (read[:, -1, -1, 1] - read[:, 0, -1, 1])
    wider = read[:, 0, -1, 0] - read[:, 0, 0, 0] - (read[:, -1, -1, 0] - read[:, -1, 0, 0])
    for tilt in (taller, wider):
        assert tilt.max() > 1 and tilt.min() < -1
        assert 0.1 < (np.abs(tilt) < 0.01).mean() < 0.4  # a quarter is left alone


def test_lighting_fills_its_range_at_its_rate():
    images = np.tile(np.array([64, 192], np.uint8).reshape(1, 2, 1, 1), (256, 1, 2, 1))
    augment = jax.jit(image_augment(**NOTHING | {"lighting": 0.2}))
    output = np.asarray(augment(jax.random.key(0), {"image": images})["image"], np.float64)[:, :, 0, 0] / 255
    logits, before = np.log(output / (1 - output)), np.log(np.array([64, 192]) / (255 - np.array([64, 192])))
    contrast = (logits[:, 1] - logits[:, 0]) / (before[1] - before[0])
    brightness = 1 / (1 + np.exp(before[0] - logits[:, 0] / contrast))
    assert 0.8 - 1e-4 <= contrast.min() < 0.82 and 1.22 < contrast.max() <= 1.25 + 1e-4
    assert 0.4 - 1e-4 <= brightness.min() < 0.42 and 0.58 < brightness.max() <= 0.6 + 1e-4
    assert abs((np.abs(contrast - 1) > 1e-4).mean() - 0.75) < 0.1
    assert abs((np.abs(brightness - 0.5) > 1e-4).mean() - 0.75) < 0.1


def test_erasing_replaces_one_rectangle():
    before = ruler(256, 64)
    erased = (changed(erase=0.5) != before).any(-1)
    happened = erased.any((1, 2))
    assert abs(happened.mean() - 0.5) < 0.1
    areas = erased.mean((1, 2))
    assert 0.2 < areas.max() <= 0.32
    for mask in erased[happened]:
        assert (mask | ~(mask.any(1)[:, None] & mask.any(0))).all()  # rows times columns: a rectangle


def test_crops_are_windows_of_the_larger_image_and_reach_all_corners():
    augment = jax.jit(image_augment(8, **NOTHING))
    output = np.asarray(augment(jax.random.key(0), {"image": ruler(256, 11)})["image"])
    assert output.shape == (256, 8, 8, 3)
    corners = output[:, 0, 0, :2].astype(int)
    for image, (left, top) in zip(output, corners, strict=True):
        np.testing.assert_array_equal(image, ruler(1, 11)[0, top : top + 8, left : left + 8])
    assert {tuple(corner) for corner in corners} == {(x, y) for x in range(4) for y in range(4)}


def test_turning_one_transform_off_leaves_the_draws_of_the_others():
    def angles(**options):
        linear, _ = linear_parts(changed(rotate=10, **options), 64)
        return np.arctan2(linear[:, 1, 0], linear[:, 0, 0])

    np.testing.assert_allclose(angles(), angles(zoom=1.3), atol=1e-4)


# --- keys, rows, devices


@pytest.fixture(scope="module")
def batch():
    images = np.random.default_rng(1).integers(0, 256, (16, 20, 20, 3)).astype(np.uint8)
    return {"image": images, "target": np.arange(16), "mask": np.ones(16, bool)}


@pytest.fixture(scope="module")
def augment():
    return jax.jit(image_augment(16, rotate=40, zoom=1.4, erase=0.5))


def test_the_key_decides(augment, batch):
    once, again = (augment(jax.random.key(5), batch)["image"] for _ in range(2))
    other = augment(jax.random.key(6), batch)["image"]
    np.testing.assert_array_equal(once, again)
    assert all(not np.array_equal(once[i], other[i]) for i in range(16))


def test_equal_images_of_a_batch_change_differently(augment, batch):
    same = batch | {"image": batch["image"][:1].repeat(16, 0)}
    output = np.asarray(augment(jax.random.key(5), same)["image"])
    assert len({image.tobytes() for image in output}) == 16


def test_a_row_depends_on_the_key_and_its_number_alone(augment, batch):
    whole = augment(jax.random.key(5), batch)["image"]
    other = batch["image"][::-1].copy()
    other[3] = batch["image"][3]
    np.testing.assert_array_equal(augment(jax.random.key(5), batch | {"image": other})["image"][3], whole[3])
    # A shorter batch is another program: the same up to rounding.
    short = {name: entry[:5] for name, entry in batch.items()}
    np.testing.assert_allclose(augment(jax.random.key(5), short)["image"], whole[:5], atol=0.1)


def test_a_batch_split_over_devices_gives_the_same_images_without_communication(augment, batch):
    devices = jax.devices()
    assert len(devices) == 8
    sharding = NamedSharding(Mesh(np.array(devices), ("data",)), PartitionSpec("data"))
    split = jax.device_put(batch, sharding)
    program = augment.lower(jax.random.key(5), split).compile()
    text = program.as_text()
    assert not [name for name in ("all-gather", "all-reduce", "all-to-all", "collective-permute") if name in text]
    output = program(jax.random.key(5), split)["image"]
    assert output.sharding.is_equivalent_to(sharding, 4)
    np.testing.assert_allclose(output, augment(jax.random.key(5), batch)["image"], atol=0.1)


def test_other_entries_pass_through(augment, batch):
    output = augment(jax.random.key(0), batch)
    assert set(output) == set(batch)
    np.testing.assert_array_equal(output["target"], batch["target"])
    np.testing.assert_array_equal(output["mask"], batch["mask"])


@pytest.mark.parametrize("channels", [1, 3, 4, 5])
def test_bytes_are_read_as_floats_are(channels):
    images = np.random.default_rng(0).integers(0, 256, (3, 20, 22, channels)).astype(np.uint8)
    augment = jax.jit(image_augment(17, warp=0.3))
    read, floats = (augment(jax.random.key(1), {"image": images.astype(dtype)})["image"] for dtype in ("u1", "f4"))
    np.testing.assert_allclose(read, floats, atol=2e-3)


@pytest.mark.parametrize(("dtype", "read"), [("u1", "u32[2,17,17]"), ("f4", "f32[2,17,17,3]")])
def test_the_bytes_of_a_pixel_are_read_at_once(dtype, read):
    """Four reads a pixel, and of words: what makes the augmentation cheap on a TPU."""
    program = jax.make_jaxpr(image_augment(17))(jax.random.key(0), {"image": jnp.zeros((2, 20, 22, 3), dtype)})
    assert str(program).count(f"{read} = gather") == 4


def test_half_precision_images_are_read_at_full_precision_places():
    linear = jax.jit(image_augment(**NOTHING | {"rotate": 10}))
    images = ruler(1, 64)  # whole numbers up to 128 are exact in bf16; places at eighths of a pixel are not
    half, full = (linear(jax.random.key(0), {"image": jnp.asarray(images, dtype)})["image"] for dtype in TYPES)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, full, atol=1e-3)


WILD = jax.jit(image_augment(9, rotate=180, zoom=2, lighting=0.9, warp=0.35, p_affine=1, p_lighting=1, erase=1))


@settings(deadline=None, max_examples=60)
@given(images=arrays(np.uint8, (3, 12, 11, 2)), seed=st.integers(0, 2**32 - 1))
def test_the_wildest_settings_stay_in_range(images, seed):
    output = np.asarray(WILD(jax.random.key(seed), {"image": images})["image"])
    assert output.shape == (3, 9, 9, 2)
    assert np.isfinite(output).all() and output.min() >= 0 and output.max() <= 255


@settings(deadline=None, max_examples=60)
@given(
    value=st.floats(0, 255, width=32),
    degrees=st.floats(-180, 180),
    x=st.floats(-0.35, 0.35),
    y=st.floats(-0.35, 0.35),
)
def test_a_flat_image_stays_flat_under_any_geometry(value, degrees, x, y):
    matrix = warp_matrix(x, y, (4.5, 5.5)) @ rotate_matrix(degrees)
    output = resample(jnp.full((12, 10, 1), value), matrix, (12, 10))
    np.testing.assert_allclose(output, value, rtol=1e-5, atol=1e-5)


# --- centre crop and errors


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_center_crop_takes_the_middle(dtype):
    image = np.arange(2 * 7 * 6).reshape(2, 7, 6, 1).astype(dtype)
    output = center_crop(4)({"image": image, "target": 1})
    np.testing.assert_array_equal(output["image"], image[:, 1:5, 1:5])
    assert output["image"].dtype == dtype and output["target"] == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"flip": 1.5}, "flip is 1.5: give a number from 0 to 1"),
        ({"rotate": -3}, "rotate is -3: give a number from 0 to 180"),
        ({"zoom": 0.9}, "zoom is 0.9: give a number from 1 to 10"),
        ({"warp": 0.5}, "warp is 0.5: give a number from 0 to 0.35"),
        ({"lighting": 1}, "lighting is 1: give a number from 0 to 0.99"),
        ({"erase": float("nan")}, "erase is nan: give a number from 0 to 1"),
        ({"size": 1}, "size is 1: give at least 2 pixels"),
    ],
)
def test_settings_out_of_range_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        image_augment(**options)


@pytest.mark.parametrize("function", [lambda b: image_augment(32)(jax.random.key(0), b), center_crop(32)])
def test_unfit_batches_are_refused(function):
    with pytest.raises(ValueError, match="20x40 pixels are smaller than the size 32: presize them larger"):
        function({"image": np.zeros((1, 20, 40, 3))})
    with pytest.raises(ValueError, match="no entry 'image', only \\['text'\\]"):
        function({"text": np.zeros(3)})
    with pytest.raises(ValueError, match=r"shape \(40, 40, 3\): give \(batch, height, width, channels\)"):
        function({"image": np.zeros((40, 40, 3))})


def test_flip_vert_gives_the_eight_symmetries_of_a_square():
    image = np.random.default_rng(0).integers(0, 256, (6, 6, 3)).astype(np.uint8)
    augment = image_augment(flip_vert=True, rotate=0, zoom=1, warp=0, lighting=0)
    images = np.asarray(jax.jit(augment)(jax.random.key(0), {"image": np.stack([image] * 64)})["image"])
    symmetries = [np.rot90(flipped, turns) for flipped in (image, image[:, ::-1]) for turns in range(4)]
    found = [[np.array_equal(result, symmetry) for symmetry in symmetries] for result in images]
    assert all(sum(row) == 1 for row in found) and np.any(found, axis=0).all()
    with pytest.raises(ValueError, match="flip_vert turns square images, these are 4x6"):
        augment(jax.random.key(0), {"image": np.zeros((1, 4, 6, 3), np.uint8)})


# --- masks and key-points move with their image


ARROW = np.array([[0, 1, 2], [3, 4, 5], [6, 7, 8]], np.uint8)  # every pixel tells where it was


@pytest.mark.parametrize(
    ("matrix", "moved"),
    [
        (flip_matrix(False), ARROW),
        (flip_matrix(True), [[2, 1, 0], [5, 4, 3], [8, 7, 6]]),
        (turn_matrix(1), [[2, 5, 8], [1, 4, 7], [0, 3, 6]]),
        (turn_matrix(2), [[8, 7, 6], [5, 4, 3], [2, 1, 0]]),
        (rotate_matrix(90), [[2, 5, 8], [1, 4, 7], [0, 3, 6]]),  # counter-clockwise
        (rotate_matrix(-90), [[6, 3, 0], [7, 4, 1], [8, 5, 2]]),
    ],
)
def test_masks_and_points_by_hand(matrix, moved):
    mask = resample_mask(jnp.asarray(ARROW), matrix, (3, 3))
    assert mask.dtype == jnp.uint8
    np.testing.assert_array_equal(mask, moved)
    centres = [[2 * (x + 0.5) / 3 - 1, 2 * (y + 0.5) / 3 - 1] for y in range(3) for x in range(3)]
    where = np.asarray(move_points(jnp.array(centres), matrix, (3, 3), (3, 3)))
    column, row = np.round((where + 1) / 2 * 3 - 0.5).astype(int).T
    np.testing.assert_array_equal(np.array(moved)[row, column], ARROW.ravel())
    np.testing.assert_allclose(where, 2 * (np.stack([column, row], -1) + 0.5) / 3 - 1, atol=1e-6)


def blobs(count, size, seed=0):
    """Smooth pictures in 0..255, whose halves above 127 are masks without specks."""
    from scipy.ndimage import gaussian_filter

    noise = np.random.default_rng(seed).normal(size=(count, *size))
    smooth = np.stack([gaussian_filter(one, 5, mode="mirror") for one in noise])
    return (127.5 + 127.5 * np.clip(smooth / smooth.std() / 2, -1, 1)).astype(np.float32)


MOVES = {
    "default": {},
    "wild": dict(rotate=180, zoom=2, warp=0.3, p_affine=1.0),
    "turned": dict(flip_vert=True, rotate=0, zoom=1, warp=0),
}


@pytest.mark.parametrize(("moves", "size"), [("default", 24), ("wild", None), ("turned", 24)])
def test_a_mask_that_is_a_threshold_of_its_image_stays_one(moves, size):
    images = blobs(16, (40, 40))
    masks = np.where(images > 127, 7, 3).astype(np.uint8)
    masks[:, :5] = np.where(images[:, :5] > 127, 255, 3)
    augment = jax.jit(image_augment(size, lighting=0, target="mask", **MOVES[moves]))
    made = augment(jax.random.key(0), {"image": images[..., None], "target": masks})
    image, mask = np.asarray(made["image"])[..., 0], np.asarray(made["target"])
    assert mask.dtype == np.uint8 and mask.shape == image.shape and set(np.unique(mask)) == {3, 7, 255}
    sure = np.abs(image - 127) > 30  # further from the border than half a pixel
    np.testing.assert_array_equal((mask != 3)[sure], (image > 127)[sure])
    assert sure.mean() > 0.5
    if moves == "wild":  # the mask changes nothing of the image
        alone = jax.jit(image_augment(size, lighting=0, **MOVES[moves]))(
            jax.random.key(0), {"image": images[..., None]}
        )
        np.testing.assert_allclose(made["image"], alone["image"], atol=0.1)


def test_void_is_never_invented_and_stays_where_it_is():
    augment = jax.jit(image_augment(rotate=180, zoom=2, warp=0.3, p_affine=1, target="mask"))
    images = np.zeros((16, 16, 16, 1), np.uint8)
    full = augment(jax.random.key(0), {"image": images, "target": np.ones((16, 16, 16), np.uint8)})
    assert (np.asarray(full["target"]) == 1).all()  # the border is mirrored, not filled
    void = augment(jax.random.key(0), {"image": images, "target": np.full((16, 16, 16), 255, np.uint8)})
    assert (np.asarray(void["target"]) == 255).all()


@pytest.mark.parametrize(("moves", "size"), [("default", 40), ("wild", None), ("turned", 40)])
def test_a_disc_is_found_where_its_point_moved(moves, size):
    rng, side = np.random.default_rng(1), 48
    places = rng.uniform(16, 32, (32, 1, 2))
    y, x = np.mgrid[:side, :side] + 0.5
    distance = np.hypot(x - places[..., :1], y - places[..., 1:])
    images = (255 * np.clip(3 - distance, 0, 1)).astype(np.float32)[..., None]
    scaled = (2 * places / side - 1).astype(np.float32)
    augment = jax.jit(image_augment(size, lighting=0, target="points", **MOVES[moves]))
    made = augment(jax.random.key(0), {"image": images, "target": scaled})
    image, out = np.asarray(made["image"])[..., 0], size or side
    moved = (np.asarray(made["target"])[:, 0] + 1) / 2 * out
    y, x = np.mgrid[:out, :out] + 0.5
    seen = 0
    for one, place in zip(image, moved, strict=True):
        if ((place > 10) & (place < out - 10)).all():  # the whole disc is in the picture, its reflection is not
            near = np.where(np.hypot(x - place[0], y - place[1]) < 10, one, 0)
            centre = np.array([(near * x).sum(), (near * y).sum()]) / near.sum()
            np.testing.assert_allclose(centre, place, atol=0.35)  # a tilt moves the centre of what is round
            seen += 1
    assert seen > 8


@settings(deadline=None, max_examples=60)
@given(
    degrees=st.floats(-180, 180),
    x=st.floats(-0.3, 0.3),
    y=st.floats(-0.3, 0.3),
    factor=st.floats(1, 3),
    place=st.tuples(st.floats(-1, 1), st.floats(-1, 1)),
)
def test_points_move_by_the_inverse(degrees, x, y, factor, place):
    half = (9.5, 7.5)
    matrix = warp_matrix(x, y, half) @ rotate_matrix(degrees) @ zoom_matrix(factor, 0.3, -0.4, half)
    left, top, extent, size = 3, 1, (20, 26), (16, 20)
    moved = np.asarray(move_points(jnp.array([place], jnp.float32), matrix, extent, size, left, top), np.float64)[0]
    read = np.asarray(matrix, np.float64) @ [*(moved * (10, 8)), 1]  # where the output's pixel there is read
    if abs(read[2]) < 0.2:
        return  # beyond the horizon
    expected = (np.array(place) + 1) * (13, 10) - (left + 10, top + 8)
    np.testing.assert_allclose(read[:2] / read[2], expected, atol=2e-2)


def test_center_crop_cuts_targets_too():
    images, masks = np.zeros((2, 7, 6, 1)), np.arange(84).reshape(2, 7, 6).astype(np.uint8)
    cut = center_crop(4, target="mask")({"image": images, "target": masks})
    np.testing.assert_array_equal(cut["target"], masks[:, 1:5, 1:5])
    points = np.array([[[0, 0]], [[1, -1]]], np.float32)  # the middle (3, 3.5), and the upper right corner (6, 0)
    cut = center_crop(4, target="points")({"image": images, "target": points})["target"]
    np.testing.assert_allclose(cut, [[[0, 0.25]], [[1.5, -1.5]]])  # of the crop's (2, 2.5) and (5, -1)
    assert set(center_crop(4, target="points")({"image": images})) == {"image"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: image_augment(target="masks"), "target='masks': give 'mask' or 'points'"),
        (lambda: center_crop(4, target="box"), "target='box': give 'mask' or 'points'"),
        (
            lambda: image_augment(target="mask")(
                jax.random.key(0), {"image": np.zeros((2, 4, 4, 1)), "target": np.zeros((2, 4, 5))}
            ),
            r"masks of shape \(2, 4, 5\) for images of shape \(2, 4, 4, 1\): give \(batch, height, width\)",
        ),
        (
            lambda: center_crop(2, target="points")({"image": np.zeros((2, 4, 4, 1)), "target": np.zeros((2, 3))}),
            r"points of shape \(2, 3\): give \(batch, points, 2\)",
        ),
    ],
)
def test_targets_that_do_not_lie_in_images_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- random erasing


def erased(**options):
    images = np.random.default_rng(0).integers(100, 156, (200, 40, 40, 1)).astype(np.uint8)
    batch = {"image": images, "target": np.arange(200)}
    made = jax.jit(random_erasing(**options))(jax.random.key(1), batch)
    np.testing.assert_array_equal(made["target"], batch["target"])
    assert made["image"].dtype == jnp.float32 and 0 <= made["image"].min() and made["image"].max() <= 255
    return (np.asarray(made["image"]) != images).any(-1)  # noise is no whole number


def test_erasing_keeps_to_its_chance_and_its_area():
    changed = erased(p=0.3, sl=0.1, sh=0.2, min_aspect=1)
    areas = changed.mean((1, 2))
    happened = areas > 0
    assert abs(happened.mean() - 0.3) < 0.1
    assert areas[happened].min() > 0.07 and 0.17 < areas.max() < 0.23  # but for rounding to pixels
    rows, columns = changed.any(2), changed.any(1)
    np.testing.assert_array_equal(changed, rows[:, :, None] & columns[:, None, :])  # a rectangle
    np.testing.assert_array_equal(rows.sum(1), columns.sum(1))  # with this aspect a square


def test_erasing_keeps_to_its_aspect():
    changed = erased(p=1, sl=0.1, min_aspect=0.5)
    ratios = changed.any(2).sum(1) / changed.any(1).sum(1)
    assert 0.4 < ratios.min() < 0.7 and 1.4 < ratios.max() < 2.5


def test_erasing_up_to_so_many_rectangles():
    from scipy.ndimage import label

    changed = erased(p=1, sl=0.03, sh=0.03, max_count=3)
    counts = np.array([label(mask)[1] for mask in changed])
    assert counts.max() == 3 and counts.min() == 1 and (counts == 2).sum() > 30
    assert 0.02 < changed.mean((1, 2)).max() < 0.045  # of all together


def test_erasing_composes():
    batch = {"image": ruler(4, 16), "target": np.arange(4)}
    chain = compose(image_augment(**NOTHING), random_erasing(1, sl=0.3))
    changed = np.asarray(jax.jit(chain)(jax.random.key(0), batch)["image"]) != batch["image"]
    assert 0.2 < changed.any(-1).mean() < 0.4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"p": 2}, "p is 2: give a number from 0 to 1"),
        ({"sl": 0.4}, "sl is 0.4: give a number from 0 to 0.3"),
        ({"sh": 1.5}, "sh is 1.5: give a number from 0.0 to 1"),
        ({"min_aspect": 0}, "min_aspect is 0: give a number from 0.01 to 1"),
        ({"max_count": 0}, "max_count is 0: give a whole number from 1 to 100"),
    ],
)
def test_erasing_refuses_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        random_erasing(**options)
