"""Two-dimensional convolution: one signature, the form of it that the platform compiles well."""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxfast.kernels import depthwise

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
_MAX_POSITIONS = 128  # one matmul is compiled per output position


class _Shape(NamedTuple):
    """The static part of a convolution."""

    strides: tuple[int, int]
    pads: tuple[tuple[int, int], tuple[int, int]]
    groups: int


def conv2d(x, kernel, *, strides=(1, 1), padding="SAME", groups=1):
    """Convolve (N, H, W, C) images with an (h, w, C // groups, features) kernel, into the dtype of `x`.

    `padding` is "SAME", "VALID" or ((top, bottom), (left, right)). On CPU, depthwise, 1x1, square, and
    larger-than-the-image kernels take forms that XLA:CPU runs faster; every other platform gets XLA's
    convolution. Those forms define their own reverse-mode derivative, so `jax.jvp` and `jax.linearize` do
    not pass. Raises ValueError where ranks, channels, groups, strides or padding do not fit.

    >>> conv2d(jnp.ones((1, 4, 4, 3)), jnp.ones((3, 3, 3, 8)), strides=(2, 2)).shape
    (1, 2, 2, 8)
    """
    _check(x, kernel, strides, groups)
    strides = tuple(strides)
    if isinstance(padding, str):
        if padding not in ("SAME", "VALID"):
            raise ValueError(
                f"padding is {padding!r}; give 'SAME', 'VALID' or ((top, bottom), (left, right))"
            )
        padding = lax.padtype_to_pads(x.shape[1:3], kernel.shape[:2], strides, padding)
    shape = _Shape(strides, tuple(map(tuple, padding)), groups)
    form = _cpu_form(x.shape, kernel.shape, shape)
    if form is None:
        return _plain(x, kernel.astype(x.dtype), shape=shape)
    return _convolve(x, kernel.astype(x.dtype), form, shape)


def _static(*sizes) -> bool:
    """False where a size is symbolic, as in an export with a free batch, height or width."""
    return all(isinstance(size, int | np.integer) for size in sizes)


def _check(x, kernel, strides, groups):
    if x.ndim != 4 or kernel.ndim != 4:
        raise ValueError(
            f"conv2d got x {x.shape} and kernel {kernel.shape}; "
            "expected (N, H, W, C) and (h, w, C // groups, features)"
        )
    if len(strides) != 2 or min(strides) < 1:
        raise ValueError(f"conv2d got strides {strides}; expected two positive integers")
    if groups < 1 or x.shape[3] != kernel.shape[2] * groups or kernel.shape[3] % groups:
        raise ValueError(
            f"conv2d got {x.shape[3]} channels, kernel {kernel.shape} and groups={groups}; "
            "expected kernel.shape[2] * groups channels and kernel.shape[3] a multiple of groups"
        )


def _plain(x, kernel, *, shape: _Shape):
    return lax.conv_general_dilated(
        x, kernel, shape.strides, shape.pads, feature_group_count=shape.groups, dimension_numbers=_DIMENSIONS
    )


def _out_size(size, window, stride, pad):
    return (size + sum(pad) - window) // stride + 1


def _cpu_form(x_shape, kernel_shape, shape: _Shape) -> str | None:
    """Which form the CPU takes, from static shapes alone, whatever the batch; None is XLA's own, everywhere."""
    (_, h, w, c), (kh, kw, _, features) = x_shape, kernel_shape
    if not _static(h, w, c, *shape.pads[0], *shape.pads[1]) or min(map(min, shape.pads)) < 0:
        return None
    positions = [_out_size(*a) for a in zip((h, w), (kh, kw), shape.strides, shape.pads, strict=True)]
    if min(positions) < 1:
        return None
    if shape.groups > 1:
        return "depthwise" if shape.groups == c == features else None
    if kh == kw == 1 and shape.pads == ((0, 0), (0, 0)):
        return "pointwise"
    count = positions[0] * positions[1]
    if count <= 4 or (kh > h or kw > w) and count <= _MAX_POSITIONS:
        return "per_position"
    return "square" if kh == kw else None


@partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _convolve(x, kernel, form, shape):
    cpu = {"depthwise": _depthwise, "pointwise": _pointwise, "per_position": _per_position, "square": _plain}[
        form
    ]
    return lax.platform_dependent(
        x, kernel, cpu=partial(cpu, shape=shape), default=partial(_plain, shape=shape)
    )


def _convolve_forward(x, kernel, form, shape):
    return _convolve(x, kernel, form, shape), (x, kernel)


def _convolve_backward(form, shape, residuals, g):
    cpu = {
        "depthwise": _depthwise_backward,
        "pointwise": _pointwise_backward,
        "per_position": partial(_autodiff, _per_position),
        "square": _square_backward,
    }[form]
    if not _static(g.shape[0]):  # the depthwise form unrolls over the batch
        cpu = partial(_autodiff, _plain)
    return lax.platform_dependent(
        *residuals, g, cpu=partial(cpu, shape=shape), default=partial(_autodiff, _plain, shape=shape)
    )


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _autodiff(form, x, kernel, g, *, shape):
    return jax.vjp(partial(form, shape=shape), x, kernel)[1](g)


