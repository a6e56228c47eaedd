"""Batch normalisation with per-group statistics and a closed-form backward pass."""

from functools import partial

import jax
import jax.numpy as jnp
from jax import lax


def batch_norm(x, scale, bias, *, groups=1, epsilon, near=None):
    """Normalise (N, ..., C) over all axes but the last, in `groups` equal parts of the batch.

    Returns y in the dtype of `x`, and the mean and biased variance, fp32 (fp64 for fp64 input), shape
    (groups, C); no gradient flows through these two. `near` (C,), such as a running mean, is a guess at the
    means: where it is right, a mean far above the deviation costs the variance no digits on any device
    (`_moments`). Reverse-mode derivative only: `jax.jvp` does not pass. Raises ValueError where `groups` does
    not divide N or the scale does not fit the channels.

    >>> y, mean, var = batch_norm(jnp.array([[1.], [3.]]), jnp.ones(1), jnp.zeros(1), epsilon=0.)
    >>> y.tolist(), mean.tolist(), var.tolist()
    ([[-1.0], [1.0]], [[2.0]], [[1.0]])
    """
    if x.ndim < 2:
        raise ValueError(f"batch_norm got x of shape {x.shape}; expected (N, ..., C)")
    if scale.shape != x.shape[-1:] or bias.shape != x.shape[-1:]:
        raise ValueError(
            f"batch_norm got scale {scale.shape} and bias {bias.shape}; "
            f"expected ({x.shape[-1]},) for x {x.shape}"
        )
    if groups < 1 or groups > 1 and x.shape[0] % groups:
        raise ValueError(
            f"a batch of {x.shape[0]} does not split into {groups} equal groups; "
            f"give a batch size that is a multiple of {groups}"
        )
    near = lax.stop_gradient(jnp.zeros_like(scale) if near is None else near)
    # No group axis for one group: with an axis of size one in front XLA:CPU does not vectorise the reductions
    # (48x48x96, batch 32, forward and backward with ReLU6, jax 0.10.2: 65 ms against 20).
    if groups == 1:
        y, mean, var = _normalize(x, scale, bias, near, epsilon)
        mean, var = mean[None], var[None]
    else:
        parts = x.reshape(groups, x.shape[0] // groups, *x.shape[1:])
        normalize = partial(_normalize, epsilon=epsilon)
        y, mean, var = jax.vmap(normalize, in_axes=(0, None, None, None))(parts, scale, bias, near)
        y = y.reshape(x.shape)
    return y, lax.stop_gradient(mean), lax.stop_gradient(var)


def _wide(x):
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _moments(x, near):
    """The mean and the biased variance over all axes but the last.

    On accelerators, where reading x is what costs, one pass gives both, and rides on the convolution that makes x. The
    variance is that of x - near: the sums of squares cancel by the square of the distance of `near` from the mean, in
    deviations (Chan, Golub and LeVeque 1983). XLA:CPU takes longer for two sums in one loop than for two loops.
    """
    return lax.platform_dependent(x, near, cpu=_two_passes, default=_one_pass)


def _two_passes(x, near):
    axes, wide = tuple(range(x.ndim - 1)), _wide(x)
    mean = wide.mean(axes)
    return mean, jnp.square(wide - mean).mean(axes)


def _one_pass(x, near):
    axes, shifted = tuple(range(x.ndim - 1)), _wide(x) - near
    mean = shifted.mean(axes)
    return near + mean, jnp.maximum(jnp.square(shifted).mean(axes) - jnp.square(mean), 0)


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _normalize(x, scale, bias, near, epsilon):
    return _forward(x, scale, bias, near, epsilon)[0]


def _forward(x, scale, bias, near, epsilon):
    wide = _wide(x)
    mean, var = _moments(x, near)
    rstd = lax.rsqrt(var + epsilon)
    y = (wide - mean) * (rstd * scale) + bias
    return (y.astype(x.dtype), mean, var), (x, scale, bias, mean, rstd)


def _backward(epsilon, residuals, cotangents):
    """dx = scale * rstd * (g - mean(g) - x_hat * mean(g * x_hat)), Ioffe and Szegedy 2015.

    Autodiff walks back through the mean and variance and keeps more arrays; 48x48x96, batch 32, with ReLU6,
    forward and backward, jax 0.10.2: 20 ms against 104. The cotangents of the statistics are zero by
    contract.
    """
    x, scale, bias, mean, rstd = residuals
    axes, wide, g = tuple(range(x.ndim - 1)), _wide(x), _wide(cotangents[0])
    x_hat = (wide - mean) * rstd
    dbias, dscale = g.sum(axes), (g * x_hat).sum(axes)
    count = x.size // x.shape[-1]
    dx = (rstd * scale) * (g - dbias / count - x_hat * (dscale / count))
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype), None


_normalize.defvjp(_forward, _backward)
