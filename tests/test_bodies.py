"""xResNet, DenseNet and VGG against torch; blocks, groups and stochastic depth of every body."""

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch_bodies
from flax import linen
from flax.traverse_util import flatten_dict
from small import arrays
from test_models import as_torch, random_variables, shapes_of

from jaxfast import models, pretrained, vision
from jaxfast.interpret.heatmap import grad_cam
from jaxfast.models import resnet
from jaxfast.models.attention import SimpleSelfAttention, SpectralDense, SqueezeExcite
from jaxfast.models.layers import stochastic_depth
from jaxfast.models.resnet import BasicBlock, ResNet
from jaxfast.models.xresnet import XBlock

SMALL = {
    "resnet": partial(ResNet, (1, 2, 1, 1), BasicBlock, width=4),
    "xresnet": partial(models.XResNet, (1, 2, 1, 1), 1, width=4),
    "densenet": partial(models.DenseNet, (2, 1, 1, 1), growth=4, width=8),
    "vgg": partial(models.VGG, (1, 2, 2, 1, 2), True, width=4),
    "lite": partial(models.EfficientNetLite, width=0.25, depth=0.1),
}
OPTIONS = {"activation": jax.nn.mish, "squeeze_excite": 4, "attention": True}


def classifier(body, head=None):
    return models.ImageClassifier(body, head or models.LinearHead(10), resnet.MEAN, resnet.STD)


@cache
def published(arch, head=models.LinearHead):
    """The network of an architecture with 1000 classes, and the shapes of its variables; nothing is computed."""
    model = classifier(getattr(models, arch)(), head(1000))
    return model, shapes_of(model, 224 if head is models.VGGHead else 64)


# --- logits


def check_logits(reference, arch, model, size):
    """Same weights, same logits, and the weights come back under their names; float64."""
    reference = torch_bodies.randomized(reference)
    images = np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)
    with torch.no_grad():
        theirs = reference(as_torch(images)).numpy()
    with jax.enable_x64(True):
        expected = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, np.float64), shapes_of(model))
        tensors = torch_bodies.weights_of(reference)
        variables = pretrained.to_variables(tensors, arch, expected)
        ours = jax.jit(model.apply)(variables, images)
    assert ours.dtype == np.float64
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-9)
    back = {names: to_names(variables, arch, names) for names in ("torchvision", "timm", "fastai")}
    assert any(array is not None and array.keys() == tensors.keys() for array in back.values())
    for array in back.values():
        if array is not None and array.keys() == tensors.keys():
            torch_bodies.assert_same_tensors(array, tensors)


def to_names(variables, arch, names):
    try:
        return pretrained.to_torch_names(variables, arch, names)
    except ValueError:
        return None


def test_densenet_logits_equal_torch():
    model = classifier(models.DenseNet((2, 1, 2, 1), growth=4, width=6, dtype=jnp.float64))
    check_logits(torch_bodies.DenseNet((2, 1, 2, 1), 4, 6, 10), "densenet121", model, (75, 50))


@pytest.mark.parametrize(
    "reference, arch, sizes, batch_norm",
    [
        (torch_bodies.VGG, "vgg19_bn", (2, 2, 4, 4, 4), True),
        (torch_bodies.TimmVGG, "vgg16", (2, 2, 3, 3, 3), False),
    ],
)
def test_vgg_logits_equal_torch(reference, arch, sizes, batch_norm):
    """The last map, 3x2, is brought to 7x7 by bins that overlap."""
    body = getattr(models, arch)(width=2, dtype=jnp.float64)
    assert body.stage_sizes == sizes
    model = classifier(body, models.VGGHead(10, hidden=(16, 16)))
    check_logits(reference(sizes, batch_norm, 2, 16, 10), arch, model, (97, 70))


