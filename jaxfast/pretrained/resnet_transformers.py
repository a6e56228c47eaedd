"""The names that transformers' ResNetForImageClassification gives to its tensors, and what its config.json says."""

from collections.abc import Mapping
from typing import Any

_LAYERS = {"conv": "convolution", "norm": "normalization"}
# layer_type and depths of a config.json
_ARCHITECTURES = {
    ("basic", (2, 2, 2, 2)): "resnet18",
    ("basic", (3, 4, 6, 3)): "resnet34",
    ("bottleneck", (3, 4, 6, 3)): "resnet50",
    ("bottleneck", (3, 4, 23, 3)): "resnet101",
    ("bottleneck", (3, 8, 36, 3)): "resnet152",
}
# what changes the function and leaves the tensors' shapes as they are, with ResNetConfig's defaults
_PLAIN = {"hidden_act": "relu", "downsample_in_first_stage": False, "downsample_in_bottleneck": False}


def torch_module(path: str) -> str:
    """Return transformers' name of the layer at `path` in an ImageClassifier of ResNet and LinearHead.

    >>> torch_module("body/stem/norm"), torch_module("body/layer2_0/conv1")
    ('resnet.embedder.embedder.normalization', 'resnet.encoder.stages.1.layers.0.layer.0.convolution')
    """
    if path == "head/dense":
        return "classifier.1"
    _, block, layer = path.split("/")
    if block == "stem":
        return f"resnet.embedder.embedder.{_LAYERS[layer]}"
    stage, index = block.removeprefix("layer").split("_")
    if layer.startswith("shortcut_"):
        part = f"shortcut.{_LAYERS[layer.removeprefix('shortcut_')]}"
    else:
        part = f"layer.{int(layer[-1]) - 1}.{_LAYERS[layer[:-1]]}"
    return f"resnet.encoder.stages.{int(stage) - 1}.layers.{index}.{part}"


def architecture(config: Mapping[str, Any]) -> str:
    """Return the name of the architecture that a config.json of model_type "resnet" describes, or it in words.

    >>> architecture({"layer_type": "basic", "depths": [2, 2, 2, 2]}), architecture({"depths": [1, 1]})
    ('resnet18', 'resnet of bottleneck layers (1, 1)')
    """
    layer, depths = config.get("layer_type", "bottleneck"), tuple(config.get("depths", (3, 4, 6, 3)))
    name = _ARCHITECTURES.get((layer, depths), f"resnet of {layer} layers {depths}")
    changes = [f"{key}={config[key]!r}" for key, plain in _PLAIN.items() if config.get(key, plain) != plain]
    return f"{name} with {', '.join(changes)}" if changes else name
