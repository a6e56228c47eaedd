"""The names that torchvision, and timm with it, gives to a ResNet's tensors."""

_SHORTCUT = {"shortcut_conv": "downsample.0", "shortcut_norm": "downsample.1"}


def torch_module(path: str) -> str:
    """Return torchvision's name of the layer at `path` in an ImageClassifier of ResNet and LinearHead.

    >>> [torch_module(path) for path in ("body/stem/norm", "body/layer2_0/shortcut_conv", "head/dense")]
    ['bn1', 'layer2.0.downsample.0', 'fc']
    """
    if path == "head/dense":
        return "fc"
    _, block, layer = path.split("/")
    if block == "stem":
        return {"conv": "conv1", "norm": "bn1"}[layer]
    stage, index = block.split("_")
    return f"{stage}.{index}.{_SHORTCUT.get(layer) or layer.replace('norm', 'bn')}"
