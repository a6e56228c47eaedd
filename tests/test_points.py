"""Numbers and key-points from images: where points go when an image is presized, and models that find them."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small import module

import jaxfast
from jaxfast import losses, vision
from jaxfast.__main__ import main
from jaxfast.augment import image_augment
from jaxfast.data.images import presize, window
from jaxfast.data.points import presized, to_pixels, to_scaled, unpresized
from jaxfast.learner import Learner
from jaxfast.models import ClassifierHead, ImageClassifier
from jaxfast.models.resnet import BasicBlock, ResNet

sides = st.integers(8, 60)
sizes = st.tuples(sides, sides)
resizes = st.sampled_from(["crop", "pad", "squish"])


def disc(centre, size, radius=3.0, background=30):
    """A bright disc about (x, y), with soft edges so that its centre of brightness is exact."""
    y, x = np.mgrid[: size[0], : size[1]] + 0.5
    distance = np.hypot(x - centre[0], y - centre[1])
    return (background + (225 - background) * np.clip(radius + 0.5 - distance, 0, 1)).round().astype(np.uint8)


def centre(image, background=30.0):
    """The centre of brightness (x, y), from the corner of the first pixel."""
    weight = np.asarray(image, float) - background
    weight[weight < 40] = 0
    y, x = np.mgrid[: weight.shape[0], : weight.shape[1]] + 0.5
    return np.array([(weight * x).sum(), (weight * y).sum()]) / weight.sum()


def test_scaling_is_fastais():
    points = np.array([[0, 0], [8, 16], [4, 4], [2, 12]], float)
    np.testing.assert_allclose(to_scaled(points, (16, 8)), [[-1, -1], [1, 1], [0, -0.5], [-0.5, 0.5]])
    np.testing.assert_allclose(to_pixels(to_scaled(points, (16, 8)), (16, 8)), points)


@pytest.mark.parametrize(
    ("resize", "size", "expected"),
    [
        ("squish", (10, 10), [5, 2]),  # (20, 40) to (10, 10): x by 1/4, y by 1/2
        ("crop", (10, 10), [5, 2]),  # x from the middle 20 columns, 10..30, at 1/2
        ("pad", (20, 20), [10, 7]),  # at 1/2, 5 rows above
        ("crop", (20, 40), [20, 4]),
    ],
)
def test_presizing_by_hand(resize, size, expected):
    np.testing.assert_allclose(presized(np.array([20.0, 4.0]), (20, 40), size, resize), expected)


@settings(deadline=None, max_examples=80)
@given(old=sizes, new=sizes, resize=resizes, x=st.floats(0, 1), y=st.floats(0, 1))
def test_presizing_can_be_undone(old, new, resize, x, y):
    point = np.array([x * old[1], y * old[0]])
    np.testing.assert_allclose(unpresized(presized(point, old, new, resize), old, new, resize), point, atol=1e-9)


@settings(deadline=None, max_examples=40)
@given(
    old=st.tuples(st.integers(40, 80), st.integers(40, 80)),
    new=st.tuples(st.integers(30, 60), st.integers(30, 60)),
    resize=resizes,
    x=st.floats(0.45, 0.55),
    y=st.floats(0.45, 0.55),
)
def test_a_disc_is_found_where_its_point_goes(old, new, resize, x, y):
    place = np.array([x * old[1], y * old[0]])
    image = presize(disc(place, old, radius=5)[..., None], new, resize)[..., 0]
    (height, width), (top, left) = window((0, 0, *old[::-1]), new, resize)[1:]
    image = image[top : top + height, left : left + width]  # without reflections
    np.testing.assert_allclose(centre(image) + (left, top), presized(place, old, new, resize), atol=0.25)


def found(n=96, size=(24, 32), seed=0, k=1):
    """Discs on noise and their centres (n, 1, 2)."""
    rng = np.random.default_rng(seed)
    places = rng.uniform(5, np.array(size[::-1]) - 5, (n, k, 2))
    noise = rng.integers(0, 60, (n, *size))
    return np.stack([np.maximum(disc(p[0], size), z) for p, z in zip(places, noise, strict=True)]).astype(
        np.uint8
    ), places


def test_points_of_arrays():
    images, places = found(12)
    for labels in (places, places[:, 0], places.tolist()):
        data = vision.from_arrays(images, labels, task="points", batch_size=4, valid=[3, 5])
        assert data.task == "points" and data.classes == ("0",) and data.n_out == 2
        batch = data.valid.batch(np.arange(2))
        assert batch["target"].dtype == np.float32 and batch["target"].shape == (2, 1, 2)
        np.testing.assert_allclose(to_pixels(batch["target"], (24, 32)), places[[3, 5]], atol=1e-5)
        np.testing.assert_array_equal(data.valid[1]["target"], batch["target"][1])
        assert data.train.nbytes == 10 * (24 * 32 * 3 + 8)
    smaller = vision.from_arrays(images, places, task="points", size=12, batch_size=4, valid=[3, 5])
    expected = presized(places[[3, 5]], (24, 32), (12, 12), "crop") / 6 - 1
    np.testing.assert_allclose(smaller.valid.batch(np.arange(2))["target"], expected, atol=1e-6)
    assert repr(data).endswith("batches of 4, places to predict") and "1 point (0)" in repr(data)
    assert data.label(data.valid[0]["target"]) == "0 ({:.1f}, {:.1f})".format(*places[3, 0])


def test_numbers_of_arrays():
    images = np.zeros((8, 4, 4), np.uint8)
    one = vision.from_arrays(images, np.arange(8) / 7, task="regression", batch_size=2, valid=[0, 1])
    assert one.task == "regression" and one.classes == ("0",) and one.train.targets.shape == (6, 1)
    assert one.decode(np.array([0.5])).value == 0.5 and one.label(np.array([0.25])) == "0.25"
    two = vision.from_arrays(
        images, np.arange(16).reshape(8, 2), task="regression", classes=["age", "size"], batch_size=2, valid=[0, 1]
    )
    assert two.n_out == 2 and two.train.targets.dtype == np.float32
    np.testing.assert_array_equal(two.valid[1]["target"], [2, 3])
    assert two.label(two.valid[1]["target"]) == "age 2, size 3" and repr(two).endswith("numbers to predict")


@pytest.fixture
def frame(tmp_path):
    images, places = found(10)
    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    x, y = places[:, 0].T
    return pd.DataFrame({"path": [f"{i}.png" for i in range(10)], "x": x, "y": y, "bright": x > 16, "far": y > 12})


def table(frame, tmp_path, **options):
    return vision.from_frame(frame, **{"root": tmp_path, "size": (24, 32), "batch_size": 2, "valid": [0, 1]} | options)


def test_columns_of_frames(frame, tmp_path):
    data = table(frame, tmp_path, label=["x", "y"], task="points")
    np.testing.assert_allclose(to_pixels(data.valid[1]["target"], (24, 32)), frame[["x", "y"]].values[[1]], atol=1e-5)
    numbers = table(frame, tmp_path, label=["y", "x"], task="regression")
    assert numbers.classes == ("y", "x")
    np.testing.assert_allclose(numbers.valid.targets, frame[["y", "x"]].values[:2], rtol=1e-6)
    one = table(frame, tmp_path, label="x", task="regression")
    assert one.classes == ("x",) and one.n_out == 1
    flags = table(frame, tmp_path, label=["bright", "far"], task="multi_label")
    assert flags.task == "multi_label" and flags.classes == ("bright", "far")
    np.testing.assert_array_equal(flags.train.targets, frame[["bright", "far"]].values[2:])


def test_presize_crops_and_augments_points(frame, tmp_path):
    data = table(frame, tmp_path, label=["x", "y"], task="points", size=16, presize=20, resize="squish", valid=[0])
    batch = data.train.batch(np.arange(9))
    cut = data.prepare(batch)
    np.testing.assert_allclose(to_pixels(cut["target"], (16, 16)), to_pixels(batch["target"], (20, 20)) - 2, atol=1e-5)
    made = jax.jit(data.augment)(jax.random.key(0), batch)
    assert made["image"].shape == (9, 16, 16, 3) and made["target"].shape == (9, 1, 2)
    assert not np.allclose(made["target"], cut["target"], atol=0.05)
    larger = data.resized(24)
    assert larger.train.size == (30, 30)
    np.testing.assert_allclose(larger.train[3]["target"], data.train[3]["target"], atol=1e-6)  # of the whole image


IMAGES = np.zeros((4, 6, 8), np.uint8)


def _arrays(labels, **options):
    return lambda frame, root: vision.from_arrays(IMAGES, labels, **{"batch_size": 2, "valid": [0]} | options)


def _table(change=lambda frame: frame, **options):
    return lambda frame, root: table(change(frame), root, **options)


BAD = {
    "NaN": (_arrays(np.array([1, 2, np.nan, 3]), task="regression"),
            "the numbers of image 2 are missing or not finite: fill them in or drop those images"),
    "infinite": (_arrays(np.full((4, 1, 2), np.inf), task="points"), "the points of image 0, image 1, .* are missing"),
    "text": (_arrays(np.array(list("abcd")), task="regression"), "the numbers are no numbers of one shape"),
    "ragged": (_arrays([[[1, 2]], [[1, 2]], [[1, 2], [3, 4]], [[1, 2]]], task="points"), "are no numbers of one shape"),
    "points of three": (_arrays(np.zeros((4, 2, 3)), task="points"), r"points of shape \(4, 2, 3\): give \(n, k, 2\)"),
    "numbers of masks": (_arrays(np.zeros((4, 6, 8)), task="regression"), r"numbers of shape \(4, 6, 8\): give \(n,\)"),
    "names": (_arrays(np.zeros((4, 2, 2)), task="points", classes=["eye"]), "1 names in classes= for 2 points: give"),
    "constant": (_arrays(np.ones(4), task="regression"), "number 0 is 1 for every image: there is nothing to predict"),
    "task not said": (_arrays(np.arange(4) / 2), "the label of image 1 is 0.5: classes are .* with task='regression'"),
    "columns not said": (_table(label=["x", "y"]), "label= names 2 columns: say task='regression' for"),
    "odd columns": (_table(label=["x", "y", "x"], task="points"), "names 3 columns: points need an x and a y each"),
    "empty cell": (_table(lambda f: f.assign(x=[1.0, None] + [2.0] * 8), label="x", task="regression"),
                   r"column 'x' is empty in row 1 \(1.png\): fill it in or drop the row"),
    "text cell": (_table(lambda f: f.assign(x=["1", "two"] + ["3"] * 8), label=["x", "y"], task="points"),
                  r"column 'x' holds 'two' in row 1 \(1.png\): give numbers"),
    "void": (_table(label="x", task="regression", void=1), "void=1 is for masks: give mask=, the column"),
    "flags": (_table(label=["x", "y"], task="multi_label"), r"hold .* in column 0: a row is made of zeros and ones"),
    "y_range": (lambda frame, root: vision.learner(
        table(frame, root, label=["x", "y"], task="points"), "resnet18", pretrained=False, y_range=(1, 0)
    ), r"y_range=\(1, 0\): give \(lowest, highest\)"),
    "y_range of classes": (lambda frame, root: vision.learner(
        table(frame, root, label="bright"), "resnet18", pretrained=False, y_range=(0, 1)
    ), r"y_range=\(0, 1\) bounds numbers, the targets are single_label: leave it out"),
    "a model of too few": (lambda frame, root: Learner(
        table(frame, root, label=["x", "y"], task="points"), module((2, 2)), loss=losses.mse, devices=jax.devices()[:2]
    ), "the model has 4 outputs, the data needs 2: make the model with 2"),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_clear_line(case, frame, tmp_path):
    call, message = BAD[case]
    with pytest.raises(ValueError, match=message) as caught:
        call(frame, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("shape", [3, (2, 2)])
def test_the_head_answers_within_its_range(shape):
    head = ClassifierHead(shape, hidden=(), dropout=0.0, y_range=(-2.0, 5.0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3, 3, 5)) * 5, jnp.float32)
    variables = head.init(jax.random.key(0), x)
    free = ClassifierHead(shape, hidden=(), dropout=0.0).apply(variables, x)
    assert free.shape == (4, 3) if shape == 3 else (4, 2, 2)
    np.testing.assert_allclose(head.apply(variables, x), -2 + 7 / (1 + np.exp(-np.asarray(free))), atol=1e-4)


def test_what_a_learner_of_numbers_is_made_of(monkeypatch):
    made = {}
    monkeypatch.setattr(vision, "Learner", lambda data, module, **options: made.update(module=module, **options))
    images = np.zeros((8, 32, 32, 3), np.uint8)
    numbers = vision.from_arrays(images, np.arange(16).reshape(8, 2), task="regression", batch_size=2)
    vision.learner(numbers, "resnet18", pretrained=False, y_range=[0, 20])
    assert made["module"].head.n_out == 2 and made["module"].head.y_range == (0.0, 20.0)
    assert made["loss"] is losses.mse and made["metrics"] == ("rmse",)
    vision.learner(numbers, "resnet18", pretrained=False, metrics=["mae"])
    assert made["module"].head.y_range is None and made["metrics"] == ["mae"]
    points = vision.from_arrays(images, np.zeros((8, 3, 2)), task="points", batch_size=2)
    vision.learner(points, "resnet18", pretrained=False)
    assert made["module"].head.n_out == (3, 2) and made["module"].head.y_range == (-1.0, 1.0)


@pytest.fixture(scope="module")
def finder():
    """A learner that has seen 256 discs on noise, presized to 20x20 and cut to 16x16."""
    images, places = found(320)
    data = vision.from_arrays(
        images, places, task="points", classes=["disc"], size=16, presize=20, resize="squish", batch_size=32,
        channels=1, valid=np.arange(64), augment=image_augment(16, rotate=0, zoom=1, warp=0, lighting=0),
    )  # fmt: skip
    body = ResNet((1, 1), BasicBlock, width=8)
    network = ImageClassifier(body, ClassifierHead((1, 2), (32,), 0.0, (-1.0, 1.0)), mean=(60.0,), std=(60.0,))
    learn = Learner(data, network, loss=losses.mse, metrics=["rmse"], quiet=True, devices=jax.devices()[:1])
    learn.fit_one_cycle(20, 2e-2)
    return learn, images, places


def test_a_small_network_finds_discs(finder):
    """To a pixel of 16, where the mean place is off by 5."""
    predicted, targets = finder[0].get_preds()
    assert predicted.shape == targets.shape == (64, 1, 2)
    inside = (np.abs(targets) < 0.9).all((1, 2))  # a disc at the border is cut, and its place beyond the range
    distance = lambda a, b: 8 * np.hypot(*(a - b)[inside, 0].T).mean()
    assert distance(targets, targets.mean(0)) > 4
    assert distance(predicted, targets) < 1
    assert finder[0].validate()["rmse"] == pytest.approx(np.sqrt(np.square(predicted - targets).mean()), rel=1e-3)


def test_predicted_places_are_in_pixels_of_the_image(finder, tmp_path, capsys):
    learn, images, places = finder
    predicted, targets = learn.get_preds()
    i = int(np.abs(targets).max((1, 2)).argmin())  # in the middle
    answer = learn.predict(learn.data.valid[i])
    np.testing.assert_allclose(answer.points, to_pixels(predicted[i], (16, 16)) + 2, atol=1e-3)  # of the 20x20
    assert answer.size == (20, 20) and answer.names == ("disc",) and repr(answer).startswith("KeyPoints(disc (")
    Image.fromarray(images[i]).save(tmp_path / "disc.png")
    for item in (tmp_path / "disc.png", images[i], (tmp_path / "disc.png").read_bytes()):
        own = learn.predict(item)
        own = own if own.size is None else own.of(item)
        assert np.abs(own.points - places[i]).max() < 2.5  # of the 24x32
        np.testing.assert_allclose(own.points, answer.points * (32 / 20, 24 / 20), atol=1e-3)
    learn.export(tmp_path / "disc.jaxfast")
    export = jaxfast.load_export(tmp_path / "disc.jaxfast")
    np.testing.assert_allclose(export.predict(learn.data.valid[i]).points, answer.points, atol=1e-3)
    assert export.codec == learn.data.codec
    np.testing.assert_allclose(export.predict(tmp_path / "disc.png").points, own.points, atol=1e-3)
    assert main(["predict", str(tmp_path / "disc.jaxfast"), str(tmp_path / "disc.png"), "--json"]) == 0
    np.testing.assert_allclose(json.loads(capsys.readouterr().out)["value"], own.points, atol=1e-3)
    assert main(["predict", str(tmp_path / "disc.jaxfast"), str(tmp_path / "disc.png")]) == 0
    assert "value" in capsys.readouterr().out


def test_places_are_drawn(finder):
    learn = finder[0]
    assert len(learn.show_batch(4).axes) == 4
    figure = learn.show_results(2)
    truth, prediction = figure.axes[0].collections
    target = learn.data.valid[int(np.random.default_rng(0).permutation(64)[0])]["target"]
    np.testing.assert_allclose(truth.get_offsets(), to_pixels(target, (20, 20)) - 0.5, atol=1e-5)
    assert np.abs(truth.get_offsets() - prediction.get_offsets()).max() < 5


def test_numbers_are_drawn_and_exported(tmp_path):
    rng = np.random.default_rng(0)
    numbers = rng.uniform(0, 1, (64, 2))
    images = (numbers[:, None, None, [0, 1, 0]] * 255).repeat(8, 1).repeat(8, 2).astype(np.uint8)
    data = vision.from_arrays(images, numbers, task="regression", classes=["red", "green"], batch_size=16)
    body, head = ResNet((1,), BasicBlock, width=4), ClassifierHead(2, (), 0.0, (0.0, 1.0))
    network = ImageClassifier(body, head, (127.0,) * 3, (64.0,) * 3)
    learn = Learner(data, network, loss=losses.mse, metrics=["rmse", "mae"], quiet=True, devices=jax.devices()[:1])
    assert set(learn.validate()) == {"loss", "rmse", "mae"}
    answer = learn.predict(data.valid[0])
    assert answer.value.shape == (2,) and (answer.value > 0).all() and (answer.value < 1).all()
    learn.export(tmp_path / "numbers.jaxfast")
    export = jaxfast.load_export(tmp_path / "numbers.jaxfast")
    np.testing.assert_allclose(export.predict(images[data.valid.index[0]]).value, answer.value, atol=1e-5)
    assert learn.show_results(1).axes[0].get_title().startswith("red ")
    assert learn.show_batch(1).axes[0].get_title().startswith("red ")
