"""Every metric against scikit-learn, whatever the batches and whatever the padded rows hold; and the intervals."""

import builtins
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics as sk
from scipy import stats
from small import data, learner

from jaxfast import losses, metrics, vision
from jaxfast.interpret.intervals import Interval, confidence_interval, wilson
from jaxfast.metrics import METRICS, HostMetric, Metric, Undefined, f_beta, mean_of, precision, recall, resolve, top_k
from jaxfast.metrics.protocol import count, total

compiled = functools.cache(lambda metric: jax.jit(metric.update))


def measure(metric, outputs, targets, batch=16):
    """The value by batches of `batch` rows, the last one padded with garbage."""
    (metric,) = resolve(metric)
    outputs, targets = np.asarray(outputs), np.asarray(targets)
    if isinstance(metric, HostMetric):
        return metric.compute(outputs, targets)
    sums = None
    for start in range(0, len(outputs), batch):
        piece = slice(start, start + batch)
        real = len(outputs[piece])
        garbage = np.where(np.arange(outputs[0].size).reshape(outputs[0].shape) % 2, np.nan, 1e30)
        padded = np.concatenate([outputs[piece], np.broadcast_to(garbage, (batch - real, *garbage.shape))])
        junk = np.full((batch - real, *targets.shape[1:]), 1, targets.dtype)
        labels = np.concatenate([targets[piece], junk])
        part = jax.device_get(compiled(metric)(np.float32(padded), labels, np.arange(batch) < real))
        sums = part if sums is None else jax.tree.map(np.add, sums, part)
    return metric.compute(sums)


def softmax(logits):
    return np.array([np.exp(row) / math.fsum(np.exp(row)) for row in np.float64(logits)])


def labels_case(n, classes, seed, *, skill=1.0, absent=()):
    rng = np.random.default_rng(seed)
    allowed = [c for c in range(classes) if c not in absent]
    targets = rng.choice(allowed, n).astype(np.int32)
    logits = rng.normal(size=(n, classes)) + skill * np.eye(classes)[targets]
    return logits.astype(np.float32), targets


SINGLE = {
    "binary": labels_case(101, 2, 0),
    "six classes": labels_case(201, 6, 1),
    "a class never occurs": labels_case(150, 6, 2, absent=(3,)),
    "one example of each": (labels_case(6, 6, 3)[0], np.arange(6, dtype=np.int32)),
    "all one class": (labels_case(40, 6, 4)[0], np.full(40, 2, np.int32)),
    "all of class 0 of two": (labels_case(40, 2, 5)[0], np.zeros(40, np.int32)),
    "perfect": (20 * np.eye(6, dtype=np.float32)[np.arange(30) % 6], (np.arange(30) % 6).astype(np.int32)),
    "all wrong": (20 * np.eye(6, dtype=np.float32)[np.arange(30) % 6], ((np.arange(30) + 1) % 6).astype(np.int32)),
    "always class 0": (20 * np.eye(6, dtype=np.float32)[np.zeros(30, int)], (np.arange(30) % 6).astype(np.int32)),
}
"""(logits, labels) by what is special about them."""


def own(function, **options):
    return lambda logits, targets: function(targets, logits.argmax(1), **options)


def averaged(function, average=None, **options):
    """scikit-learn's value with the average that the name stands for."""

    def value(logits, targets):
        kind = average or ("binary" if logits.shape[1] == 2 else "macro")
        if kind == "micro":
            options["labels"] = np.arange(logits.shape[1])
        return function(targets, logits.argmax(1), average=kind, zero_division=0, **options)

    return value


def balanced(logits, targets):
    return np.mean([(logits.argmax(1)[targets == c] == c).mean() for c in np.unique(targets)])


def top_2(logits, targets):
    return sk.top_k_accuracy_score(targets, logits, k=2, labels=np.arange(logits.shape[1]))


def perplexity(logits, targets):
    return np.exp(sk.log_loss(targets, softmax(logits), labels=np.arange(logits.shape[1])))