@pytest.mark.parametrize("size", [1, 3, 7, 10, 14])
def test_the_head_of_vgg_pools_as_torch(size):
    x = np.random.default_rng(0).normal(size=(2, size, 9, 3)).astype(np.float32)
    head = models.VGGHead(147, hidden=())
    identity = {"params": {"dense0": {"kernel": np.eye(147, dtype=np.float32), "bias": np.zeros(147, np.float32)}}}
    theirs = torch.nn.functional.adaptive_avg_pool2d(torch.from_numpy(x.transpose(0, 3, 1, 2)), (7, 7)).flatten(1)
    np.testing.assert_allclose(head.apply(identity, x), theirs, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "arch, sizes, expansion, options", [("xresnet18", (1, 2, 1, 1), 1, False), ("xresnet50", (2, 1, 1, 1), 4, True)]
)
def test_xresnet_logits_equal_torch(arch, sizes, expansion, options):
    """At odd sizes, where the shortcut's pooling meets the edge; with Mish, squeeze-excite and self-attention."""
    theirs = {"activation": torch.nn.Mish, "reduction": 4, "attention": True} if options else {}
    model = classifier(models.XResNet(sizes, expansion, width=8, dtype=jnp.float64, **(OPTIONS if options else {})))
    check_logits(torch_bodies.xresnet(sizes, expansion, 8, 10, **theirs), arch, model, (75, 50))


def test_timms_resnet_d_is_an_xresnet():
    model = classifier(models.XResNet((1, 2, 1, 1), 4, width=4, dtype=jnp.float64))
    check_logits(torch_bodies.TimmResNetD((1, 2, 1, 1), 4, 4, 10), "xresnet50", model, (75, 50))


PARAMETERS = {
    "densenet121": 7_978_856,
    "densenet161": 28_681_000,
    "densenet169": 14_149_480,
    "densenet201": 20_013_928,
    "vgg16": 138_357_544,
    "vgg16_bn": 138_365_992,
    "vgg19": 143_667_240,
    "vgg19_bn": 143_678_248,
    # timm's resnet18d, 34d, 50d and 101d
    "xresnet18": 11_708_744,
    "xresnet34": 21_816_904,
    "xresnet50": 25_576_264,
    "xresnet101": 44_568_392,
}


@pytest.mark.parametrize("arch", PARAMETERS)
def test_parameter_counts_are_the_published_ones(arch):
    _, shapes = published(arch, models.VGGHead if arch.startswith("vgg") else models.LinearHead)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == PARAMETERS[arch]


# --- the layers of the options


def test_spectral_norm_follows_torchs_through_training():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(4, 6))
    linear = torch.nn.utils.spectral_norm(torch.nn.Linear(6, 5, bias=False).double())
    tensors = {name: tensor.numpy().copy() for name, tensor in linear.state_dict().items()}
    with jax.enable_x64(True):
        layer = SpectralDense(5, jnp.float64)
        params = {"raw_kernel": tensors["weight_orig"].T}
        stats = {"u": tensors["weight_u"], "v": tensors["weight_v"]}
        for _ in range(3):

            def loss(params, stats=stats):
                y, state = layer.apply({"params": params, "batch_stats": stats}, x, True, mutable=["batch_stats"])
                return (y**3).sum(), (y, state["batch_stats"])

            gradient, (ours, stats) = jax.grad(loss, has_aux=True)(params)
            theirs = linear(torch.from_numpy(x))
            np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-12)
        linear.zero_grad()
        (theirs**3).sum().backward()
        np.testing.assert_allclose(gradient["raw_kernel"].T, linear.weight_orig.grad.numpy(), rtol=1e-9)
        np.testing.assert_allclose(stats["u"], linear.state_dict()["weight_u"].numpy(), rtol=1e-12)
        evaluated = layer.apply({"params": params, "batch_stats": stats}, x)
    np.testing.assert_allclose(evaluated, linear.eval()(torch.from_numpy(x)).detach().numpy(), rtol=1e-12)


