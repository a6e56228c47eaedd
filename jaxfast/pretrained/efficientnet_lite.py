"""The names that the PyTorch port of EfficientNet-Lite gives to its tensors."""

_TOP = {
    "stem/conv": "_conv_stem",
    "stem/norm": "_bn0",
    "top/conv": "_conv_head",
    "top/norm": "_bn1",
}
_BLOCK = {
    "expand_conv": "_expand_conv",
    "expand_norm": "_bn0",
    "depthwise_conv": "_depthwise_conv",
    "depthwise_norm": "_bn1",
    "project_conv": "_project_conv",
    "project_norm": "_bn2",
}


def torch_module(path: str) -> str:
    """Return the port's name of the layer at `path` in an ImageClassifier of EfficientNetLite and LinearHead.

    >>> [torch_module(path) for path in ("body/stem/norm", "body/block12/expand_norm", "head/dense")]
    ['_bn0', '_blocks.12._bn0', '_fc']
    """
    if path == "head/dense":
        return "_fc"
    path = path.removeprefix("body/")
    if path in _TOP:
        return _TOP[path]
    block, layer = path.split("/")
    return f"_blocks.{block.removeprefix('block')}.{_BLOCK[layer]}"