OF_LABELS = [
    ("accuracy", own(sk.accuracy_score)),
    ("error_rate", own(sk.zero_one_loss)),
    ("balanced_accuracy", balanced),
    ("matthews", own(sk.matthews_corrcoef)),
    ("perplexity", perplexity),
    ("mean_iou", own(sk.jaccard_score, average="macro", zero_division=0)),
    ("dice", averaged(sk.f1_score)),
    *((name + suffix, averaged(function, average, **options))
      for name, function, options in (
          ("precision", sk.precision_score, {}),
          ("recall", sk.recall_score, {}),
          ("f1", sk.f1_score, {}),
          ("f2", sk.fbeta_score, {"beta": 2}),
      )
      for suffix, average in (("", None), ("_macro", "macro"), ("_micro", "micro"))),
]  # fmt: skip


@pytest.mark.parametrize("case", SINGLE)
@pytest.mark.parametrize(("name", "reference"), OF_LABELS, ids=[name for name, _ in OF_LABELS])
def test_metrics_of_labels(name, reference, case):
    logits, targets = SINGLE[case]
    expected = reference(logits, targets)
    assert np.isfinite(expected)
    assert measure(name, logits, targets) == pytest.approx(expected, rel=2e-6, abs=1e-9)


@pytest.mark.parametrize("name", ["accuracy", "f1", "mean_iou", "perplexity"])
def test_batches_do_not_matter(name):
    logits, targets = SINGLE["six classes"]
    values = [measure(name, logits, targets, batch) for batch in (7, 67, 201, 256)]
    assert values == pytest.approx([values[0]] * 4, rel=2e-7 if name == "perplexity" else 0, abs=0)


def test_top_k():
    for case in ("six classes", "a class never occurs"):
        logits, targets = SINGLE[case]
        metric = top_k(2)
        assert metric.name == "top_2_accuracy"
        assert measure(metric, logits, targets) == pytest.approx(top_2(logits, targets))
    logits, targets = SINGLE["six classes"]
    expected = sk.top_k_accuracy_score(targets, logits, k=5, labels=range(6))
    assert measure("top_5_accuracy", logits, targets) == pytest.approx(expected)
    with pytest.raises(ValueError, match="top_5_accuracy needs at least 5 classes, the model has 2"):
        measure("top_5_accuracy", *SINGLE["binary"])


def test_one_logit_is_that_of_class_1():
    logits, targets = SINGLE["binary"]
    single = logits[:, 1] - logits[:, 0]
    for name in ("accuracy", "f1", "perplexity", "roc_auc"):
        expected = measure(name, logits, targets)
        for outputs, labels in (
            (single, targets.astype(np.float32)),
            (single, targets),
            (single[:, None], targets),
            (single[:, None], targets[:, None].astype(np.float32)),
        ):
            assert measure(name, outputs, labels) == pytest.approx(expected, rel=1e-5), name


# Ranking


def one_vs_rest(function, logits, targets, columns):
    return np.mean([function(targets == c, softmax(logits)[:, c]) for c in columns])


@pytest.mark.parametrize(("name", "reference"), [("roc_auc", sk.roc_auc_score),
                                                 ("average_precision", sk.average_precision_score)])  # fmt: skip
def test_ranking_of_labels(name, reference):
    logits, targets = SINGLE["binary"]
    assert measure(name, logits, targets) == pytest.approx(reference(targets, softmax(logits)[:, 1]))
    for case in ("six classes", "one example of each", "perfect", "all wrong", "always class 0"):
        logits, targets = SINGLE[case]
        assert measure(name, logits, targets) == pytest.approx(one_vs_rest(reference, logits, targets, range(6)))
    logits, targets = SINGLE["six classes"]
    probabilities = softmax(logits)
    options = {"multi_class": "ovr"} if name == "roc_auc" else {}
    assert measure(name, logits, targets) == pytest.approx(
        reference(targets, probabilities, average="macro", **options)
    )
    logits, targets = SINGLE["a class never occurs"]
    assert measure(name, logits, targets) == pytest.approx(one_vs_rest(reference, logits, targets, [0, 1, 2, 4, 5]))


