"""One LSTM layer over time (Hochreiter and Schmidhuber 1997; torch's nn.LSTM), with only h @ W inside the scan."""

import jax
import jax.numpy as jnp
from jax import lax

KERNELS = ("auto", "scan", "cudnn")


def lstm(x, state, input_kernel, hidden_kernel, bias, *, kernel="auto"):
    """(steps, batch, inputs) to the hidden states (steps, batch, width) in the type of `x`, and the last state.

    `state`: (h, c), each (batch, width) and fp32 (fp64 for fp64 `x`), as is the one returned. `input_kernel`
    (inputs, 4 width), `hidden_kernel` (width, 4 width) and `bias` (4 width,) hold the gates in torch's order: input,
    forget, cell, output; `bias` is the sum of torch's two. `kernel`: "scan", any backend and type; "cudnn", CUDA and
    fp32 alone; "auto", cuDNN where the default backend is CUDA and `x` is fp32. Reverse-mode derivative only:
    `jax.jvp` does not pass. ValueError for another `kernel`, and for "cudnn" where it does not run.
    """
    if kernel not in KERNELS:
        raise ValueError(f"kernel={kernel!r}: give one of {', '.join(KERNELS)}")
    possible = jax.default_backend() == "gpu" and x.dtype == jnp.float32
    if kernel == "cudnn" and not possible:
        where = jax.default_backend()
        raise ValueError(f"kernel='cudnn' with {x.dtype} on {where}: it takes float32 on gpu, give 'auto'")
    if possible and kernel != "scan":
        return _cudnn(x, state, input_kernel, hidden_kernel, bias)
    outputs, h, c = _scanned(x, *state, *(w.astype(x.dtype) for w in (input_kernel, hidden_kernel, bias)))
    return outputs, (h, c)


def _cudnn(x, state, input_kernel, hidden_kernel, bias):
    """All of it by cuDNN, through `jax.experimental.rnn`, which wants the batch first and torch's weights in a row."""
    from jax.experimental import rnn

    steps, batch, inputs = x.shape
    weights = jnp.concatenate([input_kernel.T.ravel(), hidden_kernel.T.ravel(), bias, jnp.zeros_like(bias)])
    lengths = jnp.full(batch, steps, jnp.int32)
    h, c = (part[None] for part in state)
    outputs, h, c = rnn.lstm(x.swapaxes(0, 1), h, c, weights, lengths, inputs, len(hidden_kernel), 1, 0.0, False)
    return outputs.swapaxes(0, 1), (h[0], c[0])


# Both passes are written for arrays of which one axis holds the numbers of a row, `axis`: the last one as everywhere,
# (batch, width), or on CPU the first, (width, batch). There the product of a step, 64 rows with weights of 20 MB, then
# takes the weights as XLA's matrix product packs them best: 56 -> 86 GFLOP/s forwards and 46 -> 87 backwards at 16
# rows, 75 -> 88 and 80 -> 101 at 64 (one core). Autodiff would add up the weights' gradient step by step; here it is
# one product after the scan.


@jax.custom_vjp
def _scanned(x, h, c, input_kernel, hidden_kernel, bias):
    return _forward(x, h, c, input_kernel, hidden_kernel, bias)[0]


def _forward(*arrays):
    return lax.platform_dependent(*arrays, cpu=_forward_columns, default=_forward_rows)


def _backward(residuals, cotangents):
    return lax.platform_dependent(residuals, cotangents, cpu=_backward_columns, default=_backward_rows)


_scanned.defvjp(_forward, _backward)


def _forward_rows(x, h, c, input_kernel, hidden_kernel, bias):
    step = _opening(lambda given, h: given + h @ hidden_kernel, -1, x.dtype)
    # the products with the inputs of all steps at once: one large matmul outside of the scan
    last, (outputs, cells, opened) = lax.scan(step, (h, c), x @ input_kernel + bias)
    return (outputs, *last), (x, h, last[1], input_kernel, hidden_kernel, outputs, cells, opened)


