"""Test-time augmentation: the mean over augmented copies, beside the plain prediction, and over crops."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from small import data, learner

from jaxfast import training
from jaxfast.augment import image_augment
from jaxfast.mix import compose, mixup
from jaxfast.training.tta import TTA, corner_crops, crop_tta, make_crop_tta, make_tta, tta


def batches(images, targets, rows=4):
    """Batches of `rows`, the last one padded with NaN."""
    for start in range(0, len(images), rows):
        image, target = images[start : start + rows], targets[start : start + rows]
        real = np.arange(rows) < len(image)
        image = np.concatenate([image, np.full((rows - len(image), *image.shape[1:]), np.nan, image.dtype)])
        target = np.concatenate([target, np.full(rows - len(target), -1, target.dtype)])
        yield {"image": image, "target": target, "mask": real}


def predict(variables, batch):
    return jnp.stack([batch["image"].mean((1, 2, 3)), batch["image"][:, 0, 0, 0]], 1) * variables["scale"]


def brighter(key, batch):
    return {**batch, "image": batch["image"] + jax.random.normal(key, (len(batch["image"]), 1, 1, 1))}


@pytest.fixture(scope="module")
def items():
    return np.random.default_rng(0).normal(size=(10, 3, 3, 1)).astype(np.float32), np.arange(10)


VARIABLES = {"scale": np.float32(2)}


@pytest.mark.parametrize(("n", "beta"), [(4, 0.25), (1, 0.0), (3, 1.0), (7, 0.5)])
def test_the_formula(items, n, beta):
    images, targets = items
    program, key = make_tta(predict, brighter), jax.random.key(3)
    found, same = tta(program, VARIABLES, batches(*items), key, n=n, beta=beta)
    np.testing.assert_array_equal(same, targets)
    expected = []
    for number, batch in enumerate(batches(*items)):
        own = jax.random.fold_in(jax.random.fold_in(key, TTA), number)
        copies = [predict(VARIABLES, brighter(jax.random.fold_in(own, i), batch)) for i in range(n)]
        plain = predict(VARIABLES, batch)
        expected.append((beta * plain + (1 - beta) * np.mean(copies, 0))[batch["mask"]])
    np.testing.assert_allclose(found, np.concatenate(expected), rtol=1e-5, atol=1e-6)
    assert found.shape == (10, 2)


def test_defaults_and_repeats(items):
    program, key = make_tta(predict, brighter), jax.random.key(0)
    default = tta(program, VARIABLES, batches(*items), key)[0]
    np.testing.assert_array_equal(default, tta(program, VARIABLES, batches(*items), key, n=4, beta=0.25)[0])
    assert not np.allclose(default, tta(program, VARIABLES, batches(*items), jax.random.key(1))[0])
    assert program._cache_size() == 1  # n and beta are traced


def test_prepare_is_for_the_plain_prediction_alone(items):
    images, _ = items

    def dark(batch):
        return {**batch, "image": 0 * batch["image"]}

    program = make_tta(predict, lambda key, batch: batch, dark)
    found, _ = tta(program, VARIABLES, batches(*items), jax.random.key(0), beta=0.25)
    augmented = np.asarray(predict(VARIABLES, {"image": images}))
    np.testing.assert_allclose(found, 0.75 * augmented, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("options", "message"), [({"n": 0}, "n is 0: average over at least 1"),
                                                  ({"beta": 1.5}, "beta is 1.5: give the weight")])  # fmt: skip
def test_errors(items, options, message):
    with pytest.raises(ValueError, match=message):
        tta(make_tta(predict, brighter), VARIABLES, batches(*items), jax.random.key(0), **options)


def programs_tta(learn, n=4, beta=0.25):
    return learn.evaluator.tta(learn.state.variables, learn.data.valid, learn.state.key, n=n, beta=beta)


def test_a_learner():
    """Images of 20 pixels presized, 16 seen; 67 of them, no multiple of the batch."""
    task = data(n=335, valid=0.2, size=16, presize=20)
    mixed = dataclasses.replace(task, augment=compose(task.augment, mixup(3)))
    learn = learner(mixed)
    plain, targets = learn.get_preds()
    found, same = programs_tta(learn)
    np.testing.assert_array_equal(same, targets)
    np.testing.assert_allclose(found.sum(1), 1, rtol=1e-5)
    only_plain, _ = programs_tta(learn, beta=1.0)
    np.testing.assert_allclose(only_plain, plain, rtol=1e-4, atol=1e-6)
    assert 1e-4 < np.abs(found - plain).max() < 0.5


def test_no_mixing_and_nothing_to_average():
    task = data(augment=image_augment(flip=0.0, rotate=0.0, zoom=1.0, lighting=0.0, warp=0.0))
    mixed = dataclasses.replace(task, augment=compose(task.augment, mixup(3)))
    learn = learner(mixed)
    np.testing.assert_allclose(programs_tta(learn)[0], learn.get_preds()[0], rtol=1e-4, atol=1e-6)
    for augment in (None, mixup(3)):
        learn.data = dataclasses.replace(task, augment=augment)
        with pytest.raises(ValueError, match="no random transforms to average over: make it with augment=True"):
            programs_tta(learn)


# --- crops


def by_hand(images, size):
    """The centre, the four corners and their mirror images, by slicing: (10, n, *size, channels)."""
    (height, width), (down, right) = size, np.subtract(images.shape[1:3], size)
    corners = [(down // 2, right // 2), (0, 0), (0, right), (down, 0), (down, right)]
    cuts = [images[:, top : top + height, left : left + width] for top, left in corners]
    return np.stack([*cuts, *(cut[:, :, ::-1] for cut in cuts)])


@pytest.mark.parametrize(("stored", "size"), [((9, 9), (6, 6)), ((8, 11), (8, 6)), ((7, 5), (4, 4))])
def test_crops_are_slices(stored, size):
    images = np.random.default_rng(0).integers(0, 256, (3, *stored, 2)).astype(np.uint8)
    crop = jax.jit(corner_crops(size))
    batch = {"image": images, "target": np.arange(3)}
    for i, expected in enumerate(by_hand(images, size)):
        found = crop(np.int32(i), batch)
        np.testing.assert_array_equal(found["image"], expected)
        np.testing.assert_array_equal(found["target"], batch["target"])
    assert crop._cache_size() == 1  # the number of the crop is traced


def test_a_zoom_reads_the_corners_of_an_image_of_the_same_size():
    """A plane whose value is its column plus 10 times its row, magnified twice: every second of its steps."""
    image = (np.arange(9)[None, :] + 10.0 * np.arange(9)[:, None])[None, ..., None].astype(np.float32)
    crop = corner_crops(9, zoom=2.0)
    step = np.arange(9) / 2
    for i, (top, left) in enumerate([(2, 2), (0, 0), (0, 4), (4, 0), (4, 4)]):
        expected = (left + step)[None, :] + 10 * (top + step)[:, None]
        np.testing.assert_allclose(crop(i, {"image": image})["image"][0, ..., 0], expected, atol=1e-4)
        mirrored = crop(i + 5, {"image": image})["image"][0, ..., 0]
        np.testing.assert_allclose(mirrored, expected[:, ::-1], atol=1e-4)


@pytest.mark.parametrize("n", [5, 10])
def test_the_mean_over_crops(items, n):
    images, targets = items
    program = make_crop_tta(predict, corner_crops(2))
    images = np.abs(images)  # pixels are not negative
    found, same = crop_tta(program, VARIABLES, batches(images, targets), n=n)
    np.testing.assert_array_equal(same, targets)
    expected = np.mean([predict(VARIABLES, {"image": cut}) for cut in by_hand(images, (2, 2))[:n]], 0)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: corner_crops(8, zoom=0.5), "zoom is 0.5: give a number from 1 to 10"),
        (lambda: corner_crops(8)(0, {"image": np.zeros((1, 8, 8, 1))}), "images of 8x8 pixels have one crop of 8x8"),
        (lambda: corner_crops(9)(0, {"image": np.zeros((1, 8, 8, 1))}), "8x8 pixels are smaller than the crops of 9x9"),
        (lambda: crop_tta(None, {}, [], n=4), "crops=4: give 5"),
    ],
)
def test_crops_refuse(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_crops_of_a_learner():
    """Images of 20 pixels presized, 16 seen: the mean over ten slices of the prediction on each."""
    learn = learner(data(n=335, valid=0.2, size=16, presize=20, augment=False))
    found, targets = learn.tta(crops=10)
    np.testing.assert_array_equal(targets, learn.get_preds()[1])
    stored = learn.data.valid.batch(np.arange(len(learn.data.valid)))["image"]
    cuts = by_hand(stored, (16, 16))
    forward = jax.jit(lambda images: jax.nn.softmax(learn.module.apply(learn.state.variables, images)))
    np.testing.assert_allclose(found, np.mean([forward(cut) for cut in cuts], 0), rtol=1e-4, atol=1e-6)
    five, zoomed = learn.tta(crops=5)[0], learn.tta(crops=10, zoom=1.3)[0]
    assert np.abs(five - found).max() > 1e-5 and np.abs(zoomed - found).max() > 1e-4


def test_crops_need_larger_images_and_labels():
    learn = learner(data(n=67, batch_size=16))
    with pytest.raises(ValueError, match="have one crop of 16x16: give them a larger presize="):
        learn.tta(crops=5)
    assert learn.tta(crops=5, zoom=1.2)[0].shape == (13, 3)
    task = learn.task.replaced(data=dataclasses.replace(learn.data, task="points"))
    points = training.Evaluator(task, learn.programs)
    with pytest.raises(ValueError, match="crops are averaged over whole images, the targets are points"):
        points.crop_tta(learn.state.variables, learn.data.valid, n=5, zoom=1.2)