def test_ranking_where_probabilities_would_round_to_one():
    logits = np.array([[0, 50], [0, 60], [0, 70], [0, 80]], np.float32)
    assert measure("roc_auc", logits, np.array([0, 0, 1, 1])) == 1


def test_ranking_without_both_sides():
    with pytest.raises(Undefined, match="roc_auc is undefined: no class has examples on both sides of it among the 40"):
        measure("roc_auc", *SINGLE["all one class"])
    with pytest.raises(Undefined, match="average_precision is undefined: no class has examples of it among the 40"):
        measure("average_precision", *SINGLE["all of class 0 of two"])
    assert measure("average_precision", *SINGLE["all one class"]) == 1
    assert np.isnan(measure("roc_auc", np.array([[0.0, np.nan], [1, 2]]), np.array([0, 1])))


# Multi-hot rows


def multi_case(n=90, classes=5, seed=0):
    rng = np.random.default_rng(seed)
    targets = (rng.random((n, classes)) < 0.3).astype(np.float32)
    targets[:, 3] = 0  # never occurs
    targets[:4] = 0
    logits = (rng.normal(size=(n, classes)) + 2 * targets - 1).astype(np.float32)
    logits[2:8] = -5  # nothing predicted: of two of these rows nothing is true either
    return logits, targets


def probabilities(logits):
    return 1 / (1 + np.exp(-np.float64(logits)))


MULTI = [
    *((f"{name}{suffix}", function, average, options)
      for name, function, options in (
          ("precision", sk.precision_score, {}),
          ("recall", sk.recall_score, {}),
          ("f1", sk.f1_score, {}),
          ("f2", sk.fbeta_score, {"beta": 2}),
      )
      for suffix, average in (("", "macro"), ("_macro", "macro"), ("_micro", "micro"))),
    ("f2_samples", sk.fbeta_score, "samples", {"beta": 2}),
]  # fmt: skip


@pytest.mark.parametrize(("name", "function", "average", "options"), MULTI, ids=[row[0] for row in MULTI])
def test_metrics_of_multi_hot_rows(name, function, average, options):
    logits, targets = multi_case()
    expected = function(targets, probabilities(logits) > 0.5, average=average, zero_division=0, **options)
    assert measure(name, logits, targets) == pytest.approx(expected, rel=2e-6)


F2 = functools.partial(sk.fbeta_score, beta=2)
MICRO = {"average": "micro"}


def elementwise(targets, predicted, zero_division):
    return (targets == predicted).mean()


