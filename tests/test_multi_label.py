"""Any number of labels: thresholds against brute force, reports against scikit-learn, and the way through a learner."""

import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    fbeta_score,
    precision_recall_fscore_support,
)

from jaxfast import vision
from jaxfast.interpret import LabelInterpretation, TopLabelLoss, best_thresholds, label_report

CLASSES = ["ant", "bee", "cat", "dog"]


def predictions(n=60, labels=4, seed=0, steps=12):
    """Coarse probabilities, so that many are equal, and truths that follow them."""
    rng = np.random.default_rng(seed)
    probabilities = rng.integers(0, steps + 1, (n, labels)) / steps
    truths = rng.random((n, labels)) < 0.15 + 0.6 * probabilities
    return probabilities, truths.astype(np.float32)


def score(probabilities, truths, threshold, beta):
    """F-beta of one label at a threshold, by its definition in whole numbers."""
    answers = probabilities > threshold
    hits = int(np.sum(answers & (truths > 0)))
    below = beta**2 * int(np.sum(truths > 0)) + int(np.sum(answers))
    return (1 + beta**2) * hits / below if below else 0.0


def brute_force(probabilities, truths, beta):
    """The middle of every gap between 0, the probabilities and 1, one after the other."""
    edges = np.unique([0.0, 1.0, *probabilities])
    cuts = [a + (b - a) / 2 if a + (b - a) / 2 < b else a for a, b in zip(edges, edges[1:], strict=False)]
    best = max(score(probabilities, truths, cut, beta) for cut in cuts)
    distance = {abs(cut - 0.5) for cut in cuts if score(probabilities, truths, cut, beta) == best}
    return best, min(distance)


finite = st.floats(0, 1, width=32) | st.sampled_from([0.0, 0.25, 0.5, 1.0])


@settings(deadline=None, max_examples=200)
@given(
    st.integers(1, 12).flatmap(
        lambda n: st.tuples(
            arrays.arrays(np.float64, (n, 2), elements=finite),
            arrays.arrays(np.int8, (n, 2), elements=st.integers(0, 1)),
        )
    ),
    st.sampled_from([1, 2, 3]),
)
def test_thresholds_are_those_of_a_search_over_all_cuts(rows, beta):
    probabilities, truths = rows
    found = best_thresholds(probabilities, truths, beta=beta)
    assert ((found >= 0) & (found <= 1)).all()
    for column in range(2):
        best, distance = brute_force(probabilities[:, column], truths[:, column], beta)
        assert score(probabilities[:, column], truths[:, column], found[column], beta) == best
        assert abs(found[column] - 0.5) == distance


def test_thresholds_beat_every_other_threshold():
    probabilities, truths = predictions(200)
    found = best_thresholds(probabilities, truths, beta=2)
    ours = fbeta_score(truths, probabilities > found, beta=2, average=None, zero_division=0)
    grid = np.linspace(0, 1, 241)
    others = [fbeta_score(truths, probabilities > t, beta=2, average=None, zero_division=0) for t in grid]
    np.testing.assert_allclose(ours, np.max(others, 0))
    assert (ours > others[120] + 0.01).any()  # one half is not the best for all


def test_neighbouring_floats_are_cut_between():
    low, high = np.nextafter(0.5, 0), 0.5
    (found,) = best_thresholds([[low], [high]], [[0], [1]])
    assert low <= found < high


def test_thresholds_of_labels_that_all_or_none_have():
    probabilities = [[0.2, 0.7], [0.3, 0.9]]
    found = best_thresholds(probabilities, [[0, 1], [0, 1]])
    np.testing.assert_allclose(found, [0.65, 0.35])  # every cut gives 0: the nearest to one half; all must be a yes
    assert best_thresholds([[0.0], [1.0]], [[0], [1]]).tolist() == [0.5]


@pytest.mark.parametrize("thresholds", [0.5, 0.3, [0.2, 0.4, 0.6, 0.8]])
@pytest.mark.parametrize("beta", [1, 2])
def test_report_is_scikit_learns(thresholds, beta):
    probabilities, truths = predictions()
    found = label_report(probabilities, truths, CLASSES, thresholds=thresholds, beta=beta)
    answers = probabilities > np.asarray(thresholds)
    options = {"beta": beta, "zero_division": 0}
    *scores, support = precision_recall_fscore_support(truths, answers, **options)
    np.testing.assert_allclose(found.scores, scores)
    np.testing.assert_array_equal(found.support, support)
    for average in ("macro", "micro", "samples"):
        expected = precision_recall_fscore_support(truths, answers, average=average, **options)[:3]
        np.testing.assert_allclose(getattr(found, average), expected)
    expected = average_precision_score(truths, probabilities, average=None)
    np.testing.assert_allclose(found.average_precision, expected)
    assert found.mean_average_precision == pytest.approx(expected.mean())
    assert found.accuracy == pytest.approx(1 - np.mean(answers != truths))
    np.testing.assert_array_equal(found.thresholds, np.broadcast_to(thresholds, 4))
    assert found.accuracy != pytest.approx(accuracy_score(truths, answers))  # theirs asks for whole rows


