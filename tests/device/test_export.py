"""An export that was written on the CPU, read and run on the device."""

import jax
import numpy as np
from small import data

from jaxfast import load_export, losses, training
from jaxfast.export import save_export
from jaxfast.models import ClassifierHead, ImageClassifier
from jaxfast.models.resnet import BasicBlock, ResNet

from .parity import accelerator, host


def test_an_export_predicts_as_it_does_on_the_cpu(tmp_path):
    net = ImageClassifier(
        ResNet((1,), BasicBlock, width=8), ClassifierHead(3, hidden=(8,)), mean=(127.0,) * 3, std=(64.0,) * 3
    )
    task, path = data(16, n=100, size=12, presize=16), tmp_path / "squares.jaxfast"
    batch = task.valid.batch(np.arange(7))
    with jax.default_device(host()):
        key = jax.random.key(0)
        save_export(path, net, training.state.init_variables(net, key, batch["image"]), task, losses.cross_entropy)
        expected = predictions(load_export(path), batch, host())
    found = predictions(load_export(path), batch, accelerator())
    assert found.shape == (7, 3) and np.ptp(found, 0).min() > 1e-3  # the images are told apart
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def predictions(export, batch, device):
    assert {device} == set().union(*(weight.devices() for weight in export.weights.values()))
    return export(batch)