@pytest.mark.parametrize(
    ("metric", "name", "function", "options"),
    [
        (f_beta(2, average="samples", threshold=0.2), "f2_samples_at_0.2", F2, {"average": "samples"}),
        (f_beta(0.5, average="micro", threshold=0.7), "f0.5_micro_at_0.7", sk.fbeta_score, {"beta": 0.5, **MICRO}),
        (precision(average="micro", threshold=0.3), "precision_micro_at_0.3", sk.precision_score, MICRO),
        (recall(threshold=0.2), "recall_at_0.2", sk.recall_score, {"average": "macro"}),
        (metrics.accuracy_multi(0.3), "accuracy_multi_at_0.3", elementwise, {}),
        (metrics.accuracy_multi(), "accuracy_multi", elementwise, {}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_thresholds(metric, name, function, options):
    logits, targets = multi_case(seed=1)
    assert metric.name == name
    threshold = float(name.split("_")[-1]) if "_at_" in name else 0.5
    expected = function(targets, probabilities(logits) > threshold, zero_division=0, **options)
    assert measure(metric, logits, targets) == pytest.approx(expected, rel=2e-6)


def test_ranking_of_multi_hot_rows():
    logits, targets = multi_case()
    seen = [0, 1, 2, 4]
    expected = sk.roc_auc_score(targets[:, seen], logits[:, seen], average="macro")
    assert measure("roc_auc", logits, targets) == pytest.approx(expected)
    expected = sk.average_precision_score(targets[:, seen], logits[:, seen], average="macro")
    assert measure("average_precision", logits, targets) == pytest.approx(expected)


def test_multi_hot_without_anything():
    logits, targets = np.full((20, 4), -5, np.float32), np.zeros((20, 4), np.float32)
    for name in ("f1", "f2_samples", "precision_micro", "recall_macro"):
        assert measure(name, logits, targets) == 0
    assert measure("accuracy_multi", logits, targets) == 1


# Masks and tokens


def pixels(classes=4, seed=0, n=5, void=None):
    rng = np.random.default_rng(seed)
    targets = rng.integers(0, classes - 1, (n, 6, 7)).astype(np.int32)
    logits = (rng.normal(size=(n, 6, 7, classes)) + np.eye(classes)[targets]).astype(np.float32)
    if void is not None:
        targets[rng.random(targets.shape) < 0.2] = void
    return logits, targets


@pytest.mark.parametrize("void", [None, 255, -1, 3])
@pytest.mark.parametrize("make", [metrics.mean_iou, metrics.dice, metrics.accuracy], ids=lambda make: make.__name__)
def test_masks(make, void):
    logits, targets = pixels(void=void)
    kept = targets.reshape(-1) != void if void is not None else np.ones(targets.size, bool)
    truth, predicted = targets.reshape(-1)[kept], logits.argmax(-1).reshape(-1)[kept]
    assert len(np.unique(predicted)) == 4
    if make is metrics.accuracy:
        expected = sk.accuracy_score(truth, predicted)
    else:
        function = sk.jaccard_score if make is metrics.mean_iou else sk.f1_score
        classes = [0, 1, 2] if void == 3 else [0, 1, 2, 3]
        expected = function(truth, predicted, average="macro", labels=classes, zero_division=0)
    metric = make(void)
    assert measure(metric, logits, targets, batch=5) == pytest.approx(expected)
    assert measure(metric, logits, targets, batch=2) == pytest.approx(expected)


def test_masks_of_two_classes():
    logits, targets = pixels(2)
    targets = (np.random.default_rng(1).random(targets.shape) < 0.4).astype(np.int32)
    truth, predicted = targets.reshape(-1), logits.argmax(-1).reshape(-1)
    assert measure("dice", logits, targets, batch=2) == pytest.approx(sk.f1_score(truth, predicted))
    assert measure("mean_iou", logits, targets) == pytest.approx(sk.jaccard_score(truth, predicted, average="macro"))
    one = logits[..., 1:] - logits[..., :1]
    assert measure("dice", one, targets, batch=2) == pytest.approx(sk.f1_score(truth, predicted))


def test_only_void_pixels():
    logits, targets = pixels()
    for make in (metrics.mean_iou, metrics.dice, metrics.accuracy):
        assert measure(make(255), logits, np.full_like(targets, 255)) == 0


def test_tokens():
    rng = np.random.default_rng(0)
    logits, targets = rng.normal(size=(9, 11, 7)).astype(np.float32), rng.integers(0, 7, (9, 11))
    flat = logits.reshape(-1, 7), targets.reshape(-1)
    for name in ("accuracy", "perplexity", "f1"):
        assert measure(name, logits, targets, batch=4) == pytest.approx(measure(name, *flat), rel=1e-6)
    assert measure("perplexity", np.zeros((3, 5, 7), np.float32), np.ones((3, 5), int)) == pytest.approx(7)
    assert np.isfinite(measure("perplexity", np.array([[1e6, 0]]), np.array([1])))


# Numbers


@pytest.mark.parametrize("shape", [(50,), (50, 3)])
@pytest.mark.parametrize(
    ("name", "reference"),
    [("mse", sk.mean_squared_error), ("rmse", None), ("mae", sk.mean_absolute_error), ("r2", sk.r2_score)],
)
def test_metrics_of_numbers(name, reference, shape):
    rng = np.random.default_rng(0)
    targets = rng.normal(3, 2, shape).astype(np.float32)
    outputs = (targets + rng.normal(size=shape)).astype(np.float32)
    expected = np.sqrt(sk.mean_squared_error(targets, outputs)) if name == "rmse" else reference(targets, outputs)
    assert measure(name, outputs, targets) == pytest.approx(expected, rel=1e-6)
    assert measure(name, outputs[..., None], targets) == pytest.approx(expected, rel=1e-6)


def test_r2_where_the_mean_is_large_or_all():
    rng = np.random.default_rng(0)
    years = rng.integers(1990, 2020, 5000).astype(np.float32)
    guess = years + rng.normal(0, 3, 5000).astype(np.float32)
    assert measure("r2", guess, years) == pytest.approx(sk.r2_score(np.float64(years), np.float64(guess)), rel=1e-12)
    constant = np.full(20, 7, np.float32)
    assert measure("r2", constant, constant) == sk.r2_score(constant, constant) == 1
    assert measure("r2", constant + 1, constant) == sk.r2_score(constant, constant + 1) == 0


# Exactness


def test_counts_beyond_fp32():
    batches, each = 3000, 2**20 + 1
    part = jax.device_get(count(jnp.int32(each)))
    added = jax.tree.map(lambda leaf: np.sum([leaf] * batches, dtype=np.int32), part)
    assert total(added) == batches * each > 2**31


def test_one_example_in_many_counts():
    right, wrong = np.array([[0, 1], [1, 0]], np.float32), np.array([1, 1])
    metric = METRICS["accuracy"]
    sums = jax.device_get(metric.update(jnp.asarray(right), jnp.asarray(wrong), jnp.ones(2, bool)))
    many = jax.tree.map(lambda leaf: np.int32(leaf * 2**23), sums)  # 2**24 examples, half of them right
    more = jax.tree.map(np.add, many, sums)
    assert metric.compute(more) == (2**23 + 1) / (2**24 + 2)


# Names and functions


def test_names():
    assert [metric.name for metric in resolve(METRICS)] == list(METRICS)
    documented = (
        "accuracy top_5_accuracy error_rate balanced_accuracy f1 f1_macro f1_micro f2 f2_samples precision recall"
    )
    documented += " roc_auc average_precision r2 rmse mae mse matthews perplexity dice mean_iou accuracy_multi"
    assert set(documented.split()) <= set(METRICS)


def test_functions_of_the_user():
    def off_by_one(outputs, target):
        return abs(outputs.argmax(-1) - target) <= 1

    def margin(outputs, target):
        return jnp.take_along_axis(outputs, target[:, None], 1)[:, 0] - outputs.mean(1)

    logits, targets = SINGLE["six classes"]
    exact = (abs(logits.argmax(1) - targets) <= 1).mean()
    assert measure(off_by_one, logits, targets) == exact
    expected = (logits[np.arange(len(targets)), targets] - logits.mean(1)).mean()
    assert measure(margin, logits, targets) == pytest.approx(expected, rel=1e-5)
    assert [metric.name for metric in resolve([off_by_one, margin])] == ["off_by_one", "margin"]
    renamed = mean_of("half", margin, lambda mean: mean / 2)
    assert measure(renamed, logits, targets) == pytest.approx(expected / 2, rel=1e-5)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: resolve("acuracy"), "unknown metric 'acuracy'.*did you mean 'accuracy'"),
        (lambda: resolve(["roc_acu"]), "did you mean 'roc_auc'"),
        (lambda: resolve([3]), "metric 3 is a int: give a name, a function or a Metric"),
        (lambda: resolve([top_k]), r"top_k makes a metric: give top_k\(...\)"),
        (lambda: resolve(["f1", f_beta(1)]), "the metric name 'f1' is given twice"),
        (lambda: resolve([mean_of("loss", lambda outputs, target: target)]), "the metric name 'loss' is reserved"),
        (lambda: f_beta(0), "beta is above 0"),
        (lambda: f_beta(1, average="weighted"), "give macro, micro, samples or None"),
        (lambda: f_beta(1, threshold=1.5), "give a probability between 0 and 1"),
        (lambda: top_k(0), "k is at least 1"),
        (lambda: measure("accuracy", *multi_case()), r"one label for each row.*\(16, 5\).*use accuracy_multi"),
        (lambda: measure("accuracy_multi", *SINGLE["binary"]), r"multi-hot rows as long.*for labels use accuracy"),
        (lambda: measure("f2_samples", *SINGLE["binary"]), "averages over multi-hot rows"),
        (lambda: measure("mse", np.zeros((4, 2)), np.zeros(4)), r"compares numbers one by one.*\(16, 2\).*\(16,\)"),
        (lambda: measure(lambda outputs, target: outputs.mean(), *SINGLE["binary"]), "return one value per example"),
    ],
)
def test_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        wrong()