def _depthwise(x, kernel, *, shape: _Shape):
    return depthwise.forward(x, kernel, shape.strides, shape.pads)


def _depthwise_backward(x, kernel, g, *, shape: _Shape):
    dx = depthwise.input_gradient(g, kernel, shape.strides, shape.pads, x.shape[1:3])
    dw = depthwise.kernel_gradient(x, g, shape.strides, shape.pads, kernel.shape[:2])
    return dx, dw.astype(kernel.dtype)


def _matmul(a, b):
    """Contract the last axis of `a` with the first of `b`, accumulated in at least fp32."""
    wide = jnp.promote_types(a.dtype, jnp.float32)
    return lax.dot_general(a, b, (((a.ndim - 1,), (0,)), ((), ())), preferred_element_type=wide).astype(
        a.dtype
    )


def _pointwise(x, kernel, *, shape: _Shape):
    """A 1x1 convolution as a matmul over all pixels. Whole ResNet-50 step on one core, jax 0.10.2: 1.35x."""
    sh, sw = shape.strides
    return _matmul(x[:, ::sh, ::sw], kernel[0, 0])


def _pointwise_backward(x, kernel, g, *, shape: _Shape):
    """Both gradients of a 1x1 convolution as matmuls over one flat axis of pixels.

    Autodiff contracts three axes, for which XLA:CPU transposes first. 32x32, 64 to 256 channels, batch 16, one core,
    jax 0.10.2: 6.3 ms against 27.8. Whole step of ResNet-50 at 128 px 1.17x, of EfficientNet-Lite0 at 96 px 1.42x.
    """
    rows = x[:, :: shape.strides[0], :: shape.strides[1]].reshape(-1, x.shape[3])
    dw = _matmul(rows.T, g.reshape(-1, g.shape[3]))[None, None]
    dx = _matmul(g, kernel[0, 0].T)
    if shape.strides != (1, 1):  # zeros where no output looked
        steps = zip(x.shape[1:3], g.shape[1:3], shape.strides, strict=True)
        between = [(0, size - (out - 1) * stride - 1, stride - 1) for size, out, stride in steps]
        dx = lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *between, (0, 0, 0)])
    return dx, dw


def _per_position(x, kernel, *, shape: _Shape):
    """One matmul per output position, over the taps that meet the image.

    XLA:CPU falls to a scalar loop where the window exceeds the image. Batch 64, 2x2x512 to 512, 3x3, one
    core, jax 0.10.2: forward 7 ms against 1185 (im2col 12), backward 16 against 1134 (im2col 27).
    Strided to 2x2 (4x4x256 to 512): backward 12 ms against 290.
    """
    n, height, width, _ = x.shape
    features = kernel.shape[3]

    def overlap(position, stride, low, size, window):
        start = position * stride - low
        first = min(max(start, 0), size)
        last = max(min(start + window, size), first)
        return slice(first, last), slice(first - start, last - start)

    (sh, sw), ((top, _), (left, _)) = shape.strides, shape.pads
    rows = []
    for i in range(_out_size(height, kernel.shape[0], sh, shape.pads[0])):
        image_rows, kernel_rows = overlap(i, sh, top, height, kernel.shape[0])
        row = []
        for j in range(_out_size(width, kernel.shape[1], sw, shape.pads[1])):
            image_cols, kernel_cols = overlap(j, sw, left, width, kernel.shape[1])
            row.append(
                _matmul(
                    x[:, image_rows, image_cols].reshape(n, -1),
                    kernel[kernel_rows, kernel_cols].reshape(-1, features),
                )
            )
        rows.append(jnp.stack(row, 1))
    return jnp.stack(rows, 1)


def _square_backward(x, kernel, g, *, shape: _Shape):
    """Both gradients as convolutions in the layouts that XLA:CPU runs fast.

    Without the barriers XLA folds the transposes into the convolution, and inside a loop body compiles it to
    a layout that is 8 to 27 times slower (jax 0.10.2).
    """
    barrier = lax.optimization_barrier
    kh, kw = kernel.shape[:2]
    sizes = list(zip(x.shape[1:3], g.shape[1:3], (kh, kw), shape.strides, shape.pads, strict=True))
    dw_pads = [
        (low, (out - 1) * stride + window - size - low) for size, out, window, stride, (low, _) in sizes
    ]
    dx_pads = [
        (window - 1 - low, size - 1 + low - (out - 1) * stride)
        for size, out, window, stride, (low, _) in sizes
    ]
    dw = lax.conv_general_dilated(
        barrier(x.transpose(3, 1, 2, 0)),
        barrier(g.transpose(1, 2, 0, 3)),
        (1, 1),
        dw_pads,
        rhs_dilation=shape.strides,
        dimension_numbers=_DIMENSIONS,
    ).transpose(1, 2, 0, 3)
    dx = lax.conv_general_dilated(
        g,
        barrier(kernel[::-1, ::-1].transpose(0, 1, 3, 2)),
        (1, 1),
        dx_pads,
        lhs_dilation=shape.strides,
        dimension_numbers=_DIMENSIONS,
    )
    return dx, dw
