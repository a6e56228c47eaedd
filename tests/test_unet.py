"""DynamicUnet against fastai's in torch, by hand-made counts, over every kind of body, at odd sizes; its parts."""

from functools import partial

import flax.linen as linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax.traverse_util import flatten_dict
from torch import nn
from torch.nn import functional as F

from jaxfast import models, optim
from jaxfast.models.resnet import MEAN, STD, BasicBlock, ResNet, resnet34
from jaxfast.models.unet import DynamicUnet, pyramid
from jaxfast.models.upsample import PixelShuffle, icnr, nearest, pixel_shuffle
from jaxfast.pretrained import to_torch_names

tiny = partial(ResNet, (1, 2, 1, 1), BasicBlock, width=8)


def unet(body=None, n_out=5, channels=3, **options):
    return DynamicUnet(body or tiny(), n_out, MEAN[:channels], STD[:channels], **options)


def shapes_of(model, height=64, width=64):
    image = jax.ShapeDtypeStruct((1, height, width, len(model.mean)), np.uint8)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def random_variables(model, seed=0):
    """Every leaf drawn at random: a fresh net's zeros and ones would hide faults."""
    rng = np.random.default_rng(seed)

    def draw(path, leaf):
        name = path[-1].key
        if name in ("kernel", "raw_kernel"):
            return (rng.normal(size=leaf.shape) * np.sqrt(2 / np.prod(leaf.shape[:-1]))).astype(np.float32)
        low = 0.5 if name in ("scale", "var") else -0.5
        return rng.uniform(low, low + 1, leaf.shape).astype(np.float32)

    variables = jax.tree_util.tree_map_with_path(draw, shapes_of(model))
    for path, kernel in flatten_dict(variables["params"]).items():
        if path[-1] == "raw_kernel":  # the singular vectors that many training steps would find
            left, _, right = np.linalg.svd(kernel)
            layer = variables["batch_stats"]
            for key in path[:-1]:
                layer = layer[key]
            layer["v"], layer["u"] = left[:, 0], right[0]
    return variables


def images(height, width, channels=3, batch=2, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (batch, height, width, channels)).astype(np.uint8)


# --- fastai 2's DynamicUnet over torchvision's ResNet, in torch