def test_scikit_learn_is_missed_before_training(monkeypatch):
    load = builtins.__import__

    def without(name, *rest, **options):
        if name.split(".")[0] == "sklearn":
            raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn")
        return load(name, *rest, **options)

    monkeypatch.setattr("importlib.import_module", lambda name: without(name))
    with pytest.raises(
        ImportError, match=r"roc_auc and average_precision need sklearn: pip install 'jaxfast\[metrics\]'"
    ):
        resolve(["accuracy", "roc_auc"])
    assert resolve("accuracy")[0].name == "accuracy"


# In a learner


@pytest.mark.parametrize("resident", [True, False])
def test_a_learner_with_metrics_of_both_kinds(resident):
    """67 validation rows: not a multiple of the batch of 32."""
    names = ["accuracy", "roc_auc", "f1", "matthews", "perplexity"]
    learn = learner(data(n=335, valid=0.2, augment=False), metrics=names, resident=resident)
    results = learn.validate()
    assert list(results) == ["loss", *names]
    probability, targets = learn.get_preds()
    assert len(targets) == 67
    assert results["accuracy"] == pytest.approx(sk.accuracy_score(targets, probability.argmax(1)))
    assert results["f1"] == pytest.approx(sk.f1_score(targets, probability.argmax(1), average="macro", zero_division=0))
    assert results["roc_auc"] == pytest.approx(sk.roc_auc_score(targets, probability, multi_class="ovr"), abs=1e-5)
    assert results["perplexity"] == pytest.approx(np.exp(results["loss"]), rel=1e-5)
    outputs, again, _ = learn.evaluator.outputs(learn.state.variables, learn.data.valid)
    np.testing.assert_array_equal(again, targets)
    np.testing.assert_allclose(jax.nn.softmax(outputs), probability, rtol=1e-4, atol=1e-6)