def test_fresh_attention_adds_nothing_and_does_not_overflow_a_half():
    x = 30 * np.random.default_rng(0).normal(size=(2, 12, 12, 8)).astype(np.float16)
    out, variables = jax.jit(SimpleSelfAttention(jnp.float16).init_with_output)(jax.random.key(1), x)
    assert out.dtype == jnp.float16
    np.testing.assert_array_equal(out, x)
    dense = {kind: tree["dense"] for kind, tree in variables.items()}
    assert np.linalg.norm(SpectralDense(8).apply(dense, jnp.eye(8)), 2) == pytest.approx(1, abs=0.05)


def test_squeeze_excite_gates_channels_between_nothing_and_all():
    layer = SqueezeExcite(4)
    x = jnp.ones((1, 4, 4, 32))
    params = jax.tree.map(lambda leaf: np.zeros(leaf.shape), jax.eval_shape(layer.init, jax.random.key(0), x)["params"])
    assert params["reduce"]["kernel"].shape == (1, 1, 32, 8)
    params["expand"]["bias"] = np.where(np.arange(32) < 16, 100.0, -100.0)
    np.testing.assert_allclose(layer.apply({"params": params}, x)[0, 0, 0], np.arange(32) < 16, atol=1e-6)


def test_attention_sits_in_the_last_block_of_the_first_stage_alone():
    model = classifier(models.XResNet((2, 1, 1, 1), 4, width=8, attention=True, squeeze_excite=2))
    paths = flatten_dict(shapes_of(model)["params"]["body"], sep="/")
    assert {path.split("/")[0] for path in paths if "attention" in path} == {"layer1_1"}
    assert {path.split("/")[1] for path in paths if "layer" in path and path.endswith("gamma")} == {"attention5"}
    assert {path.split("/")[0] for path in paths if "/se4/" in path} == {
        "layer1_0", "layer1_1", "layer2_0", "layer3_0", "layer4_0",
    }  # fmt: skip


def test_a_fresh_xresnet_block_adds_nothing_to_its_shortcut():
    block = XBlock(4, 1, 1, linen.relu, 0, False, 0.0, jnp.float32)
    x = np.random.default_rng(0).random((2, 6, 6, 4), np.float32)
    out, variables = jax.jit(block.init_with_output)(jax.random.key(1), x)
    np.testing.assert_array_equal(out, x)
    assert [float(variables["params"][name]["scale"].mean()) for name in ("norm1", "norm2")] == [1, 0]


# --- blocks


@pytest.mark.parametrize(
    "family, pyramid",
    [
        ("xresnet", {32: "stem", 16: "layer1_0", 8: "layer2_1", 4: "layer3_0", 2: "layer4_0"}),
        ("densenet", {32: "stem", 16: "block1_1", 8: "block2_0", 4: "block3_0", 2: "top"}),
        ("vgg", {64: "layer1_0", 32: "layer2_1", 16: "layer3_1", 8: "layer4_0", 4: "layer5_1", 2: "top"}),
    ],
)
def test_the_last_map_before_each_halving_is_a_blocks_output(family, pyramid):
    model = classifier(SMALL[family]())
    images = jnp.zeros((1, 64, 64, 3))
    features = jax.eval_shape(lambda v: model.apply(v, images, method="features"), shapes_of(model))
    last = {features[name].shape[1]: name for name in model.block_names}
    assert last == pyramid


def test_densenet_concatenates_and_its_transitions_halve():
    model = classifier(SMALL["densenet"]())
    images = jnp.zeros((1, 64, 64, 3))
    features = jax.eval_shape(lambda v: model.apply(v, images, method="features"), shapes_of(model))
    names = ("stem", "block1_0", "block1_1", "transition1", "block2_0")
    assert [features[name].shape[-1] for name in names] == [8, 12, 16, 8, 12]


