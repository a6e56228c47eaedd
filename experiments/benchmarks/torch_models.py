"""ResNet and EfficientNet-Lite in torch, under the names that `pretrained.to_torch_names` gives to their weights."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from jaxfast.models import efficientnet_lite


class Pixels(nn.Module):
    """uint8 or float images (B, 3, H, W) to (image - mean) / std."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(1, -1, 1, 1), persistent=False)

    def forward(self, x):
        return (x.float() - self.mean) / self.std


def conv(inputs: int, outputs: int, size: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False)


class Residual(nn.Module):
    """A block of two 3x3 convolutions, or with `bottleneck` of 1x1, 3x3 (which strides) and 1x1."""

    def __init__(self, inputs: int, width: int, stride: int, bottleneck: bool):
        super().__init__()
        outputs = 4 * width if bottleneck else width
        if bottleneck:
            shapes = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        else:
            shapes = [(inputs, width, 3, stride), (width, width, 3, 1)]
        self.depth = len(shapes)
        for i, shape in enumerate(shapes, 1):
            setattr(self, f"conv{i}", conv(*shape))
            setattr(self, f"bn{i}", nn.BatchNorm2d(shape[1]))
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y, inplace=True) if i < self.depth else y
        return F.relu(y + (x if self.downsample is None else self.downsample(x)), inplace=True)


class ResNet(nn.Module):
    """Blocks of each stage in `sizes`; `maps(x)` are the outputs that a U-Net wants, the largest first."""

    def __init__(self, sizes: Sequence[int], bottleneck: bool, classes: int, pixels: Pixels, width: int = 64):
        super().__init__()
        self.pixels = pixels
        self.conv1 = nn.Conv2d(3, width, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, size in enumerate(sizes):
            blocks = []
            for i in range(size):
                blocks.append(Residual(inputs, width << stage, 2 if stage and not i else 1, bottleneck))
                inputs = (width << stage) * (4 if bottleneck else 1)
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.stages = len(sizes)
        self.fc = nn.Linear(inputs, classes) if classes else None

    def maps(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        found = [x]
        x = F.max_pool2d(x, 3, 2, 1)
        for stage in range(1, self.stages + 1):
            x = getattr(self, f"layer{stage}")(x)
            found.append(x)
        return found

    def head(self, x):
        return self.fc(x.mean((2, 3)))

    def forward(self, x):
        return self.head(self.maps(self.pixels(x))[-1])


class SameConv(nn.Conv2d):
    """TensorFlow's padding: where it strides, one more below and to the right."""

    def forward(self, x):
        if self.stride == (1, 1):
            return super().forward(x)
        (k, _), (s, _) = self.kernel_size, self.stride
        sides = []
        for size in (x.shape[3], x.shape[2]):
            total = max(0, (-(-size // s) - 1) * s + k - size)
            sides += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, sides), self.weight, None, self.stride, 0, 1, self.groups)


def same(inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1) -> SameConv:
    return SameConv(inputs, outputs, size, stride, size // 2 if stride == 1 else 0, groups=groups, bias=False)


class Inverted(nn.Module):
    def __init__(self, inputs: int, block: efficientnet_lite.Block):
        super().__init__()
        wide = inputs * block.expansion
        self.expands, self.adds = block.expansion > 1, block.strides == 1 and inputs == block.features
        if self.expands:
            self._expand_conv, self._bn0 = same(inputs, wide, 1), norm(wide)
        self._depthwise_conv, self._bn1 = same(wide, wide, block.kernel_size, block.strides, wide), norm(wide)
        self._project_conv, self._bn2 = same(wide, block.features, 1), norm(block.features)

    def forward(self, x):
        y = F.relu6(self._bn0(self._expand_conv(x)), inplace=True) if self.expands else x
        y = F.relu6(self._bn1(self._depthwise_conv(y)), inplace=True)
        y = self._bn2(self._project_conv(y))
        return x + y if self.adds else y


def norm(channels: int) -> nn.BatchNorm2d:
    return nn.BatchNorm2d(channels, eps=1e-3)


class EfficientNetLite(nn.Module):
    def __init__(self, classes: int, pixels: Pixels, width: float = 1.0, depth: float = 1.0):
        super().__init__()
        self.pixels = pixels
        self._conv_stem, self._bn0 = same(3, 32, 3, 2), norm(32)
        blocks, inputs = [], 32
        for block in efficientnet_lite.scaled_blocks(width, depth):
            blocks.append(Inverted(inputs, block))
            inputs = block.features
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1 = same(inputs, 1280, 1), norm(1280)
        self._fc = nn.Linear(1280, classes)

    def forward(self, x):
        x = F.relu6(self._bn0(self._conv_stem(self.pixels(x))), inplace=True)
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))), inplace=True)
        return self._fc(x.mean((2, 3)))


def load(model: nn.Module, tensors) -> nn.Module:
    """`model` with the weights of `tensors`, NumPy arrays by name."""
    model.load_state_dict({name: torch.tensor(array) for name, array in tensors.items()})
    return model