def test_a_multi_label_learner():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (96, 8, 8, 3)).astype(np.uint8)
    rows = (rng.random((96, 3)) < 0.4).astype(np.float32)
    task = vision.from_arrays(images, rows, batch_size=32, augment=False)
    names = ["accuracy_multi", "f2_samples", "roc_auc"]
    learn = learner(task, loss=losses.binary_cross_entropy, metrics=names)
    results = learn.validate()
    probability, targets = learn.get_preds()
    assert results["accuracy_multi"] == pytest.approx(((probability > 0.5) == targets).mean())
    expected = sk.fbeta_score(targets, probability > 0.5, beta=2, average="samples", zero_division=0)
    assert results["f2_samples"] == pytest.approx(expected)
    assert results["roc_auc"] == pytest.approx(sk.roc_auc_score(targets, probability), abs=1e-6)


# Intervals


@pytest.mark.parametrize(("hits", "n", "level"), [(0, 10, 0.95), (10, 10, 0.95), (7, 10, 0.9), (483, 1000, 0.99)])
def test_wilson(hits, n, level):
    expected = stats.binomtest(hits, n).proportion_ci(level, method="wilson")
    found = wilson(hits, n, level)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)
    assert found.value == hits / n


def test_an_interval_of_a_share_is_wilsons():
    logits, targets = SINGLE["six classes"]
    right = int((logits.argmax(1) == targets).sum())
    assert confidence_interval("accuracy", logits, targets, n=5) == wilson(right, 201)
    wrong = confidence_interval("error_rate", logits, targets, n=5)
    assert wrong == wilson(201 - right, 201)
    perfect = confidence_interval("accuracy", *SINGLE["perfect"], n=5)
    assert perfect.value == perfect.high == 1 and 0.85 < perfect.low < 0.95


