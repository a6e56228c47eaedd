"""The names that torchvision and timm give to a VGG's tensors."""

from jaxfast.models import vgg

_BODIES = {"vgg16": vgg.vgg16, "vgg19": vgg.vgg19, "vgg16_bn": vgg.vgg16_bn, "vgg19_bn": vgg.vgg19_bn}
_TORCHVISION_HEAD = {"dense0": "classifier.0", "dense1": "classifier.3", "dense2": "classifier.6"}
_TIMM_HEAD = {"dense0": "pre_logits.fc1", "dense1": "pre_logits.fc2", "dense2": "head.fc"}


def _module(arch: str, head: dict[str, str], path: str) -> str:
    part, block, *layer = path.split("/")
    if part == "head":
        return head[block]
    body = _BODIES[arch]()
    index = vgg.torch_indices(body.stage_sizes, body.batch_norm)[block]
    return f"features.{index + ('conv', 'norm').index(*layer)}"


def torch_module(arch: str, path: str) -> str:
    """Return torchvision's name of the layer at `path` in an ImageClassifier of VGG and VGGHead.

    >>> torch_module("vgg16", "body/layer3_0/conv"), torch_module("vgg16_bn", "body/layer3_0/norm")
    ('features.10', 'features.15')
    """
    return _module(arch, _TORCHVISION_HEAD, path)


def timm_module(arch: str, path: str) -> str:
    """Return timm's name of the layer at `path` in an ImageClassifier of VGG and VGGHead.

    >>> timm_module("vgg16", "head/dense2")
    'head.fc'
    """
    return _module(arch, _TIMM_HEAD, path)


def timm_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the shape in which timm keeps a tensor: the head's first layers are convolutions, over 7x7 and 1x1.

    >>> timm_shape("pre_logits.fc1.weight", (4096, 25088))
    (4096, 512, 7, 7)
    """
    window = {"pre_logits.fc1.weight": 7, "pre_logits.fc2.weight": 1}.get(name)
    return (shape[0], shape[1] // window**2, window, window) if window else shape
