"""The names that torchvision, and timm with it, gives to a DenseNet's tensors."""

import re

_TOP = {
    "head/dense": "classifier",
    "body/stem/conv": "features.conv0",
    "body/stem/norm": "features.norm0",
    "body/top/norm": "features.norm5",
}


def torch_module(path: str) -> str:
    """Return torchvision's name of the layer at `path` in an ImageClassifier of DenseNet and LinearHead.

    >>> torch_module("body/block2_11/conv1"), torch_module("body/transition3/norm")
    ('features.denseblock2.denselayer12.conv1', 'features.transition3.norm')
    """
    if path in _TOP:
        return _TOP[path]
    _, block, layer = path.split("/")
    if block.startswith("transition"):
        return f"features.{block}.{layer}"
    stage, index = block.removeprefix("block").split("_")
    return f"features.denseblock{stage}.denselayer{int(index) + 1}.{layer}"


def renamed(name: str) -> str:
    """Return today's name of a tensor: the files that torchvision publishes have those of torch before 0.4.

    >>> renamed("features.denseblock1.denselayer2.norm.1.running_mean")
    'features.denseblock1.denselayer2.norm1.running_mean'
    """
    return re.sub(r"(denselayer\d+\.(?:norm|conv))\.([12])\.", r"\1\2.", name)