@pytest.mark.parametrize("name", ["f1", "balanced_accuracy", "mse", "roc_auc", "r2"])
def test_bootstrap_against_resampled_rows(name):
    """The quantiles of metrics of rows that were drawn one by one: the same distribution, another stream."""
    if name in ("mse", "r2"):
        rng = np.random.default_rng(0)
        targets = rng.normal(size=300).astype(np.float32)
        outputs = targets + rng.normal(size=300).astype(np.float32)
    else:
        outputs, targets = labels_case(300, 2, 0)
    found = confidence_interval(name, outputs, targets, n=300, level=0.8)
    assert found.value == pytest.approx(measure(name, outputs, targets), rel=1e-6)
    assert found.low < found.value < found.high
    rng = np.random.default_rng(1)
    metric = METRICS[name]
    update = None if isinstance(metric, HostMetric) else jax.jit(metric.update)
    values = []
    for _ in range(300):
        rows = rng.integers(300, size=300)
        if update is None:
            values.append(metric.compute(outputs[rows], targets[rows]))
        else:
            values.append(metric.compute(jax.device_get(update(outputs[rows], targets[rows], np.ones(300, bool)))))
    low, high = np.quantile(values, [0.1, 0.9])
    spread = np.std(values)
    assert abs(found.low - low) < 0.4 * spread  # 2.9 standard errors of the difference
    assert abs(found.high - high) < 0.4 * spread


def test_intervals_repeat_and_narrow():
    logits, targets = labels_case(600, 3, 0)
    one, two, other = (confidence_interval("f1", logits, targets, n=200, seed=seed) for seed in (0, 0, 1))
    assert one == two != other
    fewer = confidence_interval("f1", logits[:60], targets[:60], n=200)
    assert fewer.high - fewer.low > 2 * (one.high - one.low)
    wide = confidence_interval("f1", logits, targets, n=200, level=0.99)
    assert wide.low < one.low < one.high < wide.high
    assert str(Interval(0.5, 0.25, 0.75, 0.95)) == "0.5000 (95% 0.2500 to 0.7500)"


def test_an_interval_of_images_draws_whole_images():
    """Pixels of an image are not independent: with one image the interval has no width."""
    logits, targets = pixels(n=1)
    found = confidence_interval("accuracy", logits, targets, n=50)
    assert found.low == found.value == found.high


def test_bootstrap_leaves_out_samples_without_a_value():
    logits = np.array([[0.0, 1], [0, 2], [0, 3]])
    found = confidence_interval("roc_auc", logits, np.array([0, 0, 1]), n=50)
    assert (found.low, found.high) == (1, 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": 95}, "level is 95: give a chance"),
        ({"n": 0}, "draw at least 1"),
        ({"targets": np.zeros(3, int)}, "201 rows of outputs and 3 targets"),
    ],
)
def test_interval_errors(options, message):
    logits, targets = SINGLE["six classes"]
    arguments = {"metric": "f1", "outputs": logits, "targets": targets} | options
    with pytest.raises(ValueError, match=message):
        confidence_interval(**arguments)


def test_metrics_are_tuples_that_can_be_renamed():
    assert isinstance(METRICS["f1"], Metric)
    assert resolve(["f1", METRICS["f1"]._replace(name="again")])[1].name == "again"
