import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import confusion_matrix

from jaxfast.interpret import Interpretation, grad_cam
from jaxfast.interpret.heatmap import _grad_cam

# --- heat-maps


class Tiny(nn.Module):
    """Two blocks, global average pool and a dense layer: the protocol of jaxfast's classifiers."""

    dtype: jnp.dtype = jnp.float32

    @property
    def block_names(self):
        return ("first", "second")

    def setup(self):
        self.first = nn.Conv(4, (3, 3), strides=2, dtype=self.dtype)
        self.second = nn.Conv(5, (3, 3), strides=2, dtype=self.dtype)
        self.dense = nn.Dense(3)

    def features(self, images, train=False, *, until=None):
        x, outputs = images.astype(self.dtype) / 255, {}
        for name in self.block_names:
            x = outputs[name] = jnp.tanh(getattr(self, name)(x))
            if name == until:
                break
        return outputs

    def from_features(self, activation, after, train=False):
        if after == "first":
            activation = jnp.tanh(self.second(activation))
        return self.dense(activation.mean((1, 2)).astype(jnp.float32))

    def __call__(self, images, train=False):
        return self.from_features(self.features(images)["second"], "second")


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (16, 24, 3)).astype(np.uint8)


@pytest.fixture(scope="module")
def variables(image):
    return jax.jit(Tiny().init)(jax.random.key(0), image[None])


def torch_forward(variables, activation, layer):
    """The rest of Tiny after a layer, in float64 torch; activation (1, C, h, w)."""
    params = jax.tree.map(lambda leaf: torch.tensor(np.asarray(leaf, np.float64)), variables["params"])
    if layer == "first":
        padded = torch.nn.functional.pad(activation, (0, 1, 0, 1))  # "SAME" of an even extent and stride 2
        kernel = params["second"]["kernel"].permute(3, 2, 0, 1)
        activation = torch.tanh(torch.nn.functional.conv2d(padded, kernel, params["second"]["bias"], stride=2))
    return activation.mean((2, 3)) @ params["dense"]["kernel"] + params["dense"]["bias"]


def reference(variables, image, layer, target, plus):
    """Grad-CAM by torch's autograd and Grad-CAM++ with its three derivatives taken one by one."""
    found = jax.jit(Tiny().apply, static_argnames="method")(variables, image[None], method="features")
    activation = torch.tensor(np.asarray(found[layer], np.float64)).permute(0, 3, 1, 2).requires_grad_()
    logits = torch_forward(variables, activation, layer)
    (gradient,) = torch.autograd.grad(logits[0, target], activation)
    if plus:
        # Along one activation the score is taken as linear, so the derivatives of exp(S) are exp(S) g, g², g³.
        score = torch.exp(logits[0, target])
        second, third = score * gradient**2, score * gradient**3
        alpha = second / (2 * second + activation.sum((2, 3), keepdim=True) * third)
        weights = (alpha * torch.relu(score * gradient)).sum((2, 3), keepdim=True)
    else:
        weights = gradient.mean((2, 3), keepdim=True)
    values = torch.relu((weights * activation).sum(1))[0]
    probability = torch.softmax(logits, 1)[0, target]
    return (values / values.max().clamp(min=1e-12)).detach().numpy(), probability.item(), logits[0].argmax().item()


@pytest.mark.parametrize("plus", [False, True])
@pytest.mark.parametrize("layer", ["first", "second"])
@pytest.mark.parametrize("target", [0, 1])
def test_grad_cam_equals_torchs_autograd(variables, image, layer, target, plus):
    found = grad_cam(Tiny(), variables, image, target=target, layer=layer, plus=plus)
    values, probability, _ = reference(variables, image, layer, target, plus)
    np.testing.assert_allclose(found.values, values, atol=1e-4)
    assert found.probability == pytest.approx(probability, abs=1e-5)
    assert found.values.shape == {"first": (8, 12), "second": (4, 6)}[layer]
    assert found.values.dtype == np.float32 and found.values.min() >= 0 and found.values.max() <= 1


def test_defaults_are_the_predicted_class_and_the_last_block(variables, image):
    found = grad_cam(Tiny(), variables, image, classes=["a", "b", "c"])
    _, probability, predicted = reference(variables, image, "second", 0, False)
    assert (found.layer, found.target, found.label) == ("second", predicted, "abc"[predicted])
    assert grad_cam(Tiny(), variables, image).label == str(predicted)
    np.testing.assert_array_equal(found.image, image)
    assert found.image.dtype == np.uint8


def test_asking_for_a_class_compiles_nothing_new(variables, image):
    grad_cam(Tiny(), variables, image)
    before = _grad_cam._cache_size()
    grad_cam(Tiny(), variables, image.copy(), target=1)
    assert _grad_cam._cache_size() == before


