"""ResNets under the names of torchvision, timm and transformers, both ways; first kernels for other channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
from flax.traverse_util import flatten_dict
from test_models import TorchResNet, random_variables, shapes_of
from transformers import ResNetConfig, ResNetForImageClassification

from jaxfast import models, pretrained
from jaxfast.models import resnet
from jaxfast.pretrained.channels import adapt_kernel, adapt_statistics

# stage sizes, expansion and transformers' name of the block
SIZES = {
    "resnet18": ((2, 2, 2, 2), 1, "basic"),
    "resnet34": ((3, 4, 6, 3), 1, "basic"),
    "resnet50": ((3, 4, 6, 3), 4, "bottleneck"),
    "resnet101": ((3, 4, 23, 3), 4, "bottleneck"),
    "resnet152": ((3, 8, 36, 3), 4, "bottleneck"),
}


def classifier(body, n_out=10, mean=resnet.MEAN, std=resnet.STD):
    return models.ImageClassifier(body, models.LinearHead(n_out), mean, std)


def transformers_resnet(arch, width=64, n_out=10):
    depths, expansion, layer_type = SIZES[arch]
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=width,
            hidden_sizes=[width * expansion * 2**stage for stage in range(4)],
            depths=list(depths),
            layer_type=layer_type,
            num_labels=n_out,
        )
    )


def torchvision_resnet(arch):
    depths, expansion, _ = SIZES[arch]
    return TorchResNet(depths, expansion, 10)


def to_torch(arrays):
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def weights_of(module):
    """A module's tensors by name, without its counters of batches."""
    return {name: t.numpy() for name, t in module.state_dict().items() if not name.endswith("num_batches_tracked")}


def assert_same_weights(ours, theirs):
    ours, theirs = weights_of(ours), weights_of(theirs)
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def randomize(module):
    """Draw what a fresh norm layer leaves at one and zero, which would hide that two tensors were exchanged."""
    torch.manual_seed(0)
    for name, tensor in module.state_dict().items():
        if tensor.ndim == 1:
            low = 0.5 if name.endswith(("weight", "var")) else -0.5
            tensor.uniform_(low, low + 1)
    return module


# --- names


@pytest.mark.parametrize(
    "names, reference", [("torchvision", torchvision_resnet), ("transformers", transformers_resnet)]
)
@pytest.mark.parametrize("arch", SIZES)
def test_every_size_has_the_names_and_shapes_of_torch(arch, names, reference):
    with torch.device("meta"):
        theirs = {name: tuple(tensor.shape) for name, tensor in reference(arch).state_dict().items()}
    shapes = shapes_of(classifier(getattr(models, arch)()))
    variables = jax.tree.map(lambda leaf: np.broadcast_to(np.float32(0), leaf.shape), shapes)
    ours = {name: array.shape for name, array in pretrained.to_torch_names(variables, arch, names).items()}
    assert len(ours) == len(flatten_dict(variables))
    assert ours == {name: shape for name, shape in theirs.items() if not name.endswith("num_batches_tracked")}


@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_logits_equal_transformers_and_the_weights_go_back(arch):
    theirs = randomize(transformers_resnet(arch, width=4)).double().eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    pixels = ((images - np.array(resnet.MEAN)) / np.array(resnet.STD)).transpose(0, 3, 1, 2)
    with torch.no_grad():
        expected = theirs(torch.from_numpy(pixels.copy())).logits.numpy()
    with jax.enable_x64(True):
        model = classifier(getattr(models, arch)(width=4, dtype=jnp.float64))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float64), shapes_of(model))
        variables = pretrained.to_variables(weights_of(theirs), arch, shapes)
        ours = jax.jit(model.apply)(variables, images)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)

    fresh = transformers_resnet(arch, width=4).double()
    fresh.load_state_dict(to_torch(pretrained.to_torch_names(variables, arch, "transformers")), strict=True)
    assert_same_weights(fresh, theirs)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_file_of_torchvision_or_timm_goes_in_and_back(tmp_path, suffix):
    """timm's plain ResNets have torchvision's names, shapes and strides: timm 1.0.31 loads torchvision 0.28's."""
    theirs = randomize(torchvision_resnet("resnet34"))
    path = tmp_path / f"weights{suffix}"
    (torch.save if suffix == ".pth" else safetensors.torch.save_file)(theirs.state_dict(), path)
    shapes = shapes_of(classifier(models.resnet34()))
    variables = pretrained.to_variables(pretrained.read_weights(path), "resnet34", shapes)
    fresh = torchvision_resnet("resnet34")
    fresh.load_state_dict(to_torch(pretrained.to_torch_names(variables, "resnet34")), strict=True)
    assert_same_weights(fresh, theirs)


