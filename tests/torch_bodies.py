"""DenseNet, VGG and xResNet in torch, with the names of the published weights, and small sizes of them."""

import math

import numpy as np
import torch
from flax.traverse_util import flatten_dict
from torch import nn


class DenseLayer(nn.Module):
    def __init__(self, inputs, growth):
        super().__init__()
        self.norm1, self.conv1 = nn.BatchNorm2d(inputs), nn.Conv2d(inputs, 4 * growth, 1, bias=False)
        self.norm2, self.conv2 = nn.BatchNorm2d(4 * growth), nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        y = self.conv1(torch.relu(self.norm1(x)))
        return torch.cat([x, self.conv2(torch.relu(self.norm2(y)))], 1)


class DenseNet(nn.Module):
    """torchvision's and timm's names."""

    def __init__(self, sizes, growth, width, classes):
        super().__init__()
        self.features = features = nn.Sequential()
        features.add_module("conv0", nn.Conv2d(3, width, 7, 2, 3, bias=False))
        features.add_module("norm0", nn.BatchNorm2d(width))
        features.add_module("relu0", nn.ReLU())
        features.add_module("pool0", nn.MaxPool2d(3, 2, 1))
        for stage, size in enumerate(sizes, start=1):
            block = nn.Sequential()
            for i in range(size):
                block.add_module(f"denselayer{i + 1}", DenseLayer(width, growth))
                width += growth
            features.add_module(f"denseblock{stage}", block)
            if stage < len(sizes):
                transition = nn.Sequential()
                transition.add_module("norm", nn.BatchNorm2d(width))
                transition.add_module("relu", nn.ReLU())
                transition.add_module("conv", nn.Conv2d(width, width // 2, 1, bias=False))
                transition.add_module("pool", nn.AvgPool2d(2, 2))
                features.add_module(f"transition{stage}", transition)
                width //= 2
        features.add_module("norm5", nn.BatchNorm2d(width))
        self.classifier = nn.Linear(width, classes)

    def forward(self, x):
        return self.classifier(torch.relu(self.features(x)).mean((2, 3)))


def vgg_features(sizes, batch_norm, width):
    layers, inputs = [], 3
    for stage, size in enumerate(sizes):
        outputs = width * min(2**stage, 8)
        for _ in range(size):
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), *[nn.BatchNorm2d(outputs)] * batch_norm, nn.ReLU()]
            inputs = outputs
        layers.append(nn.MaxPool2d(2, 2))
    return nn.Sequential(*layers)


class VGG(nn.Module):
    """torchvision's names."""

    def __init__(self, sizes, batch_norm, width, hidden, classes):
        super().__init__()
        self.features = vgg_features(sizes, batch_norm, width)
        self.avgpool = nn.AdaptiveAvgPool2d((7, 7))
        dense = nn.Linear(8 * width * 49, hidden), nn.Linear(hidden, hidden), nn.Linear(hidden, classes)
        self.classifier = nn.Sequential(dense[0], nn.ReLU(), nn.Dropout(), dense[1], nn.ReLU(), nn.Dropout(), dense[2])

    def forward(self, x):
        return self.classifier(self.avgpool(self.features(x)).flatten(1))


class TimmVGG(nn.Module):
    """timm's names: the first layers of the head are convolutions."""

    def __init__(self, sizes, batch_norm, width, hidden, classes):
        super().__init__()
        self.features = vgg_features(sizes, batch_norm, width)
        self.pre_logits, self.head = nn.Module(), nn.Module()
        self.pre_logits.fc1 = nn.Conv2d(8 * width, hidden, 7)
        self.pre_logits.fc2 = nn.Conv2d(hidden, hidden, 1)
        self.head.fc = nn.Linear(hidden, classes)

    def forward(self, x):
        x = nn.functional.adaptive_avg_pool2d(self.features(x), (7, 7))
        x = torch.relu(self.pre_logits.fc2(torch.relu(self.pre_logits.fc1(x))))
        return self.head.fc(x.mean((2, 3)))


