"""The names that fastai gives to an xResNet's tensors, and timm to those of its resnet18d to resnet101d."""

import re

_SE = {"reduce": "1.0", "expand": "2.0"}
_TIMM_STEM = {"conv1": "conv1.0", "norm1": "conv1.1", "conv2": "conv1.3", "norm2": "conv1.4", "conv3": "conv1.6"}
# timm keeps the place of the pooling, index 0, where there is none
_TIMM_SHORTCUT = {"shortcut_conv": "downsample.1", "shortcut_norm": "downsample.2"}


def fastai_module(path: str) -> str:
    """Return fastai 2's name of the layer at `path` in an ImageClassifier of XResNet and LinearHead.

    >>> [fastai_module(f"body/{layer}") for layer in ("stem/norm2", "layer1_2/conv3", "layer2_0/shortcut_conv")]
    ['1.1', '4.2.convpath.2.0', '5.0.idpath.1.0']
    >>> fastai_module("body/layer1_2/se4/expand"), fastai_module("body/layer1_2/attention5/dense")
    ('4.2.convpath.3.layers.2.0', '4.2.convpath.4.conv')
    """
    if path == "head/dense":
        return "11"
    _, block, layer, *inner = path.split("/")
    kind, place = re.fullmatch(r"(conv|norm|se|attention)(\d)|shortcut_(conv|norm)", layer).group(1, 2)
    if block == "stem":
        return f"{int(place) - 1}.{('conv', 'norm').index(kind)}"
    stage, index = (int(part) for part in block.removeprefix("layer").split("_"))
    block = f"{stage + 3}.{index}"
    if kind is None:  # behind the pooling, which the first stage does not have
        return f"{block}.idpath.{int(stage > 1)}.{int(layer == 'shortcut_norm')}"
    item = f"{block}.convpath.{int(place) - 1}"
    match kind:
        case "se":
            return f"{item}.layers.{_SE[inner[0]]}"
        case "attention":
            return f"{item}.conv" if inner else item
    return f"{item}.{('conv', 'norm').index(kind)}"


def timm_module(path: str) -> str:
    """Return timm's name of the layer at `path` in an ImageClassifier of XResNet, without its options, and LinearHead.

    >>> timm_module("body/stem/norm3"), timm_module("body/layer2_0/shortcut_norm")
    ('bn1', 'layer2.0.downsample.2')
    """
    if path == "head/dense":
        return "fc"
    _, block, layer = path.split("/")
    if block == "stem":
        return "bn1" if layer == "norm3" else _TIMM_STEM[layer]
    stage, index = block.split("_")
    if layer.startswith(("se", "attention")):
        raise ValueError(f"timm has no {layer}")
    return f"{stage}.{index}.{_TIMM_SHORTCUT.get(layer) or layer.replace('norm', 'bn')}"


def renamed(name: str) -> str:
    """Return fastai 2's name of a tensor: the file that fastai publishes, xrn50_940.pth, has those of fastai 1.

    fastai 2 itself loads of that file the stem alone, in silence (fastai2 issue 58).

    >>> [renamed(name) for name in ("4.0.convs.2.1.bias", "4.0.idconv.0.weight", "5.0.idconv.0.weight", "10.bias")]
    ['4.0.convpath.2.1.bias', '4.0.idpath.0.0.weight', '5.0.idpath.1.0.weight', '11.bias']
    """
    name = re.sub(r"^(\d+\.\d+)\.convs\.", r"\1.convpath.", name)
    name = re.sub(r"^4\.0\.idconv\.", "4.0.idpath.0.", name)
    name = re.sub(r"^(\d+)\.0\.idconv\.", r"\1.0.idpath.1.", name)
    return re.sub(r"^10\.", "11.", name)


def fastai_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in which fastai keeps a tensor: the matrix in its attention is a convolution over a line."""
    return (*shape, 1) if name.endswith(".weight_orig") else shape