@pytest.mark.parametrize(
    "family, names",
    [
        ("xresnet", ("stem", "layer2_0", "layer4_0")),
        ("densenet", ("stem", "transition2", "top")),
        ("vgg", ("layer1_0", "layer5_1", "top")),
    ],
)
def test_from_features_continues_from_a_block(family, names):
    model = classifier(SMALL[family](), models.ClassifierHead(3))
    variables = random_variables(shapes_of(model))
    images = np.random.default_rng(1).integers(0, 256, (2, 40, 40, 3), np.uint8)

    @jax.jit
    def run(variables):
        features = model.apply(variables, images, method="features")
        logits = [model.apply(variables, features[name], name, method="from_features") for name in names]
        return model.apply(variables, images), features, logits

    logits, features, continued = run(variables)
    assert set(features) == set(model.block_names) and logits.shape == (2, 3)
    for name, ours in zip(names, continued, strict=True):
        np.testing.assert_allclose(ours, logits, rtol=1e-4, atol=1e-4, err_msg=name)
    name = model.block_names[1]
    until = jax.eval_shape(partial(model.apply, until=name, method="features"), variables, images)
    assert set(until) == set(model.block_names[:2])


@pytest.mark.parametrize("family", ["xresnet", "densenet", "vgg"])
def test_bfloat16_body_keeps_float32_parameters_statistics_and_logits(family):
    body = SMALL[family](dtype=jnp.bfloat16, **({**OPTIONS, "width": 8} if family == "xresnet" else {}))
    model = classifier(body, models.ClassifierHead(3))
    shapes = shapes_of(model)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes)} == {np.dtype(np.float32)}
    images = jnp.zeros((2, 64, 64, 3), jnp.uint8)
    features = jax.eval_shape(lambda v: model.apply(v, images, method="features"), shapes)
    assert {leaf.dtype for leaf in features.values()} == {np.dtype(jnp.bfloat16)}

    def train(variables):
        rngs = {"dropout": jax.random.key(0)}
        return model.apply(variables, images, train=True, mutable=["batch_stats"], rngs=rngs)

    logits, state = jax.eval_shape(train, shapes)
    assert logits.dtype == np.float32
    assert jax.tree.map(lambda leaf: leaf.dtype, state["batch_stats"]) == jax.tree.map(
        lambda leaf: leaf.dtype, shapes["batch_stats"]
    )


@pytest.mark.parametrize("family, enough, least", [("densenet", 29, 29), ("vgg", 32, 32)])
def test_images_that_are_too_small(family, enough, least):
    model = classifier(SMALL[family]())
    shapes_of(model, enough)
    with pytest.raises(ValueError, match=f"cannot be halved once more: a .* needs images of at least {least}x{least}"):
        shapes_of(model, enough - 1)


@pytest.mark.parametrize(
    "arch, name, near", [("densenet121", "transition4", "transition"), ("vgg16", "layer5_3", "layer5_")]
)
def test_unknown_block(arch, name, near):
    with pytest.raises(ValueError, match=f"no block '{name}': the nearest is '{near}"):
        getattr(models, arch)().apply({}, jnp.zeros((1, 64, 64, 3)), until=name, method="features")


# --- groups

SECOND_GROUP = {
    "resnet18": "layer3", "resnet34": "layer3", "resnet50": "layer3", "resnet101": "layer3", "resnet152": "layer3",
    "xresnet18": "layer1", "xresnet34": "layer1", "xresnet50": "layer1", "xresnet101": "layer1",
    "densenet121": "transition2", "densenet161": "transition2", "densenet169": "transition2",
    "densenet201": "transition2",
    "vgg16": "layer5_0", "vgg16_bn": "layer4_0", "vgg19": "layer4_2", "vgg19_bn": "layer3_3",
    "efficientnet_lite0": "block5", "efficientnet_lite1": "block7", "efficientnet_lite2": "block7",
}  # fmt: skip


@pytest.mark.parametrize("arch", SECOND_GROUP)
def test_the_second_group_begins_where_fastai_cuts(arch):
    assert vision.ARCHITECTURES.keys() == SECOND_GROUP.keys()
    assert vision.ARCHITECTURES[arch].body().groups[1][0] == SECOND_GROUP[arch]


