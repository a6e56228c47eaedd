"""Every kernel against its plain form on the device and on the CPU: values, gradients, gradients of gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from jaxfast.kernels import apply_if, batch_norm, conv2d, embed, max_pool
from jaxfast.kernels.lstm import lstm

from .parity import accelerator, assert_close, derivatives, draw, host, on

TOLERANCE = 5e-4  # of the largest number; another order of summation, or another algorithm of a convolution
INDEX = np.random.default_rng(9).integers(0, 12, (5, 8))  # rows repeat, so that gradients add up
LSTM = [(3, 4, 5), (4, 8), (4, 8), (5, 32), (8, 32), (32,)]  # x, h, c, weights of the inputs and of h, bias


def plain_conv(x, kernel, *, strides=(1, 1), padding="SAME", groups=1):
    return lax.conv_general_dilated(
        x, kernel, strides, padding, feature_group_count=groups, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


def plain_batch_norm(x, scale, bias, groups=1):
    parts = x.reshape(groups, -1, x.shape[-1])
    mean = parts.mean(1)
    var = jnp.square(parts - mean[:, None]).mean(1)
    y = (parts - mean[:, None]) / jnp.sqrt(var + 1e-5)[:, None] * scale + bias
    return y.reshape(x.shape), lax.stop_gradient(mean), lax.stop_gradient(var)


def plain_max_pool(x):
    pads = ((0, 0), (1, 1), (1, 1), (0, 0))
    return lax.reduce_window(x, -jnp.inf, lax.max, (1, 3, 3, 1), (1, 2, 2, 1), pads)


def plain_lstm(x, h, c, input_kernel, hidden_kernel, bias):
    def step(state, given):
        h, c = state
        i, f, g, o = jnp.split(given @ input_kernel + h @ hidden_kernel + bias, 4, -1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        h = jax.nn.sigmoid(o) * jnp.tanh(c)
        return (h, c), h

    state, outputs = lax.scan(step, (h, c), x)
    return outputs, state


def lstm_of(kernel):
    return lambda x, h, c, *weights: lstm(x, (h, c), *weights, kernel=kernel)


def changed(old, update):
    return jax.tree.map(lambda x: x - jnp.sin(update) * x, old)


def both_ways(a, b, update):
    """A state of two arrays, changed where a condition holds and kept where it does not."""
    return [apply_if(jnp.sum(INDEX) > low, changed, (a, b), update) for low in (0, 10_000)]


def conv_case(x, kernel, **static):
    return partial(conv2d, **static), partial(plain_conv, **static), draw(x, kernel), 2


KERNELS = {
    "convolution": conv_case((2, 9, 8, 3), (3, 3, 3, 4), strides=(2, 2), padding=((1, 1), (1, 1))),
    "1x1": conv_case((2, 7, 6, 3), (1, 1, 3, 4), strides=(2, 2), padding="VALID"),
    "depthwise": conv_case((2, 5, 6, 4), (3, 3, 1, 4), strides=(2, 2), groups=4),
    "larger than the image": conv_case((2, 2, 1, 3), (3, 3, 3, 4)),
    "grouped": conv_case((2, 7, 6, 4), (3, 3, 2, 6), groups=2),
    "batch norm": (
        lambda x, scale, bias: batch_norm(x, scale, bias, epsilon=1e-5),
        plain_batch_norm, draw((6, 5, 4, 3), (3,), (3,)), 2,
    ),
    "batch norm of groups": (
        lambda x, scale, bias: batch_norm(x, scale, bias, groups=3, epsilon=1e-5, near=0.1 * jnp.ones(3)),
        partial(plain_batch_norm, groups=3), draw((6, 5, 4, 3), (3,), (3,)), 2,
    ),
    "max pooling": (lambda x: max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))), plain_max_pool, draw((2, 9, 8, 3)), 2),
    "max pooling of ties": (
        lambda x: max_pool(x, (3, 3), (2, 2), ((1, 1), (1, 1))),
        plain_max_pool, [np.round(x) for x in draw((2, 9, 8, 3))], 1,
    ),
    "embedding": (lambda table: embed(table, INDEX), lambda table: table[INDEX], draw((12, 6)), 2),
    "LSTM": (lstm_of("scan"), plain_lstm, draw(*LSTM), 2),
    "conditional change": (
        both_ways, lambda a, b, update: [changed((a, b), update), (a, b)], draw((4, 3), (3,), (3,)), 2,
    ),
}  # fmt: skip
"""The kernel, its plain form, arguments, and how many times it can be differentiated."""


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_equals_its_plain_form(name):
    check(*KERNELS[name])


def test_the_lstm_of_cudnn_equals_the_scan():
    if jax.default_backend() != "gpu":
        pytest.skip("cuDNN runs on CUDA alone")
    check(lstm_of("cudnn"), lstm_of("scan"), draw(*LSTM), 1)


def check(kernel, plain, arguments, order):
    kernel, plain = derivatives(kernel, order), derivatives(plain, order)
    ours, theirs = on(accelerator(), lambda *a: (kernel(*a), plain(*a)), *arguments)
    elsewhere = on(host(), plain, *arguments) if accelerator().platform != "cpu" else theirs
    moves = {name: any(np.any(leaf) for leaf in jax.tree.leaves(tree)) for name, tree in elsewhere.items()}
    assert all(moves.values()), f"nothing to compare: {moves}"
    assert_close(ours, theirs, TOLERANCE)
    assert_close(ours, elsewhere, TOLERANCE)
