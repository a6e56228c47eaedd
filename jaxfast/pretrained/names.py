"""Foreign tensors to Flax variables and back: one function per naming, from our layer to their name."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from jaxfast.pretrained import efficientnet_lite, resnet, resnet_transformers
from jaxfast.pretrained.channels import adapt_kernel
from jaxfast.pretrained.read import read_weights
from jaxfast.pretrained.sources import find_weights

# by the architecture's name without its size, then by who names the tensors; the first is the default
_TORCH_MODULES: dict[str, dict[str, Callable[[str], str]]] = {
    "resnet": {"torchvision": resnet.torch_module, "transformers": resnet_transformers.torch_module},
    "efficientnet_lite": {"efficientnet_lite_pytorch": efficientnet_lite.torch_module},
}
_LEAVES = {
    "kernel": "weight",
    "scale": "weight",
    "bias": "bias",
    "mean": "running_mean",
    "var": "running_var",
}
# axes of torch's array that become ours, and ours that become torch's; by rank
_TO_JAX = {4: (2, 3, 1, 0), 2: (1, 0)}  # OIHW to HWIO, (out, in) to (in, out)
_TO_TORCH = {4: (3, 2, 0, 1), 2: (1, 0)}
_FIRST_KERNEL = ("params", "body", "stem", "conv", "kernel")


def torch_name(arch: str, path: str, names: str | None = None) -> str:
    """Return torch's name of the variable at `path` ("body/...", "head/dense/...") of an architecture.

    `names`: who names them, for a ResNet "torchvision" (the default; timm's are the same) or "transformers". Raises
    ValueError for an architecture, a path or `names` that there are no such names of.

    >>> torch_name("resnet50", "body/layer1_0/norm3/scale"), torch_name("resnet50", "body/stem/norm/mean")
    ('layer1.0.bn3.weight', 'bn1.running_mean')
    """
    namings = _namings(arch)
    if names is None:
        names = next(iter(namings))
    elif names not in namings:
        raise ValueError(f"no names {names!r} of {arch}: expected one of {', '.join(namings)}")
    module, _, leaf = path.rpartition("/")
    try:
        return f"{namings[names](module)}.{_LEAVES[leaf]}"
    except (KeyError, ValueError):
        raise ValueError(
            f"torch's {arch} has no name for {path!r}: expected a variable of the body or of a LinearHead"
        ) from None


def to_variables(tensors: Mapping[str, np.ndarray], arch: str, expected: Mapping[str, Any]) -> dict[str, Any]:
    """Return torch's tensors as the variables of an ImageClassifier with LinearHead, or of its body alone.

    `expected` are such variables, {"params": ..., "batch_stats": ...} of arrays or `jax.ShapeDtypeStruct`s;
    they give the paths, shapes and types of the NumPy arrays returned. Of the namings that `torch_name` knows, the one
    with most names among the tensors is taken. A first kernel for another number of channels is adapted by timm's rule:
    one channel takes the sum over RGB, n repeat RGB scaled by 3 / n. Where `expected` has no "head", the head's
    tensors are ignored, as are "num_batches_tracked" and DataParallel's prefix "module.". Raises ValueError
    that lists the missing, extra and misshapen tensors (20 of each).
    """
    tensors = {name.removeprefix("module."): array for name, array in tensors.items()}
    paths = flatten_dict(expected)
    candidates = {
        naming: {path: torch_name(arch, "/".join(path[1:]), naming) for path in paths} for naming in _namings(arch)
    }
    naming = max(candidates, key=lambda naming: sum(name in tensors for name in candidates[naming].values()))
    names = candidates[naming]
    ignored = {torch_name(arch, f"head/dense/{leaf}", naming) for leaf in ("kernel", "bias")}
    ignored |= {name for name in tensors if name.endswith("num_batches_tracked")}
    missing = [name for name in names.values() if name not in tensors]
    known = ignored.union(names.values())
    extra = [name for name in tensors if name not in known]

    variables, misshapen = {}, []
    for path, leaf in paths.items():
        if (array := tensors.get(names[path])) is None:
            continue
        ours = array.transpose(_TO_JAX[array.ndim]) if array.ndim in _TO_JAX else array
        if path == _FIRST_KERNEL and ours.ndim == 4:
            ours = adapt_kernel(ours.astype(leaf.dtype), leaf.shape[2])
        if ours.shape == leaf.shape:
            variables[path] = np.array(ours, leaf.dtype, order="C")
        else:
            axes = _TO_TORCH.get(len(leaf.shape), range(len(leaf.shape)))
            misshapen.append(f"{names[path]} {array.shape} for {tuple(leaf.shape[axis] for axis in axes)}")
    faults = [
        f"{len(found)} {kind}: {', '.join(found[:20])}{', ...' if len(found) > 20 else ''}"
        for kind, found in (("missing", missing), ("extra", extra), ("misshapen", misshapen))
        if found
    ]
    if faults:
        raise ValueError(f"not the tensors of {arch}: {'; '.join(faults)}; name the architecture they are of")
    return unflatten_dict(variables)


def to_torch_names(variables: Mapping[str, Any], arch: str, names: str | None = None) -> dict[str, np.ndarray]:
    """Return an ImageClassifier's variables (with LinearHead, or its body's) in torch's names and layout.

    `names` is `torch_name`'s. What `to_variables` read comes back, without "num_batches_tracked"; `load_state_dict` of
    torch takes these names.
    """
    tensors = {}
    for path, leaf in flatten_dict(variables).items():
        array = np.asarray(leaf)
        axes = _TO_TORCH.get(array.ndim)
        tensors[torch_name(arch, "/".join(path[1:]), names)] = array.transpose(axes) if axes else array
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


def _namings(arch: str) -> dict[str, Callable[[str], str]]:
    family = arch.rstrip("0123456789")
    if family not in _TORCH_MODULES:
        known = ", ".join(f"{name}*" for name in _TORCH_MODULES)
        raise ValueError(f"no names of weights are known for {arch!r}: expected one of {known}")
    return _TORCH_MODULES[family]
