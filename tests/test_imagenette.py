"""Imagenette's recipe on fake images in TFDS's files: its optimizer against torch's, its data, and a run."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

pytest.importorskip("tensorflow_datasets", reason="pip install 'jaxfast[tfds]'")

from test_tfds import PICTURES, _examples, _write

from experiments import imagenette

TINY = imagenette.Config(size=16, epochs=4, batch_size=16, lr=2e-2, stage_sizes=(1, 1), width=8)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data directory with the set "imagenette": coloured noise, 96 training and 24 validation images."""
    root = tmp_path_factory.mktemp("tfds")
    _write(root, "imagenette", PICTURES, {"train": _examples(0, 96), "validation": _examples(96, 120)})
    return str(root)


def test_ranger_is_torchs_radam_with_slow_weights():
    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(4, 3)).astype(np.float32), "bias": rng.normal(size=3).astype(np.float32)}
    gradients = [{name: rng.normal(size=x.shape).astype(np.float32) for name, x in params.items()} for _ in range(20)]
    lr, momentum, decay = 0.05, 0.9, 0.1

    theirs = {name: torch.tensor(x, requires_grad=True) for name, x in params.items()}
    groups = [{"params": [theirs["kernel"]], "weight_decay": decay}, {"params": [theirs["bias"]], "weight_decay": 0.0}]
    radam = torch.optim.RAdam(groups, lr, (momentum, 0.99), 1e-6, decoupled_weight_decay=True)
    slow = {name: x.detach().clone() for name, x in theirs.items()}
    for i, gradient in enumerate(gradients, start=1):
        for name, x in theirs.items():
            x.grad = torch.tensor(gradient[name])
        radam.step()
        if i % 6 == 0:
            for name, x in theirs.items():
                slow[name] += 0.5 * (x.detach() - slow[name])
                x.data.copy_(slow[name])

    @jax.jit
    def step(params, state, gradient):
        hypers = {"lr": jnp.array([lr]), "momentum": jnp.float32(momentum), "weight_decay": jnp.float32(decay)}
        updates, state = imagenette.ranger(hypers).update(gradient, state, params)
        return jax.tree.map(jnp.add, params, updates), state

    state = imagenette.ranger({"lr": jnp.zeros(1), "momentum": 0.9, "weight_decay": 0.0}).init(params)
    for gradient in gradients:
        params, state = step(params, state, gradient)
    for name, x in theirs.items():
        np.testing.assert_allclose(params[name], x.detach().numpy(), rtol=2e-4, atol=2e-5)


def test_data(root):
    data = imagenette.load(TINY, "imagenette", root, seed=0)
    assert (len(data.train), len(data.valid)) == (96, 24) and data.classes == ("red", "green", "blue")
    assert data.size == (16, 16) and data.train.size == (18, 18)
    batch = data.augment(jax.random.key(0), data.train.batch(np.arange(4)))
    assert batch["image"].shape == (4, 16, 16, 3)


def test_a_run(root, tmp_path):
    result = imagenette.run(TINY, "imagenette", root, 1, tmp_path)
    assert json.loads((tmp_path / "result.json").read_text()) == json.loads(json.dumps(result))
    assert result["most_frequent_class"] == pytest.approx(1 / 3)
    assert result["accuracy"] > 0.7
    assert {path.stem for path in tmp_path.glob("*.png")} == {"batch", "losses", "confusion", "top_losses"}


def test_attention_is_where_fastai_puts_it():
    """`sa=1`: in the last block of the first stage."""
    from jaxfast.models.xresnet import XResNet

    config = imagenette.Config()
    body = XResNet(config.stage_sizes, 4, config.width, activation=jax.nn.mish, attention=True)
    shapes = jax.eval_shape(body.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]
    attention = [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes) if "attention" in str(path)]
    assert len(attention) == 2 and all("layer1_2" in str(path) for path in attention)