class SEModule(nn.Module):
    def __init__(self, channels, reduction, activation):
        super().__init__()
        hidden = math.ceil(channels // reduction / 8) * 8
        down = nn.Sequential(nn.Conv2d(channels, hidden, 1), activation())
        up = nn.Sequential(nn.Conv2d(hidden, channels, 1), nn.Sigmoid())
        self.layers = nn.ModuleList([nn.AdaptiveAvgPool2d(1), down, up])

    def forward(self, x):
        gate = x
        for layer in self.layers:
            gate = layer(gate)
        return x * gate


class SimpleSelfAttention(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv = nn.utils.spectral_norm(nn.Conv1d(channels, channels, 1, bias=False))
        self.gamma = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        flat = x.flatten(2)
        found = flat @ flat.transpose(1, 2) @ self.conv(flat)
        return (self.gamma * found + flat).reshape(x.shape)


def conv_layer(inputs, outputs, size, stride=1, activation=None):
    layers = [nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)]
    return nn.Sequential(*layers, *([activation()] if activation else []))


class XBlock(nn.Module):
    def __init__(self, inputs, width, expansion, stride, activation, reduction, attention):
        super().__init__()
        outputs = width * expansion
        if expansion == 1:
            path = [conv_layer(inputs, width, 3, stride, activation), conv_layer(width, outputs, 3)]
        else:
            path = [conv_layer(inputs, width, 1, 1, activation), conv_layer(width, width, 3, stride, activation)]
            path.append(conv_layer(width, outputs, 1))
        path += [SEModule(outputs, reduction, activation)] if reduction else []
        path += [SimpleSelfAttention(outputs)] if attention else []
        self.convpath = nn.Sequential(*path)
        shortcut = [nn.AvgPool2d(2, ceil_mode=True)] if stride > 1 else []
        shortcut += [conv_layer(inputs, outputs, 1)] if inputs != outputs else []
        self.idpath = nn.Sequential(*shortcut)
        self.activation = activation()

    def forward(self, x):
        return self.activation(self.convpath(x) + self.idpath(x))


def xresnet(sizes, expansion, width, classes, activation=nn.ReLU, reduction=0, attention=False):
    """fastai 2's names."""
    widths = [3, width // 2, width // 2, width]
    layers = [conv_layer(widths[i], widths[i + 1], 3, 1 if i else 2, activation) for i in range(3)]
    layers.append(nn.MaxPool2d(3, 2, 1))
    inputs = width
    for stage, size in enumerate(sizes):
        blocks = []
        for i in range(size):
            last = attention and stage == 0 and i == size - 1
            stride = 2 if stage and not i else 1
            blocks.append(XBlock(inputs, width * 2**stage, expansion, stride, activation, reduction, last))
            inputs = width * 2**stage * expansion
        layers.append(nn.Sequential(*blocks))
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(), nn.Linear(inputs, classes))


class TimmBlock(nn.Module):
    def __init__(self, inputs, width, expansion, stride):
        super().__init__()
        outputs = width * expansion
        plan = [(inputs, width, 3, stride), (width, outputs, 3, 1)]
        if expansion > 1:
            plan = [(inputs, width, 1, 1), (width, width, 3, stride), (width, outputs, 1, 1)]
        self.depth = len(plan)
        for i, (a, b, size, s) in enumerate(plan, start=1):
            setattr(self, f"conv{i}", nn.Conv2d(a, b, size, s, size // 2, bias=False))
            setattr(self, f"bn{i}", nn.BatchNorm2d(b))
        self.downsample = None
        if stride > 1 or inputs != outputs:
            pool = nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False) if stride > 1 else nn.Identity()
            conv = nn.Conv2d(inputs, outputs, 1, bias=False)
            self.downsample = nn.Sequential(pool, conv, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = torch.relu(y) if i < self.depth else y
        return torch.relu(y + (x if self.downsample is None else self.downsample(x)))


class TimmResNetD(nn.Module):
    """timm's names of resnet18d to resnet101d."""

    def __init__(self, sizes, expansion, width, classes):
        super().__init__()
        stem = [nn.Conv2d(3, width // 2, 3, 2, 1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU()]
        stem += [nn.Conv2d(width // 2, width // 2, 3, 1, 1, bias=False), nn.BatchNorm2d(width // 2), nn.ReLU()]
        self.conv1 = nn.Sequential(*stem, nn.Conv2d(width // 2, width, 3, 1, 1, bias=False))
        self.bn1 = nn.BatchNorm2d(width)
        inputs = width
        for stage, size in enumerate(sizes):
            blocks = []
            for i in range(size):
                blocks.append(TimmBlock(inputs, width * 2**stage, expansion, 2 if stage and not i else 1))
                inputs = width * 2**stage * expansion
            setattr(self, f"layer{stage + 1}", nn.Sequential(*blocks))
        self.fc = nn.Linear(inputs, classes)

    def forward(self, x):
        x = nn.functional.max_pool2d(torch.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        for stage in range(1, 5):
            x = getattr(self, f"layer{stage}")(x)
        return self.fc(x.mean((2, 3)))


def randomized(module, seed=0):
    """In float64 and for evaluation, with what fresh layers leave at zero and one drawn at random.

    Spectral norms get the singular vectors that training would find, and attention a weight that keeps logits tame.
    """
    torch.manual_seed(seed)
    module = module.double().eval()
    for part in module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.weight.data.uniform_(0.5, 1.5)
            part.bias.data.uniform_(-0.5, 0.5)
            part.running_mean.uniform_(-0.5, 0.5)
            part.running_var.uniform_(0.5, 1.5)
        elif isinstance(part, SimpleSelfAttention):
            part.gamma.data.fill_(0.01)
            part.train()
            for _ in range(3):
                part(torch.randn(1, part.conv.in_channels, 2, 2, dtype=torch.float64))
            part.eval()
    return module


def weights_of(module):
    """A module's tensors by name, without its counters of batches."""
    return {name: t.numpy() for name, t in module.state_dict().items() if not name.endswith("num_batches_tracked")}


def assert_same_tensors(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def assert_same_variables(ours, theirs):
    assert_same_tensors(flatten_dict(ours, sep="/"), flatten_dict(theirs, sep="/"))