def test_faults_are_named_as_the_tensors_are():
    tensors = weights_of(transformers_resnet("resnet18", width=4))
    del tensors["resnet.encoder.stages.1.layers.0.shortcut.convolution.weight"]
    tensors["resnet.pooler.weight"] = np.ones(2)
    shapes = shapes_of(classifier(models.resnet18(width=4)))
    with pytest.raises(ValueError) as error:
        pretrained.to_variables(tensors, "resnet18", shapes)
    missing, extra = str(error.value).split("; ")[:2]
    assert missing.endswith("1 missing: resnet.encoder.stages.1.layers.0.shortcut.convolution.weight")
    assert extra == "1 extra: resnet.pooler.weight"


def test_unknown_names():
    with pytest.raises(ValueError, match="no names 'timm' of resnet18: expected one of torchvision, transformers"):
        pretrained.torch_name("resnet18", "body/stem/conv/kernel", "timm")
    with pytest.raises(ValueError, match="expected one of efficientnet_lite_pytorch"):
        pretrained.torch_name("efficientnet_lite0", "body/stem/conv/kernel", "transformers")


# --- channels


@pytest.mark.parametrize(
    "channels, expected",
    [
        (1, [[3], [12]]),
        (2, [[0, 1.5], [4.5, 6]]),
        (3, [[0, 1, 2], [3, 4, 5]]),
        (4, [[0, 0.75, 1.5, 0], [2.25, 3, 3.75, 2.25]]),
        (5, [[0, 0.6, 1.2, 0, 0.6], [1.8, 2.4, 3, 1.8, 2.4]]),
    ],
)
def test_a_kernel_for_other_channels_is_timms(channels, expected):
    """The rows are what timm 1.0.31's `adapt_input_conv` makes of [[0, 1, 2], [3, 4, 5]]."""
    kernel = np.arange(6, dtype=np.float32).reshape(2, 3, 1, 1).transpose(2, 3, 1, 0)
    adapted = adapt_kernel(kernel, channels)
    assert adapted.shape == (1, 1, channels, 2) and adapted.dtype == np.float32
    np.testing.assert_allclose(adapted[0, 0].T, expected, rtol=1e-6)


def test_weights_of_one_channel_serve_three():
    kernel = np.full((1, 1, 1, 1), 6.0, np.float32)
    np.testing.assert_array_equal(adapt_kernel(kernel, 3), np.full((1, 1, 3, 1), 2.0))


@pytest.mark.parametrize(
    "channels, expected",
    [(1, (2.0,)), (2, (0.0, 1.0)), (3, (0.0, 1.0, 5.0)), (5, (0.0, 1.0, 5.0, 0.0, 1.0))],
)
def test_statistics_of_other_channels(channels, expected):
    assert adapt_statistics((0.0, 1.0, 5.0), channels) == expected


@pytest.mark.parametrize(
    "arch, body, names",
    [
        ("resnet18", models.ResNet((1, 1), resnet.BasicBlock, width=4, dtype=jnp.float64), "torchvision"),
        ("resnet18", models.ResNet((1, 1), resnet.BasicBlock, width=4, dtype=jnp.float64), "transformers"),
        ("efficientnet_lite0", models.EfficientNetLite(0.5, 0.1, dtype=jnp.float64), "efficientnet_lite_pytorch"),
    ],
)
def test_a_grey_image_has_the_features_that_it_has_as_rgb(arch, body, names):
    grey = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 1), np.uint8)
    with jax.enable_x64(True):
        coloured = classifier(body, mean=(100.0,) * 3, std=(50.0,) * 3)
        variables = random_variables(shapes_of(coloured), dtype=np.float64)
        expected = jax.jit(coloured.apply)(variables, grey.repeat(3, axis=-1))

        single = classifier(body, mean=(100.0,), std=(50.0,))
        shapes = jax.eval_shape(single.init, jax.random.key(0), jnp.zeros(grey.shape, jnp.uint8))
        shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float64), shapes)
        tensors = pretrained.to_torch_names(variables, arch, names)
        ours = jax.jit(single.apply)(pretrained.to_variables(tensors, arch, shapes), grey)
    assert np.ptp(expected) > 0.1
    np.testing.assert_allclose(ours, expected, rtol=1e-9, atol=1e-9)


def test_a_first_kernel_of_another_size_is_still_misshapen():
    tensors = weights_of(transformers_resnet("resnet18", width=4))
    tensors["resnet.embedder.embedder.convolution.weight"] = np.ones((4, 3, 3, 3), np.float32)
    shapes = shapes_of(classifier(models.resnet18(width=4)))
    with pytest.raises(ValueError, match=r"embedder.convolution.weight \(4, 3, 3, 3\) for \(4, 3, 7, 7\)"):
        pretrained.to_variables(tensors, "resnet18", shapes)
