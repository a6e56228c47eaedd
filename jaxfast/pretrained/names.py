"""Foreign tensors to Flax variables and back: one function per naming, from our layer to their name."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxfast.pretrained import densenet, efficientnet_lite, resnet, resnet_transformers, vgg, xresnet
from jaxfast.pretrained.channels import adapt_kernel
from jaxfast.pretrained.read import read_weights
from jaxfast.pretrained.sources import find_weights


class _Naming(NamedTuple):
    """How somebody names the tensors of an architecture.

    `module`: from the path of a layer to its name, KeyError or ValueError where it has none; `head`: what the names of
    the head's tensors begin with; `shape`: from a tensor's name and torch's plain shape to the one that is kept.
    """

    module: Callable[[str], str]
    head: tuple[str, ...]
    shape: Callable[[str, tuple[int, ...]], tuple[int, ...]] = lambda name, shape: shape


class _Family(NamedTuple):
    """What the sizes of an architecture share: who names its tensors (the first is the default), where the kernel that
    sees the image lies, and what older files' names are today."""

    namings: dict[str, _Naming]
    first: str = "body/stem/conv/kernel"
    renamed: Callable[[str], str] = str


def _vgg(arch: str) -> _Family:
    torchvision = _Naming(partial(vgg.torch_module, arch), ("classifier.",))
    timm = _Naming(partial(vgg.timm_module, arch), ("pre_logits.", "head."), vgg.timm_shape)
    return _Family({"torchvision": torchvision, "timm": timm}, "body/layer1_0/conv/kernel")


# by the architecture's name, * for its size
_FAMILIES = {
    "resnet*": _Family(
        {
            "torchvision": _Naming(resnet.torch_module, ("fc.",)),
            "transformers": _Naming(resnet_transformers.torch_module, ("classifier.",)),
        }
    ),
    "efficientnet_lite*": _Family({"efficientnet_lite_pytorch": _Naming(efficientnet_lite.torch_module, ("_fc.",))}),
    "densenet*": _Family({"torchvision": _Naming(densenet.torch_module, ("classifier.",))}, renamed=densenet.renamed),
    "xresnet*": _Family(
        {
            "fastai": _Naming(xresnet.fastai_module, ("11.",), xresnet.fastai_shape),
            "timm": _Naming(xresnet.timm_module, ("fc.",)),
        },
        "body/stem/conv1/kernel",
        xresnet.renamed,
    ),
    **{arch: _vgg(arch) for arch in ("vgg16", "vgg16_bn", "vgg19", "vgg19_bn")},
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
    "gamma": "gamma",  # of attention, and what its spectral norm keeps
    "raw_kernel": "weight_orig",
    "u": "weight_u",
    "v": "weight_v",
}
# axes of torch's array that become ours, and ours that become torch's; by rank
_TO_JAX = {4: (2, 3, 1, 0), 2: (1, 0)}  # OIHW to HWIO, (out, in) to (in, out)
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}


def torch_name(arch: str, path: str, names: str | None = None) -> str:
    """Return torch's name of the variable at `path` ("body/...", "head/dense/...") of an architecture.

    `names`: who names them. "torchvision" (the default; timm's are the same) or "transformers" for a ResNet,
    "torchvision" for a DenseNet (timm's are the same), "torchvision" or "timm" for a VGG, "fastai" or "timm" for an
    xResNet. Raises ValueError for an architecture, a path or `names` that there are no such names of.

    >>> torch_name("resnet50", "body/layer1_0/norm3/scale"), torch_name("resnet50", "body/stem/norm/mean")
    ('layer1.0.bn3.weight', 'bn1.running_mean')
    """
    naming = _naming(arch, names)
    module, _, leaf = path.rpartition("/")
    try:
        return f"{naming.module(module)}.{_LEAVES[leaf]}"
    except (KeyError, ValueError):
        raise ValueError(
            f"torch's {arch} has no name for {path!r}: expected a variable of the body or of {_head(arch)}"
        ) from None