def _forward_columns(x, h, c, input_kernel, hidden_kernel, bias):
    steps, batch, _ = x.shape
    transposed = hidden_kernel.T
    gates = (input_kernel.T @ _columns(x.transpose(0, 2, 1))).reshape(-1, steps, batch)

    def product(t, h):
        given = lax.dynamic_index_in_dim(gates, t, 1, keepdims=False) + bias[:, None]
        return given + transposed @ h

    last, (outputs, cells, opened) = lax.scan(_opening(product, 0, x.dtype), (h.T, c.T), jnp.arange(steps))
    last = [part.T for part in last]
    # kept as they lie, under the shapes that the other form has
    kept = [part.reshape(steps, batch, -1) for part in (outputs, cells, opened)]
    return (outputs.transpose(0, 2, 1), *last), (x, h, last[1], input_kernel, hidden_kernel, *kept)


def _columns(x):
    """(steps, numbers, batch) to (numbers, steps * batch)."""
    return x.transpose(1, 0, 2).reshape(x.shape[1], -1)


def _opening(product, axis, dtype):
    """The step of the scan forwards: `product(given, h)` is what comes to the gates before they open."""

    def step(carry, given):
        h, c = carry
        i, f, g, o = jnp.split(product(given, h.astype(dtype)).astype(c.dtype), 4, axis)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        new = f * c + i * g
        h = o * jnp.tanh(new)
        return (h, new), (h.astype(dtype), c, jnp.concatenate([i, f, g, o], axis).astype(dtype))

    return step


def _closing(product, axis, dtype):
    """The step of the scan backwards: `product(d_gates)` is the gradient of h before the step."""

    def step(carry, given):
        d_h, d_c, c = carry
        d_output, before, opened = given
        i, f, g, o = jnp.split(opened.astype(c.dtype), 4, axis)
        d_h = d_h + d_output.astype(c.dtype)
        bent = jnp.tanh(c)
        d_c = d_c + d_h * o * (1 - bent * bent)
        d_gates = jnp.concatenate(
            [d_c * g * i * (1 - i), d_c * before * f * (1 - f), d_c * i * (1 - g * g), d_h * bent * o * (1 - o)], axis
        ).astype(dtype)
        return (product(d_gates).astype(c.dtype), d_c * f, before), d_gates

    return step


def _backward_rows(residuals, cotangents):
    x, h, last_c, input_kernel, hidden_kernel, outputs, cells, opened = residuals
    d_outputs, d_h, d_c = cotangents
    transposed = hidden_kernel.T
    step = _closing(lambda d_gates: d_gates @ transposed, -1, x.dtype)
    (d_h, d_c, _), d_gates = lax.scan(step, (d_h, d_c, last_c), (d_outputs, cells, opened), reverse=True)
    before = jnp.concatenate([h[None].astype(x.dtype), outputs[:-1]])
    rows = lambda x: x.reshape(-1, x.shape[-1])  # a plain matrix product: XLA on CPU is slower over two axes
    d_input, d_hidden = (rows(part).T @ rows(d_gates) for part in (x, before))
    return d_gates @ input_kernel.T, d_h, d_c, d_input, d_hidden, d_gates.sum((0, 1))


def _backward_columns(residuals, cotangents):
    x, h, last_c, input_kernel, hidden_kernel, *kept = residuals
    d_outputs, d_h, d_c = cotangents
    steps, batch, _ = x.shape
    outputs, cells, opened = (part.reshape(steps, -1, batch) for part in kept)
    step = _closing(lambda d_gates: hidden_kernel @ d_gates, 0, x.dtype)
    given = d_outputs.transpose(0, 2, 1), cells, opened
    (d_h, d_c, _), d_gates = lax.scan(step, (d_h.T, d_c.T, last_c.T), given, reverse=True)
    d_gates = _columns(d_gates)
    before = _columns(jnp.concatenate([h.T[None].astype(x.dtype), outputs[:-1]]))
    d_x = (input_kernel @ d_gates).reshape(-1, steps, batch).transpose(1, 2, 0)
    d_input, d_hidden = (part @ d_gates.T for part in (_columns(x.transpose(0, 2, 1)), before))
    return d_x, d_h.T, d_c.T, d_input, d_hidden, d_gates.sum(1)