@pytest.mark.parametrize("arch", ["xresnet18", "xresnet50", "densenet121", "vgg16_bn", "vgg19"])
def test_groups_cover_every_parameter_once(arch):
    model, shapes = published(arch)
    found = {group: 0 for group in model.groups}
    for path in flatten_dict(shapes["params"], sep="/"):
        matches = [g for g in model.groups for p in g if path == p or path.startswith((p + "/", p + "_"))]
        assert len(matches) == 1, path
        found[matches[0]] += 1
    assert all(found.values()) and len(found) == 3


# torchvision's index of the first convolution from 22 on (fastai's `_vgg_split`), and of the last one
VGG_CUTS = [("vgg16", 24, 28), ("vgg16_bn", 24, 40), ("vgg19", 23, 34), ("vgg19_bn", 23, 49)]


@pytest.mark.parametrize("arch, cut, last", VGG_CUTS)
def test_vgg_is_cut_at_torchs_index_22(arch, cut, last):
    second = getattr(models, arch)().groups[1]
    assert pretrained.torch_name(arch, f"body/{second[0]}/conv/bias") == f"features.{cut}.bias"
    assert pretrained.torch_name(arch, f"body/{second[-1]}/conv/bias") == f"features.{last}.bias"


# --- stochastic depth


def test_stochastic_depth_drops_whole_examples_and_keeps_the_mean():
    class Branch(linen.Module):
        @linen.compact
        def __call__(self, x, train):
            return stochastic_depth(x, 0.25, train)

    x = jax.random.normal(jax.random.key(0), (4000, 2, 3, 1))
    out = Branch().apply({}, x, True, rngs={"dropout": jax.random.key(1)})
    kept = np.asarray(out[:, 0, 0, 0] != 0)
    np.testing.assert_allclose(out, np.where(kept[:, None, None, None], x / 0.75, 0), rtol=1e-6)
    assert kept.mean() == pytest.approx(0.75, abs=0.03)
    np.testing.assert_array_equal(Branch().apply({}, x, False), x)


RESIDUAL = {
    "resnet": (partial(ResNet, (1, 1), BasicBlock, width=4), "layer2_0"),
    "xresnet": (partial(models.XResNet, (1, 1), 1, width=4), "layer2_0"),
    "lite": (partial(models.EfficientNetLite, width=0.25), "block2"),  # the first with a shortcut
}


@pytest.mark.parametrize("family", RESIDUAL)
def test_drop_path_changes_training_alone_and_0_needs_no_rng(family):
    body, last = RESIDUAL[family]
    plain, dropping = body(), body(drop_path=0.9)
    x = np.random.default_rng(0).normal(size=(16, 24, 24, 3)).astype(np.float32)
    variables = random_variables(jax.eval_shape(plain.init, jax.random.key(0), x))

    @jax.jit
    def run(key):
        features = lambda body, train, **rngs: body.apply(
            variables, x, train, until=last, method="features", rngs=rngs, mutable=True
        )[0][last]
        return (
            [features(body, False) for body in (plain, dropping)],
            features(plain, True),
            features(dropping, True, dropout=key),
        )

    (before, after), trained, dropped = run(jax.random.key(0))
    np.testing.assert_array_equal(before, after)
    assert not np.allclose(trained, dropped)
    with pytest.raises(Exception, match='needs PRNG for "dropout"'):
        jax.eval_shape(lambda: dropping.apply(variables, x, True, mutable=True))


def test_the_rate_of_stochastic_depth_rises_linearly_to_the_last_block():
    """Huang et al. 2016, equation 4: block l of L has l / L of the rate."""
    rates = {}

    def spy(call, args, kwargs, context):
        if isinstance(context.module, (BasicBlock, XBlock)) and context.method_name == "__call__":
            rates[context.module.name] = context.module.drop_path
        return call(*args, **kwargs)

    for family in ("resnet", "xresnet"):
        rates.clear()
        with linen.intercept_methods(spy):
            shapes_of(classifier(SMALL[family](drop_path=0.5)))
        names = SMALL[family]().block_names[1:]
        assert rates == pytest.approx(dict(zip(names, (0.1, 0.2, 0.3, 0.4, 0.5), strict=True)))