class Block(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2, self.bn2 = nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, width, 1, stride, bias=False), nn.BatchNorm2d(width))

    def forward(self, x):
        y = self.bn2(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return torch.relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class Body(nn.Module):
    def __init__(self, channels, sizes=(1, 2, 1, 1), width=8):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width)
        inputs = width
        for stage, size in enumerate(sizes):
            blocks = []
            for i in range(size):
                blocks.append(Block(inputs, width * 2**stage, 2 if stage and not i else 1))
                inputs = width * 2**stage
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))

    def forward(self, x):
        outputs = [torch.relu(self.bn1(self.conv1(x)))]
        x = F.max_pool2d(outputs[0], 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
            outputs.append(x)
        return outputs


def shuffle(inputs, features, blur=False):
    layers = [nn.Conv2d(inputs, 4 * features, 1), nn.ReLU(), nn.PixelShuffle(2)]
    return nn.Sequential(*layers, *([nn.ReplicationPad2d((1, 0, 1, 0)), nn.AvgPool2d(2, stride=1)] if blur else []))


class Attention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.query, self.key, self.value = (
            nn.Linear(channels, n, bias=False) for n in (channels // 8, channels // 8, channels)
        )
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        flat = x.flatten(2)
        f, g, h = (
            (layer.weight / torch.linalg.matrix_norm(layer.weight, 2)) @ flat
            for layer in (self.query, self.key, self.value)
        )
        beta = F.softmax(torch.bmm(f.transpose(1, 2), g), dim=1)
        return (self.gamma * torch.bmm(h, beta) + flat).view(x.shape)


class Up(nn.Module):
    def __init__(self, below, skip, blur, attend, halve):
        super().__init__()
        self.shuffle, self.norm = shuffle(below, below // 2, blur), nn.BatchNorm2d(skip)
        inputs = below // 2 + skip
        self.width = inputs // 2 if halve else inputs
        self.conv1, self.conv2 = nn.Conv2d(inputs, self.width, 3, 1, 1), nn.Conv2d(self.width, self.width, 3, 1, 1)
        self.attention = Attention(self.width) if attend else nn.Identity()

    def forward(self, x, skip):
        x = self.shuffle(x)
        if x.shape[-2:] != skip.shape[-2:]:
            x = F.interpolate(x, skip.shape[-2:], mode="nearest")
        x = torch.relu(torch.cat([x, self.norm(skip)], 1))
        return self.attention(torch.relu(self.conv2(torch.relu(self.conv1(x)))))


class Unet(nn.Module):
    def __init__(
        self, n_out=5, channels=3, blur=False, blur_final=True, self_attention=False, y_range=None, last_cross=True,
        bottleneck=False,
    ):  # fmt: skip
        super().__init__()
        self.body, self.y_range = Body(channels), y_range
        self.norm = nn.BatchNorm2d(64)
        self.middle1, self.middle2 = nn.Conv2d(64, 128, 3, 1, 1), nn.Conv2d(128, 64, 3, 1, 1)
        width = 64
        for i, skip in enumerate((32, 16, 8, 8)):
            final = i == 3
            block = Up(width, skip, blur and (not final or blur_final), self_attention and i == 1, final)
            setattr(self, f"block{i}", block)
            width = block.width
        self.shuffle = shuffle(width, width)
        if last_cross:
            width += channels
            inner = width // 2 if bottleneck else width
            self.cross1, self.cross2 = nn.Conv2d(width, inner, 3, 1, 1), nn.Conv2d(inner, width, 3, 1, 1)
        self.output = nn.Conv2d(width, n_out, 1)

    def forward(self, image):
        *skips, x = self.body(image)
        x = torch.relu(self.norm(x))
        x = torch.relu(self.middle2(torch.relu(self.middle1(x))))
        for i, skip in enumerate(reversed(skips)):
            x = getattr(self, f"block{i}")(x, skip)
        x = self.shuffle(x)
        if x.shape[-2:] != image.shape[-2:]:
            x = F.interpolate(x, image.shape[-2:], mode="nearest")
        if hasattr(self, "cross1"):
            x = torch.cat([x, image], 1)
            x = torch.relu(x + self.cross2(torch.relu(self.cross1(x))))
        x = self.output(x)
        if self.y_range is not None:
            low, high = self.y_range
            x = torch.sigmoid(x) * (high - low) + low
        return x


LEAVES = {"kernel": "weight", "raw_kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}


def torch_state(variables):
    """Our variables by the reference's names; of a shuffle, the four pixels of a channel side by side."""
    state = {}
    for kind, tree in variables.items():
        body = to_torch_names({kind: {"body": tree["body"]}}, "resnet18")
        state |= {f"body.{name}": array for name, array in body.items()}
        for path, leaf in flatten_dict(tree["head"]).items():
            *layer, name = path
            if name in "uv":
                continue
            leaf = np.asarray(leaf)
            leaf = leaf.transpose({4: (3, 2, 0, 1), 2: (1, 0)}.get(leaf.ndim, range(leaf.ndim)))
            if "shuffle" in layer:
                layer = [*layer[:-1], "0"]  # the convolution is the first of a Sequential
                leaf = leaf.reshape(4, -1, *leaf.shape[1:]).swapaxes(0, 1).reshape(leaf.shape)
            state[".".join([*layer, LEAVES.get(name, name)])] = leaf
    return {name: torch.tensor(np.ascontiguousarray(array)) for name, array in state.items()}


def reference(variables, **options):
    model = Unet(**options).eval()
    missing, extra = model.load_state_dict(torch_state(variables), strict=False)
    assert not extra and all(name.endswith("num_batches_tracked") for name in missing)
    return model


def normalized(batch):
    channels = batch.shape[-1]
    return torch.tensor((batch - np.float32(MEAN[:channels])) / np.float32(STD[:channels])).permute(0, 3, 1, 2)


@pytest.mark.parametrize(
    "size, options",
    [
        ((64, 64), {}),
        ((45, 70), {"blur": True, "channels": 1}),
        ((50, 33), {"blur": True, "blur_final": False, "last_cross": False}),
        ((37, 64), {"self_attention": True, "bottleneck": True, "y_range": (-0.5, 3.0)}),
    ],
    ids=str,
)
def test_logits_are_those_of_fastai_s_unet(size, options):
    model = unet(**options)
    variables = random_variables(model)
    batch = images(*size, options.get("channels", 3))
    ours = jax.jit(model.apply)(variables, batch)
    assert ours.dtype == jnp.float32 and ours.shape == (2, *size, 5)
    with torch.no_grad():
        theirs = reference(variables, **options)(normalized(batch)).permute(0, 2, 3, 1).numpy()
    assert np.ptp(theirs) > 1
    np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * np.abs(theirs).max())


def test_gradients_and_statistics_are_those_of_fastai_s_unet():
    # in double precision, as a rounding that moves one number across a ReLU's zero moves many gradients
    with jax.enable_x64(True):
        model = unet(tiny(dtype=jnp.float64))
        variables = random_variables(model)
        batch, weights = images(40, 53), np.random.default_rng(1).normal(size=(2, 40, 53, 5))

        def objective(params):
            outputs, changed = model.apply({**variables, "params": params}, batch, train=True, mutable=["batch_stats"])
            return (outputs * weights).mean(), changed["batch_stats"]

        grads, statistics = jax.device_get(jax.jit(jax.grad(objective, has_aux=True))(variables["params"]))
    model = reference(variables).double().train()
    channels = torch.tensor(MEAN).double(), torch.tensor(STD).double()
    image = ((torch.tensor(batch) - channels[0]) / channels[1]).permute(0, 3, 1, 2)
    (model(image) * torch.tensor(weights).permute(0, 3, 1, 2)).mean().backward()
    theirs = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    theirs |= {name: value.numpy() for name, value in model.named_buffers() if "num_batches" not in name}
    ours = torch_state({"params": grads, "batch_stats": statistics})
    assert set(ours) == set(theirs)
    for name, value in ours.items():
        scale = np.abs(theirs[name]).max()
        np.testing.assert_allclose(value, theirs[name], rtol=1e-4, atol=1e-5 * scale, err_msg=name)


# --- Counts, bodies, options


def conv(size, inputs, outputs):
    return size * size * inputs * outputs + outputs


def up(below, skip, width):
    return conv(1, below, 2 * below) + 2 * skip + conv(3, below // 2 + skip, width) + conv(3, width, width)


RESNET34_HEAD = (
    2 * 512 + conv(3, 512, 1024) + conv(3, 1024, 512)
    + up(512, 256, 512) + up(512, 128, 384) + up(384, 64, 256) + up(256, 64, 96)
    + conv(1, 96, 4 * 96)
)  # fmt: skip


@pytest.mark.parametrize(
    "options, count",
    [
        # the sums that fastai 2.8.12 gives for its own, over a body of 21,284,672
        ({}, 41_222_168),
        ({"last_cross": False}, 41_045_516),
        ({"blur": True}, 41_222_168),
        ({"self_attention": True}, 41_406_489),
        # by hand alone: fastai's bottle=True fails
        ({"bottleneck": True}, 21_284_672 + RESNET34_HEAD + conv(3, 99, 49) + conv(3, 49, 99) + conv(1, 99, 12)),
    ],
    ids=str,
)
def test_parameter_counts_of_resnet34(options, count):
    model = unet(resnet34(), 12, **options)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes_of(model, 180, 240)["params"])) == count
    by_hand = 21_284_672 + RESNET34_HEAD + 2 * conv(3, 99, 99) + conv(1, 99, 12)
    assert by_hand == 41_222_168


BODIES = {
    "resnet": (tiny, ("stem", "layer1_0", "layer2_1", "layer3_0", "layer4_0")),
    "small stem": (partial(tiny, small_stem=True), ("layer1_0", "layer2_1", "layer3_0", "layer4_0")),
    "lite0": (models.efficientnet_lite0, ("block0", "block2", "block4", "block10", "top")),
    "vgg": (
        partial(models.VGG, (2, 2, 3, 3, 3), True, 8),
        ("layer1_1", "layer2_1", "layer3_2", "layer4_2", "layer5_2", "top"),
    ),
    "xresnet": (
        partial(models.XResNet, (1, 1, 1, 1), 1), ("stem", "layer1_0", "layer2_0", "layer3_0", "layer4_0")
    ),
    "densenet": (
        partial(models.DenseNet, (2, 1, 1, 1), 8), ("stem", "block1_1", "block2_0", "block3_0", "top")
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BODIES)
def test_any_body_at_an_odd_size(name):
    make, blocks = BODIES[name]
    model = unet(make())
    assert pyramid(make(), 3)[0] == blocks
    shapes = shapes_of(model, 67, 90)
    output = jax.eval_shape(model.apply, shapes, jax.ShapeDtypeStruct((2, 67, 90, 3), np.uint8))
    assert output.shape == (2, 67, 90, 5) and output.dtype == jnp.float32
    # the parameters are the same at every size, and lie in three groups
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, shapes_of(model, 64, 64))
    labels = optim.label_by_prefix(model.groups)(shapes["params"])
    assert set(jax.tree.leaves(labels["head"])) == {2} and set(jax.tree.leaves(labels["body"])) == {0, 1}


def test_the_last_block_that_is_used():
    model = unet(models.efficientnet_lite0(), last="block15")
    assert pyramid(model.body, 3, "block15") == (("block0", "block2", "block4", "block10", "block15"), 32)
    shapes = shapes_of(model)
    assert "top" not in shapes["params"]["body"] and "block15" in shapes["params"]["body"]
    assert shapes["params"]["head"]["middle1"]["kernel"].shape == (3, 3, 320, 640)
    labels = optim.label_by_prefix(model.groups)(shapes["params"])
    assert set(jax.tree.leaves(labels)) == {0, 1, 2}
    with pytest.raises(ValueError, match="no block 'block51': the nearest is 'block5'"):
        shapes_of(unet(models.efficientnet_lite0(), last="block51"))


def test_computes_in_the_type_of_the_body():
    from jaxfast.precision import cast_module

    model = cast_module(unet(), jnp.bfloat16)
    assert model.body.dtype == jnp.bfloat16
    image = jax.ShapeDtypeStruct((2, 64, 64, 3), np.uint8)
    text = str(jax.make_jaxpr(model.apply)(shapes_of(model), image))
    assert "bf16[2,64,64,99]" not in text and "bf16[2,64,64,15]" in text  # the last map: half of 8 + 16 + ... and RGB
    assert jax.eval_shape(model.apply, shapes_of(model), image).dtype == jnp.float32


class Flat(linen.Module):
    """A body that keeps the size."""

    dtype = jnp.float32
    block_names, groups = ("one",), (("one",), ())

    def features(self, x, train=False, *, after=None, until=None):
        return {"one": x}


@pytest.mark.parametrize(
    "model, size, message",
    [
        (unet(), (31, 64), "images of 31x64 pixels are too small for ResNet.*32 times smaller: give at least 32"),
        (unet(linen.Dense(3)), (64, 64), "maps of its body at every size, and Dense has no method `features`"),
        (unet(Flat()), (64, 64), "Flat has maps of one size only"),
        (unet(ResNet((1, 1), BasicBlock, 8), self_attention=True), (64, 64), "third block from the end.* makes 2"),
        (unet(), (64, 64, 1), "images of shape .1, 64, 64, 1. do not fit"),
    ],
    ids=["small", "no features", "one size", "attention", "channels"],
)
def test_errors(model, size, message):
    height, width, channels = (*size, 3)[:3]
    with pytest.raises(ValueError, match=message) as raised:
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct((1, height, width, channels), np.uint8))
    assert "\n" not in str(raised.value)


def test_the_smallest_image():
    assert pyramid(tiny(), 3)[1] == 32
    shapes = shapes_of(unet(), 32, 32)
    assert jax.tree.map(np.shape, shapes) == jax.tree.map(np.shape, shapes_of(unet(), 64, 64))


# --- Upsampling


def test_pixel_shuffle_is_torch_s_up_to_the_order_of_channels():
    x = np.random.default_rng(0).normal(size=(2, 3, 5, 12)).astype(np.float32)
    side_by_side = x.reshape(2, 3, 5, 4, 3).swapaxes(3, 4).reshape(x.shape)
    theirs = F.pixel_shuffle(torch.tensor(side_by_side).permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
    np.testing.assert_array_equal(pixel_shuffle(x), theirs)


def test_icnr_starts_as_repeated_pixels():
    x = np.random.default_rng(0).normal(size=(2, 4, 6, 32)).astype(np.float32)
    ours, variables = jax.jit(PixelShuffle(64).init_with_output)(jax.random.key(0), x)
    np.testing.assert_array_equal(ours, np.repeat(np.repeat(ours[:, ::2, ::2], 2, 1), 2, 2))
    assert np.std(ours[:, ::2, ::2]) > 0.5
    kernel = variables["params"]["conv"]["kernel"]
    assert kernel.shape == (1, 1, 32, 256) and np.std(kernel) == pytest.approx(np.sqrt(2 / 32), rel=0.05)
    assert not variables["params"]["conv"]["bias"].any()
    with pytest.raises(ValueError, match="6 features do not make four sub-pixels"):
        icnr(jax.random.key(0), (1, 1, 2, 6))


def test_blur_averages_with_the_pixels_above_and_to_the_left():
    x = np.random.default_rng(0).normal(size=(1, 3, 4, 2)).astype(np.float32)
    variables = {
        "params": {"conv": {"kernel": np.tile(np.eye(2, dtype=np.float32), 4)[None, None], "bias": np.zeros(8)}}
    }
    plain = np.array(PixelShuffle(2).apply(variables, x))
    np.testing.assert_array_equal(plain, np.repeat(np.repeat(np.maximum(x, 0), 2, 1), 2, 2))
    padded = np.pad(plain, ((0, 0), (1, 0), (1, 0), (0, 0)), mode="edge")
    expected = (padded[:, 1:, 1:] + padded[:, :-1, 1:] + padded[:, 1:, :-1] + padded[:, :-1, :-1]) / 4
    np.testing.assert_allclose(PixelShuffle(2, blur=True).apply(variables, x), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "old, new", [((4, 6), (4, 6)), ((4, 6), (3, 5)), ((4, 6), (5, 7)), ((3, 5), (7, 4)), ((6, 4), (2, 9))]
)
def test_nearest_is_torch_s(old, new):
    x = np.random.default_rng(0).normal(size=(2, *old, 3)).astype(np.float32)
    weights = np.random.default_rng(1).normal(size=(2, *new, 3)).astype(np.float32)
    tensor = torch.tensor(x).permute(0, 3, 1, 2).requires_grad_()
    theirs = F.interpolate(tensor, new, mode="nearest")
    (theirs * torch.tensor(weights).permute(0, 3, 1, 2)).sum().backward()
    np.testing.assert_array_equal(nearest(jnp.array(x), new), theirs.detach().permute(0, 2, 3, 1))
    gradient = jax.grad(lambda x: (nearest(x, new) * weights).sum())(jnp.array(x))
    np.testing.assert_allclose(gradient, tensor.grad.permute(0, 2, 3, 1), rtol=1e-5)
