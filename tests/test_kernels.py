"""Every CPU form against XLA's plain operation, in values and gradients."""

import importlib
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from jaxfast.kernels import batch_norm, conv2d, max_pool

# (batch, height, width, channels), (kh, kw), features, groups, strides, padding
DEPTHWISE = [
    ((2, 7, 5, 3), (3, 3), (1, 1), "SAME"),
    ((2, 7, 6, 3), (3, 3), (2, 2), ((1, 1), (1, 1))),
    ((3, 8, 8, 2), (5, 5), (2, 2), ((2, 2), (2, 2))),
    ((1, 5, 5, 4), (5, 5), (1, 1), "SAME"),
    ((2, 3, 3, 4), (5, 5), (1, 1), ((2, 2), (2, 2))),  # window exceeds the image
    ((2, 9, 8, 2), (3, 3), (2, 2), "VALID"),
    ((2, 9, 8, 2), (3, 3), (2, 1), ((0, 2), (1, 0))),
    ((2, 9, 8, 2), (1, 1), (2, 2), "VALID"),
    ((2, 8, 9, 2), (3, 5), (3, 2), ((1, 2), (0, 3))),
    ((1, 37, 4, 2), (3, 3), (1, 1), "SAME"),  # rows go in blocks that do not divide the height
    ((1, 70, 3, 2), (5, 5), (2, 2), "SAME"),
    ((29, 4, 4, 2), (3, 3), (1, 1), "SAME"),  # images go in blocks that do not divide the batch
]
FULL = [
    ((2, 7, 5, 3), (1, 1), 4, (1, 1), "SAME"),
    ((2, 7, 6, 3), (1, 1), 4, (2, 2), "VALID"),
    ((2, 7, 6, 3), (1, 1), 4, (2, 2), "SAME"),
    ((2, 7, 6, 3), (1, 1), 4, (2, 1), ((1, 1), (0, 1))),
    ((2, 7, 5, 3), (3, 3), 4, (1, 1), "SAME"),
    ((2, 7, 6, 3), (3, 3), 4, (2, 2), ((1, 1), (1, 1))),
    ((1, 11, 9, 3), (7, 7), 2, (2, 2), ((3, 3), (3, 3))),
    ((1, 9, 9, 3), (5, 5), 2, (2, 1), ((1, 3), (0, 2))),
    ((2, 8, 9, 3), (3, 3), 2, (2, 2), "VALID"),  # last rows are never read
    ((2, 8, 9, 3), (2, 2), 2, (3, 3), "VALID"),  # stride exceeds the window
    ((2, 7, 5, 3), (3, 1), 4, (1, 2), "SAME"),
    ((2, 2, 2, 3), (3, 3), 4, (1, 1), ((1, 1), (1, 1))),  # window exceeds the image
    ((2, 1, 1, 3), (3, 3), 4, (1, 1), ((1, 1), (1, 1))),
    ((1, 4, 3, 3), (7, 7), 2, (1, 1), "SAME"),
    ((2, 4, 5, 3), (7, 7), 2, (2, 2), ((3, 3), (3, 3))),
    ((2, 2, 6, 3), (5, 3), 2, (1, 2), ((4, 2), (1, 0))),
    ((2, 2, 2, 3), (3, 3), 2, (1, 1), ((5, 4), (1, 1))),  # some windows see padding only
    ((2, 4, 4, 3), (3, 3), 4, (2, 2), ((1, 1), (1, 1))),  # four positions
]
CASES = (
    [(x, k, x[3], x[3], s, p) for x, k, s, p in DEPTHWISE]
    + [(x, k, f, 1, s, p) for x, k, f, s, p in FULL]
    + [((2, 7, 6, 4), (3, 3), 6, 2, (2, 2), "SAME"), ((2, 5, 5, 2), (3, 3), 4, 2, (1, 1), "SAME")]
)


def plain_conv(x, kernel, strides, padding, groups):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, feature_group_count=groups, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def draw(shape, dtype, seed):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