def test_a_label_that_no_example_has():
    probabilities, truths = predictions(labels=2)
    truths[:, 1] = 0
    found = label_report(probabilities, truths, ["here", "nowhere"])
    assert np.isnan(found.average_precision).tolist() == [False, True]
    assert found.mean_average_precision == found.average_precision[0]
    assert [value[1] for value in found.scores] == [0, 0, 0]
    assert "nowhere      0.500      0.000   0.000  0.000                  -        0" in repr(found)


def test_report_as_text():
    probabilities = np.array([[0.9, 0.2], [0.8, 0.6], [0.1, 0.7], [0.4, 0.1]])
    truths = np.array([[1, 0], [0, 1], [0, 1], [1, 0]])
    found = label_report(probabilities, truths, ("ant", "bumblebee"), thresholds=(0.5, 0.65))
    expected = """
label      threshold  precision  recall     f2  average precision  support
ant            0.500      0.500   0.500  0.500              0.833        2
bumblebee      0.650      1.000   0.500  0.556              1.000        2

macro                     0.750   0.500  0.528              0.917        4
micro                     0.667   0.500  0.526                           4
samples                   0.500   0.500  0.500                           4

accuracy 0.625 over 4 examples"""
    assert repr(found) == expected.strip()


def test_report_as_a_picture():
    probabilities, truths = predictions()
    found = label_report(probabilities, truths, CLASSES)
    (ax,) = found.plot().axes
    order = np.argsort(-found.support, kind="stable")
    assert [label.get_text() for label in ax.get_yticklabels()] == [f"{CLASSES[i]} ({found.support[i]})" for i in order]
    drawn = {line.get_label(): line for line in ax.get_lines()}
    assert list(drawn) == ["precision", "recall", "f2", "average precision"]
    np.testing.assert_array_equal(drawn["recall"].get_xdata(), found.scores.recall[order])
    assert drawn["f2"].get_ydata().tolist() == [3, 2, 1, 0]  # the most frequent label on top


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"probabilities": np.zeros((3, 2))}, r"probabilities of shape \(3, 2\) and targets of shape \(3, 4\)"),
        ({"probabilities": np.full((3, 4), 1.5)}, "a probability is not in 0..1"),
        ({"probabilities": np.full((3, 4), np.nan)}, "a probability is not in 0..1"),
        ({"targets": np.full((3, 4), 0.5)}, "targets hold other values than 0 and 1"),
        ({"classes": CLASSES[:3]}, "3 classes for 4 columns"),
        ({"thresholds": [0.5, 0.5]}, r"thresholds \[0.5, 0.5\]: give a number from 0 to 1, or one for each of the 4"),
        ({"thresholds": 1.5}, "thresholds 1.5: give a number from 0 to 1"),
        ({"thresholds": np.nan}, "thresholds nan: give a number from 0 to 1"),
        ({"beta": 0}, "beta is 0: give a number above 0"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    parts = {"probabilities": np.full((3, 4), 0.5), "targets": np.zeros((3, 4)), "classes": CLASSES} | change
    with pytest.raises(ValueError, match=message):
        label_report(parts.pop("probabilities"), parts.pop("targets"), parts.pop("classes"), **parts)


def test_thresholds_refuse_what_the_report_refuses():
    for rows in (np.zeros(3), np.zeros((0, 4)), np.full((3, 4), 2.0)):
        with pytest.raises(ValueError):
            best_thresholds(rows, np.zeros_like(rows))
    with pytest.raises(ValueError, match="beta is -1"):
        best_thresholds([[0.5]], [[1]], beta=-1)


def interpretation(**change):
    parts = {
        "probabilities": np.array([[0.9, 0.2, 0.1], [0.8, 0.6, 0.9], [0.1, 0.7, 0.2]]),
        "targets": np.array([[1, 0, 0], [1, 0, 0], [1, 0, 1]], np.float32),
        "losses": np.array([0.1, 1.1, 2.0]),
        "classes": CLASSES[:3],
        "dataset": [{"image": np.full((4, 4, 3), n, np.uint8)} for n in range(3)],
    }
    return LabelInterpretation(**parts | change)


def test_top_losses_say_what_is_missed_and_added():
    found = interpretation()
    assert found.top_losses(2) == [
        TopLabelLoss(2, 2.0, missed=("ant", "cat"), added=("bee",)),
        TopLabelLoss(1, 1.1, missed=(), added=("bee", "cat")),
    ]
    assert [row.index for row in found.top_losses()] == [2, 1, 0]
    assert found.top_losses(1, thresholds=(0.05, 0.8, 0.5))[0] == TopLabelLoss(2, 2.0, ("cat",), ())


def test_pictures_of_top_losses():
    figure = interpretation().plot_top_losses(3)
    titles = [ax.get_title() for ax in figure.axes if ax.get_title()]
    assert titles == ["missed: ant, cat\nadded: bee\nloss 2.00", "added: bee, cat\nloss 1.10", "loss 0.10"]
    assert [ax.title.get_color() == "black" for ax in figure.axes[:3]] == [False, False, True]
    assert [int(ax.images[0].get_array().max()) for ax in figure.axes[:3]] == [2, 1, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.zeros((2, 3))}, "2 targets for 3 rows of probabilities"),
        ({"losses": np.zeros(4)}, "4 losses for 3 rows of probabilities"),
        ({"dataset": []}, "0 examples for 3 rows"),
        ({"classes": ["a"]}, "1 classes for 3 columns"),
        ({"targets": np.full((3, 3), 0.3)}, "targets hold other values"),
    ],
)
def test_interpretation_refuses_what_does_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        interpretation(**change)