def test_a_dropped_block_is_its_shortcut():
    body = models.XResNet((1, 1), 1, width=4, drop_path=1.0)
    x = jax.random.normal(jax.random.key(0), (2, 16, 16, 3))
    variables = random_variables(jax.eval_shape(body.init, jax.random.key(0), x))
    gone = jax.tree.map(lambda leaf: leaf, variables)
    for leaf in ("scale", "bias"):
        gone["params"]["layer2_0"]["norm2"][leaf] = np.zeros(8, np.float32)
    x = jax.random.normal(jax.random.key(1), (2, 8, 8, 4))
    rngs = {"dropout": jax.random.key(0)}
    run = jax.jit(
        lambda variables, body: body.apply(
            variables, x, True, after="layer1_0", method="features", rngs=rngs, mutable=True
        )[0]["layer2_0"],
        static_argnums=1,
    )
    np.testing.assert_allclose(run(variables, body), run(gone, body.clone(drop_path=0.0)), rtol=1e-6)


# --- the learner


@pytest.fixture
def tiny(monkeypatch):
    """A learner of images of 32 pixels over a small body."""

    def make(body):
        monkeypatch.setitem(vision.ARCHITECTURES, "tiny", vision.Architecture(body, resnet.MEAN, resnet.STD))
        images, labels = arrays(20, size=32)
        data = vision.from_arrays(images, labels, batch_size=16, augment=False)
        return vision.learner(data, "tiny", pretrained=False, hidden=(4,), quiet=True)

    return make


@pytest.mark.parametrize("family", ["densenet", "vgg"])
def test_a_learner_has_three_groups_and_can_freeze_them(family, tiny):
    check_groups(tiny(SMALL[family]), SMALL[family]().groups)


def check_groups(learn, body):
    groups = learn.summary().groups
    assert len(groups) == 3 and all(group.parameters for group in groups)
    assert [tuple(f"body/{prefix}" for prefix in group) for group in body] == [group.layers for group in groups[:2]]
    for n, frozen in ((-1, 2), (-2, 1), (0, 0)):
        learn.freeze_to(n)
        whole = [group.trained == group.parameters for group in learn.summary().groups]
        assert whole == [False] * frozen + [True] * (3 - frozen)


def test_an_xresnet_with_all_options_trains(tiny):
    learn = tiny(partial(models.XResNet, (1,), 1, width=8, drop_path=0.5, **OPTIONS))
    check_groups(learn, (("stem",), ("layer1",)))
    before = jax.tree.map(np.array, learn.state.variables)
    learn.fit(3, 1e-2)  # at first the branch is zero, and nothing reaches gamma
    assert np.isfinite(learn.history.losses).all()
    same = jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), before, jax.device_get(learn.state.variables))
    moved = {path for path, unchanged in flatten_dict(same, sep="/").items() if not unchanged}
    attention = "body/layer1_0/attention4"
    assert {f"params/{attention}/gamma", f"batch_stats/{attention}/dense/u"} <= moved
    assert "params/body/layer1_0/se3/reduce/kernel" in moved


@pytest.mark.parametrize("family", ["xresnet", "densenet", "vgg"])
def test_heatmaps_of_every_family(family):
    model = classifier(SMALL[family](), models.ClassifierHead(3))
    variables = random_variables(shapes_of(model))
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    names = {"xresnet": "layer2_1", "densenet": "block3_0", "vgg": "layer4_0"}
    found = grad_cam(model, variables, image, target=1, layer=names[family])
    assert found.values.shape == {"xresnet": (5, 5), "densenet": (2, 2), "vgg": (5, 5)}[family]
    assert 0 <= found.values.min() and found.values.max() in (0, pytest.approx(1))
    assert 0 < found.probability < 1