def to_variables(tensors: Mapping[str, np.ndarray], arch: str, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Return torch's tensors as the variables of an ImageClassifier with its ImageNet head, or of its body alone.

    The head is LinearHead, of a VGG VGGHead. `expected` are such variables, {"params": ..., "batch_stats": ...} of
    arrays or `jax.ShapeDtypeStruct`s; they give the paths, shapes and types of the NumPy arrays returned. Of the
    namings that `torch_name` knows, the one with most names among the tensors is taken; older names of torchvision's
    DenseNets and of fastai's xResNets are known too. A first kernel for another number of channels is adapted by
    timm's rule: one channel takes the sum over RGB, n repeat RGB scaled by 3 / n. Where `expected` has no "head", the
    head's tensors are ignored, as are "num_batches_tracked" and DataParallel's prefix "module.". Raises ValueError
    that lists the missing, extra and misshapen tensors (20 of each).
    """
    family = _family(arch)
    tensors = {family.renamed(name.removeprefix("module.")): array for name, array in tensors.items()}
    paths = {path: "/".join(path[1:]) for path in flatten_dict(expected)}
    naming, names = _nearest_naming(arch, paths, tensors)
    head = naming.head if not any(path.startswith("head/") for path in paths.values()) else ()
    ignored = {name for name in tensors if name.endswith("num_batches_tracked") or name.startswith(head)}
    missing = [name for name in names.values() if name not in tensors]
    known = ignored.union(names.values())
    extra = [name for name in tensors if name not in known]

    variables, misshapen = {}, []
    for path, leaf in flatten_dict(expected).items():
        if (array := tensors.get(names[path])) is None:
            continue
        axes = _TO_TORCH.get(len(leaf.shape), range(len(leaf.shape)))
        plain = tuple(leaf.shape[axis] for axis in axes)
        shape = naming.shape(names[path], plain)
        ours = array.reshape(plain) if array.shape == shape else array
        ours = ours.transpose(_TO_JAX[ours.ndim]) if ours.ndim in _TO_JAX else ours
        if paths[path] == family.first and ours.ndim == 4:
            ours = adapt_kernel(ours.astype(leaf.dtype), leaf.shape[2])
        if ours.shape == leaf.shape:
            variables[path] = np.array(ours, leaf.dtype, order="C")
        else:
            misshapen.append(f"{names[path]} {array.shape} for {shape}")
    faults = [
        f"{len(found)} {kind}: {', '.join(found[:20])}{', ...' if len(found) > 20 else ''}"
        for kind, found in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if found
    ]
    if faults:
        raise ValueError(f"not the tensors of {arch}: {'; '.join(faults)}; name the architecture they are of")
    return unflatten_dict(variables)


def to_torch_names(variables: Mapping[str, Any], arch: str, names: str | None = None) -> dict[str, np.ndarray]:
    """Return an ImageClassifier's variables (with its ImageNet head, or its body's) in torch's names and layout.

    `names` is `torch_name`'s. What `to_variables` read comes back, without "num_batches_tracked"; `load_state_dict` of
    torch takes these names.
    """
    tensors, naming = {}, _naming(arch, names)
    for path, leaf in flatten_dict(variables).items():
        array = np.asarray(leaf)
        axes = _TO_TORCH.get(array.ndim)
        array = array.transpose(axes) if axes else array
        name = torch_name(arch, "/".join(path[1:]), names)
        tensors[name] = array.reshape(naming.shape(name, array.shape))
    return tensors


def load_body(variables: Mapping[str, Any], arch: str, pretrained: bool | str | Path = True) -> dict[str, Any]:
    """Return an ImageClassifier's variables with the body's taken from a weight file, whatever its head.

    `pretrained` is `find_weights`'s. The file's head is not read; the variables given keep theirs. Raises as
    `find_weights`, `read_weights` and `to_variables` do.
    """
    tensors = read_weights(find_weights(arch, pretrained).path)
    body = {kind: {"body": tree["body"]} for kind, tree in variables.items() if "body" in tree}
    loaded = to_variables(tensors, arch, body)
    return {kind: {**tree, **loaded.get(kind, {})} for kind, tree in variables.items()}


def _family(arch: str) -> _Family:
    family = _FAMILIES.get(arch) or _FAMILIES.get(arch.rstrip("0123456789") + "*")
    if family is None:
        raise ValueError(f"no names of weights are known for {arch!r}: expected one of {', '.join(_FAMILIES)}")
    return family


def _head(arch: str) -> str:
    return "VGGHead" if arch.startswith("vgg") else "LinearHead"


def _naming(arch: str, names: str | None) -> _Naming:
    namings = _family(arch).namings
    if names is not None and names not in namings:
        raise ValueError(f"no names {names!r} of {arch}: expected one of {', '.join(namings)}")
    return namings[names or next(iter(namings))]


def _nearest_naming(arch: str, paths: Mapping, tensors: Mapping) -> tuple[_Naming, dict]:
    """The naming that knows most of the tensors, and the name of each path. ValueError where none has them all."""
    found, fault = [], None
    for key, naming in _family(arch).namings.items():
        try:
            found.append((naming, {at: torch_name(arch, path, key) for at, path in paths.items()}))
        except ValueError as error:  # this one knows nothing of an option of the architecture
            fault = fault or error
    if not found:
        raise fault

    def known(one: tuple[_Naming, dict]) -> int:
        naming, names = one
        return sum(name in tensors for name in names.values()) + sum(name.startswith(naming.head) for name in tensors)

    return max(found, key=known)