def check_conv(case, dtype, tolerance):
    x_shape, window, features, groups, strides, padding = case
    x, kernel = draw(x_shape, dtype, 0), draw((*window, x_shape[3] // groups, features), dtype, 1)
    ours, theirs = (
        jax.jit(lambda x, k, g, f=f: (lambda y, back: (y, *back(g(y))))(*jax.vjp(f, x, k)), static_argnums=2)(
            x, kernel, lambda y: jnp.cos(jnp.arange(y.size, dtype=dtype)).reshape(y.shape)
        )
        for f in (
            partial(conv2d, strides=strides, padding=padding, groups=groups),
            partial(plain_conv, strides=strides, padding=padding, groups=groups),
        )
    )
    for got, want in zip(ours, theirs, strict=True):
        assert got.dtype == want.dtype == dtype
        np.testing.assert_allclose(got, want, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_convolution_equals_the_plain_form_in_fp64(case):
    with jax.enable_x64(True):
        check_conv(case, jnp.float64, 1e-10)


@pytest.mark.parametrize("case", [CASES[1], CASES[13], CASES[23]], ids=str)
def test_convolution_equals_the_plain_form_in_fp32(case):
    check_conv(case, jnp.float32, 2e-4)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("case", [CASES[1], CASES[13], CASES[23]], ids=str)
def test_half_precision_rounds_once(case, dtype):
    x_shape, window, features, groups, strides, padding = case
    x, kernel = draw(x_shape, dtype, 0), draw((*window, x_shape[3] // groups, features), dtype, 1)
    static = dict(strides=strides, padding=padding, groups=groups)

    def run(conv):
        return jax.jit(
            lambda x, k, g: (lambda y, back: (y, back(g.astype(y.dtype))))(
                *jax.vjp(partial(conv, **static), x, k)
            )
        )

    y = conv2d(x, kernel, **static)
    _, grads = run(conv2d)(x, kernel, y)
    want, want_grads = run(plain_conv)(x.astype(jnp.float32), kernel.astype(jnp.float32), y)
    step = float(jnp.finfo(dtype).eps)
    assert y.dtype == dtype
    np.testing.assert_allclose(y.astype(jnp.float32), want, rtol=step, atol=step)
    for got, expected in zip(grads, want_grads, strict=True):
        assert got.dtype == dtype
        np.testing.assert_allclose(
            got.astype(jnp.float32), expected, rtol=4 * step, atol=step * np.abs(expected).max()
        )


def test_kernel_of_another_dtype_is_cast_and_gets_its_own_gradient_dtype():
    x, kernel = draw((2, 5, 5, 2), jnp.bfloat16, 0), draw((3, 3, 1, 2), jnp.float32, 1)

    def program(x, kernel):
        y, back = jax.vjp(partial(conv2d, groups=2), x, kernel)
        return y, *back(y)

    assert [a.dtype for a in jax.eval_shape(program, x, kernel)] == [jnp.bfloat16, jnp.bfloat16, jnp.float32]


LOOPED = [
    ((2, 6, 6, 3), (3, 3, 1, 3), (2, 2), 3),
    ((2, 6, 6, 3), (1, 1, 3, 3), (1, 1), 1),
    ((2, 6, 6, 3), (3, 3, 3, 3), (1, 1), 1),
    ((2, 2, 2, 3), (3, 3, 3, 3), (1, 1), 1),
]


@pytest.mark.parametrize("x_shape, kernel_shape, strides, groups", LOOPED)
def test_gradient_descent_in_a_loop_equals_the_plain_form(x_shape, kernel_shape, strides, groups):
    x, kernel = draw(x_shape, jnp.float32, 0), draw(kernel_shape, jnp.float32, 1)

    def descend(conv):
        def loss(kernel):
            return jnp.mean(conv(x, kernel, strides=strides, padding="SAME", groups=groups) ** 2)

        return jax.jit(lambda k: lax.fori_loop(0, 3, lambda _, k: k - 0.1 * jax.grad(loss)(k), k))(kernel)

    np.testing.assert_allclose(descend(conv2d), descend(plain_conv), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("x_shape, kernel_shape, strides, groups", LOOPED)
def test_vmap_over_images_and_kernels_equals_one_at_a_time(x_shape, kernel_shape, strides, groups):
    x, kernel = draw((2, *x_shape), jnp.float32, 0), draw((2, *kernel_shape), jnp.float32, 1)
    gradients = jax.grad(lambda x, k: jnp.sum(jnp.sin(conv2d(x, k, strides=strides, groups=groups))), (0, 1))
    both, gradients = jax.jit(jax.vmap(gradients))(x, kernel), jax.jit(gradients)
    for i in range(2):
        for got, want in zip(both, gradients(x[i], kernel[i]), strict=True):
            np.testing.assert_allclose(got[i], want, rtol=1e-4, atol=1e-5)


EXPORTED = [((2, 6, 6, 4), (3, 3, 1, 4), 4), ((2, 6, 6, 4), (1, 1, 4, 4), 1), ((2, 2, 2, 4), (3, 3, 4, 4), 1)]


@pytest.mark.parametrize("x_shape, kernel_shape, groups", EXPORTED)
@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_get_xla_convolutions(platform, x_shape, kernel_shape, groups):
    def program(x, kernel):
        y, back = jax.vjp(partial(conv2d, groups=groups), x, kernel)
        return back(y)

    arguments = [jax.ShapeDtypeStruct(s, jnp.float32) for s in (x_shape, kernel_shape)]
    text = export.export(jax.jit(program), platforms=[platform])(*arguments).mlir_module()
    assert text.count("stablehlo.convolution") == 3
    assert "stablehlo.dot_general" not in text and "stablehlo.while" not in text
    on_cpu = export.export(jax.jit(program), platforms=["cpu"])(*arguments).mlir_module()
    assert "stablehlo.convolution" not in on_cpu


@pytest.mark.parametrize(
    "x_shape, kernel_shape, groups, convolutions",
    [
        ((2, 7, 6, 3), (3, 3, 1, 3), 3, 0),  # depthwise
        ((2, 7, 6, 3), (1, 1, 3, 4), 1, 0),  # pointwise
        ((2, 2, 2, 3), (3, 3, 3, 4), 1, 0),  # per position
        ((2, 7, 6, 3), (3, 3, 3, 4), 1, 1),  # square
    ],
)
def test_a_free_batch_keeps_the_cpu_forms(x_shape, kernel_shape, groups, convolutions):
    kernel, x = draw(kernel_shape, jnp.float32, 0), draw(x_shape, jnp.float32, 1)

    def program(x):
        return conv2d(x, kernel, groups=groups)

    def gradient(x, kernel):
        return jax.grad(lambda *a: jnp.square(conv2d(*a, groups=groups)).sum(), (0, 1))(x, kernel)

    free = jax.ShapeDtypeStruct((export.symbolic_shape("b")[0], *x_shape[1:]), jnp.float32)
    exported = export.export(jax.jit(program), platforms=["cpu"])(free)
    assert exported.mlir_module().count("stablehlo.convolution") == convolutions
    np.testing.assert_allclose(exported.call(x), program(x), rtol=1e-5, atol=1e-5)
    exported = export.export(jax.jit(gradient), platforms=["cpu", "tpu"])(free, kernel)
    for got, want in zip(exported.call(x, kernel), gradient(x, kernel), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_max_pool_of_a_free_batch_keeps_the_cpu_form():
    x = draw((2, 8, 7, 3), jnp.float32, 0)

    def gradient(x):
        return jax.grad(lambda x: jnp.square(max_pool(x, (3, 3), (2, 2), "SAME")).sum())(x)

    free = jax.ShapeDtypeStruct((export.symbolic_shape("b")[0], 8, 7, 3), jnp.float32)
    exported = export.export(jax.jit(gradient), platforms=["cpu"])(free)
    assert "select_and_scatter" not in exported.mlir_module()
    np.testing.assert_allclose(exported.call(x), gradient(x), rtol=1e-5, atol=1e-5)


def test_one_export_serves_every_platform_and_any_batch_and_size():
    batch, size = export.symbolic_shape("b, s")
    kernel = draw((3, 3, 1, 2), jnp.float32, 1)
    program = jax.jit(
        lambda x: max_pool(
            conv2d(x, kernel, strides=(2, 2), padding=((1, 1), (1, 1)), groups=2),
            (3, 3),
            (2, 2),
            ((1, 1), (1, 1)),
        )
    )
    for shape in [(batch, 8, 8, 2), (batch, size, size, 2)]:
        exported = export.export(program, platforms=["cpu", "tpu", "cuda"])(
            jax.ShapeDtypeStruct(shape, jnp.float32)
        )
        x = draw((3, 8, 8, 2), jnp.float32, 0)
        np.testing.assert_allclose(exported.call(x), program(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "arguments, words",
    [
        (((2, 4, 4), (3, 3, 1, 1), {}), "expected .N, H, W, C."),
        (((2, 4, 4, 3), (3, 3, 2, 4), {}), "3 channels"),
        (((2, 4, 4, 4), (3, 3, 2, 3), {"groups": 2}), "multiple of groups"),
        (((2, 4, 4, 3), (3, 3, 3, 4), {"strides": (0, 1)}), "positive"),
        (((2, 4, 4, 3), (3, 3, 3, 4), {"padding": "same"}), "'SAME', 'VALID'"),
    ],
)
def test_convolution_names_what_does_not_fit(arguments, words):
    x_shape, kernel_shape, options = arguments
    with pytest.raises(ValueError, match=words):
        conv2d(jnp.ones(x_shape), jnp.ones(kernel_shape), **options)


def plain_batch_norm(x, scale, bias, groups, epsilon):
    xg = x.reshape(groups, x.shape[0] // groups, *x.shape[1:])
    axes = tuple(range(1, xg.ndim - 1))
    mean = xg.mean(axes, keepdims=True)
    var = ((xg - mean) ** 2).mean(axes, keepdims=True)
    return ((xg - mean) / jnp.sqrt(var + epsilon) * scale + bias).reshape(x.shape)


@pytest.mark.parametrize(
    "shape, groups", [((6, 3), 1), ((6, 3), 2), ((4, 5, 3), 1), ((4, 3, 5, 2), 4), ((1, 3, 3, 2), 1)]
)
@pytest.mark.parametrize("moments", ["_two_passes", "_one_pass"])
def test_batch_norm_equals_autodiff_of_the_plain_form(shape, groups, moments, monkeypatch):
    forms = importlib.import_module("jaxfast.kernels.batch_norm")
    monkeypatch.setattr(forms, "_moments", getattr(forms, moments))  # one is of the CPU, one of the others
    with jax.enable_x64(True):
        x, scale, bias, weight = (
            draw(s, jnp.float64, i) for i, s in enumerate([shape, shape[-1:], shape[-1:], shape])
        )
        ours = jax.jit(
            jax.value_and_grad(
                lambda *a: jnp.sum(weight * jnp.sin(batch_norm(*a, groups=groups, epsilon=1e-5)[0])),
                (0, 1, 2),
            )
        )(x, scale, bias)
        theirs = jax.jit(
            jax.value_and_grad(
                lambda *a: jnp.sum(weight * jnp.sin(plain_batch_norm(*a, groups, 1e-5))), (0, 1, 2)
            )
        )(x, scale, bias)
        for got, want in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-10)
        _, mean, var = batch_norm(x, scale, bias, groups=groups, epsilon=1e-5)
        parts = (
            np.asarray(x).reshape(groups, -1, shape[-1])
            if groups > 1
            else np.asarray(x).reshape(1, -1, shape[-1])
        )
        np.testing.assert_allclose(mean, parts.mean(1), atol=1e-12)
        np.testing.assert_allclose(var, parts.var(1), atol=1e-12)


def test_batch_norm_keeps_its_digits_far_from_zero():
    x = np.random.default_rng(0).normal(1e3, 1e-2, (64, 4, 4, 3)).astype(np.float32)
    y, mean, var = batch_norm(jnp.asarray(x), jnp.ones(3), jnp.zeros(3), epsilon=1e-8)
    exact = x.astype(np.float64).reshape(-1, 3)
    np.testing.assert_allclose(mean[0], exact.mean(0), rtol=1e-6)
    np.testing.assert_allclose(var[0], exact.var(0), rtol=1e-3)
    np.testing.assert_allclose(
        np.asarray(y).reshape(-1, 3).std(0), exact.std(0) / np.sqrt(exact.var(0) + 1e-8), rtol=1e-3
    )


@pytest.mark.parametrize(
    "mean, near, rtol",
    [(0.0, 0.0, 1e-5), (1e3, 1e3 + 0.05, 1e-3), (10.0, 9.0, 3e-2)],  # 0, 5 and 100 deviations away
)
def test_one_pass_keeps_the_digits_that_its_guess_allows(mean, near, rtol):
    forms = importlib.import_module("jaxfast.kernels.batch_norm")
    x = np.random.default_rng(0).normal(mean, 1e-2, (64, 4, 4, 3)).astype(np.float32)
    exact = x.astype(np.float64).reshape(-1, 3)
    got_mean, got_var = forms._one_pass(jnp.asarray(x), jnp.full(3, near))
    np.testing.assert_allclose(got_mean, exact.mean(0), rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(got_var, exact.var(0), rtol=rtol)


def test_the_variance_of_one_pass_is_never_negative():
    forms = importlib.import_module("jaxfast.kernels.batch_norm")
    constants = jnp.linspace(1, 1e4, 50, dtype=jnp.float32)
    assert (forms._one_pass(jnp.broadcast_to(constants, (64, 50)), jnp.zeros(50))[1] >= 0).all()


@pytest.mark.parametrize("platform", ["cpu", "tpu", "cuda"])
def test_statistics_take_one_pass_but_on_cpu(platform):
    forms = importlib.import_module("jaxfast.kernels.batch_norm")
    given = jax.ShapeDtypeStruct((8, 4, 4, 3), jnp.float32), jax.ShapeDtypeStruct((3,), jnp.float32)
    text = export.export(jax.jit(forms._moments), platforms=[platform])(*given).mlir_module()
    assert ("stablehlo.maximum" in text) == (platform != "cpu")  # what keeps the difference from being negative


def test_batch_norm_of_half_precision_keeps_fp32_statistics_and_they_pass_no_gradient():
    x = draw((8, 3), jnp.bfloat16, 0)
    y, mean, var = batch_norm(x, jnp.ones(3), jnp.zeros(3), epsilon=1e-5)
    assert (y.dtype, mean.dtype, var.dtype) == (jnp.bfloat16, jnp.float32, jnp.float32)
    assert not jax.grad(
        lambda x: sum(s.sum() for s in batch_norm(x, jnp.ones(3), jnp.zeros(3), epsilon=1e-5)[1:])
    )(x).any()


def test_batch_norm_names_what_does_not_fit():
    with pytest.raises(ValueError, match="batch of 6 does not split into 4"):
        batch_norm(jnp.ones((6, 3)), jnp.ones(3), jnp.zeros(3), groups=4, epsilon=1e-5)
    with pytest.raises(ValueError, match=r"expected \(3,\)"):
        batch_norm(jnp.ones((6, 3)), jnp.ones(2), jnp.zeros(3), epsilon=1e-5)
    with pytest.raises(ValueError, match=r"\(N, ..., C\)"):
        batch_norm(jnp.ones(3), jnp.ones(3), jnp.zeros(3), epsilon=1e-5)


@pytest.mark.parametrize(
    "window, strides, padding",
    [
        ((3, 3), (2, 2), ((1, 1), (1, 1))),
        ((2, 2), (2, 2), "VALID"),
        ((3, 2), (1, 3), "SAME"),
        ((2, 2), (3, 3), ((0, 1), (1, 0))),
    ],
)
def test_max_pool_equals_reduce_window_ties_included(window, strides, padding):
    x = jnp.round(draw((2, 8, 7, 3), jnp.float32, 0))
    assert len(np.unique(x)) < 10

    def plain(x):
        pads = padding if isinstance(padding, str) else ((0, 0), *padding, (0, 0))
        return lax.reduce_window(x, -np.inf, lax.max, (1, *window, 1), (1, *strides, 1), pads)

    want, want_back = jax.vjp(plain, x)
    got, back = jax.vjp(lambda x: max_pool(x, window, strides, padding), x)
    np.testing.assert_array_equal(got, want)
    g = draw(want.shape, jnp.float32, 1)
    np.testing.assert_allclose(jax.jit(back)(g)[0], want_back(g)[0], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("platform", ["tpu", "cuda"])
def test_other_platforms_get_select_and_scatter(platform):
    gradient = jax.jit(jax.grad(lambda x: max_pool(x, (3, 3), (2, 2), "SAME").sum()))
    text = export.export(gradient, platforms=[platform])(
        jax.ShapeDtypeStruct((1, 8, 8, 2), jnp.float32)
    ).mlir_module()
    assert "select_and_scatter" in text


def test_max_pool_refuses_integers_and_other_ranks():
    for x in (jnp.ones((1, 4, 4, 1), jnp.uint8), jnp.ones((4, 4, 1))):
        with pytest.raises(ValueError, match="expected floats of shape"):
            max_pool(x, (2, 2), (2, 2), "VALID")
