"""What stands beside weights in a repository: timm's config.json, or transformers' and its preprocessor_config.json."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from jaxfast.pretrained import resnet_transformers

# timm's names of what has another here; all others are the same
_TIMM = {f"resnet{size}d": f"xresnet{size}" for size in (18, 34, 50, 101)}


class Config(NamedTuple):
    """The architecture of weights, the statistics of the pixels (0..255 units) and the classes they were trained on."""

    arch: str
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    classes: tuple[str, ...] | None


def read_config(config: Mapping[str, Any], preprocessor: Callable[[], Mapping[str, Any]]) -> Config:
    """Return what a config.json says, None for what it leaves out; `preprocessor` gives the other file if need be.

    Raises ValueError for a config that names no architecture known here.

    >>> read_config({"architecture": "resnet18", "pretrained_cfg": {"mean": [0.5], "std": [0.2]}}, dict)
    Config(arch='resnet18', mean=(127.5,), std=(51.0,), classes=None)
    """
    if "architecture" in config:  # timm's; its oldest form has no part of its own for what is pretrained
        pretrained = config.get("pretrained_cfg", config)
        mean, std = (_times(pretrained.get(key), 255.0) for key in ("mean", "std"))
        arch = config["architecture"]
        return Config(_TIMM.get(arch, arch), mean, std, _names(config.get("label_names")))
    if config.get("model_type") == "resnet":
        classes = config.get("id2label")
        if classes is not None:
            classes = [classes[key] for key in sorted(classes, key=int)]
        return Config(resnet_transformers.architecture(config), *_statistics(preprocessor()), _names(classes))
    raise ValueError(
        f"names no architecture that is known here (model_type {config.get('model_type')!r}): "
        "expected timm's config, or transformers' of a ResNet"
    )


def _statistics(preprocessor: Mapping[str, Any]) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """The mean and deviation that transformers' image processor applies after its rescaling, in units before it."""
    scale = 1 / preprocessor.get("rescale_factor", 1 / 255) if preprocessor.get("do_rescale", True) else 1.0
    mean, std = preprocessor.get("image_mean"), preprocessor.get("image_std")
    if not preprocessor.get("do_normalize", True):
        mean, std = (0.0,), (1.0,)
    return _times(mean, scale), _times(std, scale)


def _times(values: Sequence[float] | None, scale: float) -> tuple[float, ...] | None:
    return None if values is None else tuple(value * scale for value in values)


def _names(values: Sequence[Any] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(str(value) for value in values)