def colours(n=256, size=16, seed=0):
    """Noise whose channels are darkened independently, each with a chance of its own; a label per darkened channel."""
    rng = np.random.default_rng(seed)
    images = rng.integers(0, 256, (n, size, size, 3)).astype(np.uint8)
    rows = rng.random((n, 3)) < (0.5, 0.3, 0.15)
    return np.where(rows[:, None, None], images // 3, images).astype(np.uint8), rows.astype(np.float32)


def test_a_learner_is_interpreted_by_label():
    from jaxfast import losses, metrics
    from jaxfast.learner import Learner
    from jaxfast.models import ImageClassifier, LinearHead
    from jaxfast.models.resnet import BasicBlock, ResNet

    images, rows = colours()
    data = vision.from_arrays(images, rows, classes=["red", "green", "blue"], batch_size=32, valid=0.25, augment=False)
    module = ImageClassifier(ResNet((1,), BasicBlock, width=4), LinearHead(3), (127.0,) * 3, (64.0,) * 3)
    names = ["f2", metrics.accuracy_multi(0.3), metrics.f_beta(2, threshold=0.3)]
    learn = Learner(data, module, loss=losses.binary_cross_entropy, metrics=names, quiet=True)
    learn.fit(1, 0.02)
    found = learn.interpret()
    text = r"LabelInterpretation: \d+ examples of \d labels \(.*\), 0\.\d{4} of the answers right, loss \d\.\d{4}"
    assert re.fullmatch(text, repr(found)), repr(found)
    assert isinstance(found, LabelInterpretation) and len(found.top_losses(3)) == 3
    np.testing.assert_array_equal(found.targets, rows[data.valid.index])
    worst = found.top_losses(1)[0]
    per_example = losses.binary_cross_entropy(np.log(found.probabilities / (1 - found.probabilities)), found.targets)
    assert worst.index == int(np.argmax(per_example)) and worst.loss == pytest.approx(float(max(per_example)), rel=1e-3)
    # the same numbers as the metrics of a fit, whose sums are made on the device
    results = learn.validate()
    assert found.report().macro.f_beta == pytest.approx(results["f2"], abs=1e-5)
    assert found.report(0.3).macro.f_beta == pytest.approx(results["f2_at_0.3"], abs=1e-5)
    assert found.report(0.3).accuracy == pytest.approx(results["accuracy_multi_at_0.3"], abs=1e-5)
    tuned = found.report(found.best_thresholds())
    assert tuned.macro.f_beta >= max(found.report(t).macro.f_beta for t in (0.1, 0.3, 0.5)) - 1e-9
    assert tuned.classes == ("red", "green", "blue")