def test_the_map_finds_the_patch_that_decides():
    """One channel that copies brightness, one class that likes it: only the bright patch is evidence."""
    params = {
        "first": {"kernel": np.zeros((3, 3, 3, 4)), "bias": np.zeros(4)},
        "second": {"kernel": np.zeros((3, 3, 4, 5)), "bias": np.zeros(5)},
        "dense": {"kernel": np.zeros((5, 3)), "bias": np.zeros(3)},
    }
    params["first"]["kernel"][1, 1, :, 0] = params["second"]["kernel"][1, 1, 0, 0] = 1
    params["dense"]["kernel"][0, 1] = 5
    image = np.zeros((32, 32, 3), np.uint8)
    image[8:16, 20:28] = 255
    found = grad_cam(Tiny(), {"params": params}, image)
    rows, columns = np.nonzero(found.values > 0.5)  # a cell of the last block is 4 pixels wide
    assert found.target == 1 and set(rows) == {2, 3} and set(columns) == {5, 6}
    against = grad_cam(Tiny(), {"params": params}, image, target=0)
    np.testing.assert_array_equal(against.values, 0)


def test_half_precision_gives_full_precision_values(variables, image):
    half = grad_cam(Tiny(dtype=jnp.bfloat16), variables, image, target=0)
    assert half.values.dtype == np.float32
    np.testing.assert_allclose(half.values, grad_cam(Tiny(), variables, image, target=0).values, atol=0.1)


def test_heatmap_draws_itself(variables, image):
    figure = grad_cam(Tiny(), variables, image, target=1, classes=["a", "bee", "c"]).plot()
    assert figure._suptitle.get_text().startswith("bee, p 0.")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": "secnd"}, "no layer 'secnd': did you mean 'second'?"),
        ({"layer": "xyz"}, "no layer 'xyz': choose from first, second"),
        ({"target": 3}, "target is 3: give a class from 0 to 2"),
        ({"target": -1}, "target is -1: give a class from 0 to 2"),
    ],
)
def test_unknown_layers_and_classes_are_refused(variables, image, options, message):
    with pytest.raises(ValueError) as caught:
        grad_cam(Tiny(), variables, image, **options)
    assert message in str(caught.value)


def test_a_batch_is_no_image(variables, image):
    with pytest.raises(ValueError, match=r"shape \(1, 16, 24, 3\): give one \(height, width, channels\)"):
        grad_cam(Tiny(), variables, image[None])


# --- classification

CLASSES = ["ant", "bee", "cat"]


def interpretation(targets, predicted, losses=None):
    targets, predicted = np.asarray(targets, int), np.asarray(predicted, int)
    probabilities = np.full((len(targets), 3), 0.2)
    probabilities[np.arange(len(targets)), predicted] = 0.6
    images = [{"image": np.full((4, 4, 3), n, np.uint8)} for n in range(len(targets))]
    losses = np.arange(len(targets), dtype=float) if losses is None else np.asarray(losses)
    return Interpretation(probabilities, targets, losses, CLASSES, images)


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=30))
def test_confusion_matrix_is_sklearns(pairs):
    targets, predicted = zip(*pairs, strict=True)
    ours = interpretation(targets, predicted).confusion_matrix()
    np.testing.assert_array_equal(ours, confusion_matrix(targets, predicted, labels=[0, 1, 2]))


def test_most_confused_lists_errors_by_frequency():
    found = interpretation([0, 0, 0, 1, 2, 2, 2, 1], [0, 1, 1, 0, 1, 1, 1, 1])
    assert found.most_confused() == [("cat", "bee", 3), ("ant", "bee", 2), ("bee", "ant", 1)]
    assert found.most_confused(min=2) == [("cat", "bee", 3), ("ant", "bee", 2)]
    assert found.most_confused(min=0) == found.most_confused()
    assert interpretation([0, 1], [0, 1]).most_confused() == []


def test_top_losses_are_sorted_and_know_their_rows():
    found = interpretation([0, 1, 2], [0, 2, 2], losses=[0.1, 2.5, 0.7])
    assert found.top_losses(2) == [(1, 2.5, "bee", "cat", 0.6), (2, 0.7, "cat", "cat", 0.6)]
    assert [row.index for row in found.top_losses()] == [1, 2, 0]


def test_plots_show_the_rows_they_name():
    found = interpretation([0, 1, 2], [0, 2, 2], losses=[0.1, 2.5, 0.7])
    axes = found.plot_top_losses(2).axes
    assert axes[0].get_title() == "predicted cat\nactual bee\nloss 2.50, p 0.60"
    assert [ax.images[0].get_array()[0, 0, 0] for ax in axes] == [1, 2]
    np.testing.assert_allclose(found.plot_confusion_matrix().axes[0].images[0].get_array().sum(1), 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": np.array([0, 3])}, "a target is 3: give integers from 0 to 2"),
        ({"targets": np.array([-1, 0])}, "a target is -1: give integers from 0 to 2"),
        ({"targets": np.array([0.0, 1.0])}, "targets are float64: give integers from 0 to 2"),
        ({"targets": np.array([0])}, "1 targets for 2 rows of probabilities"),
        ({"losses": np.zeros(3)}, "3 losses for 2 rows of probabilities"),
        ({"dataset": [{}]}, "1 examples for 2 rows of probabilities"),
        ({"classes": ["a"]}, "1 classes for 3 columns of probabilities"),
    ],
)
def test_unfit_parts_are_refused(change, message):
    parts = dict(
        probabilities=np.full((2, 3), 1 / 3),
        targets=np.array([0, 1]),
        losses=np.zeros(2),
        classes=CLASSES,
        dataset=[{}, {}],
    )
    with pytest.raises(ValueError) as caught:
        Interpretation(**parts | change)
    assert message in str(caught.value)
