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
    # The products with the inputs of all steps at once: one large matmul outside of the scan.
    gates = x @ input_kernel.astype(x.dtype) + bias.astype(x.dtype)
    outputs, h, c = _recur(gates, *state, hidden_kernel.astype(x.dtype))
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


@jax.custom_vjp
def _recur(gates, h, c, hidden_kernel):
    """The recurrence, given what the inputs bring to the gates, (steps, batch, 4 width)."""
    return _forward(gates, h, c, hidden_kernel)[0]


def _forward(gates, h, c, hidden_kernel):
    dtype = gates.dtype

    def step(carry, gates):
        h, c = carry
        wide = (gates + h.astype(dtype) @ hidden_kernel).astype(c.dtype)
        i, f, g, o = jnp.split(wide, 4, axis=-1)
        i, f, g, o = jax.nn.sigmoid(i), jax.nn.sigmoid(f), jnp.tanh(g), jax.nn.sigmoid(o)
        new = f * c + i * g
        h = o * jnp.tanh(new)
        return (h, new), (h.astype(dtype), c, jnp.concatenate([i, f, g, o], axis=-1).astype(dtype))

    (last_h, last_c), (outputs, cells, opened) = lax.scan(step, (h, c), gates)
    return (outputs, last_h, last_c), (outputs, cells, opened, h, last_c, hidden_kernel)


def _backward(residuals, cotangents):
    """Autodiff would add up the weights' gradient step by step; here it is one matmul after the scan."""
    outputs, cells, opened, first_h, last_c, hidden_kernel = residuals
    d_outputs, d_last_h, d_last_c = cotangents
    dtype, wide = outputs.dtype, last_c.dtype
    transposed = hidden_kernel.T

    def step(carry, inputs):
        d_h, d_c, c = carry
        d_output, before, opened = inputs
        i, f, g, o = jnp.split(opened.astype(wide), 4, axis=-1)
        d_h = d_h + d_output.astype(wide)
        bent = jnp.tanh(c)
        d_c = d_c + d_h * o * (1 - bent * bent)
        d_gates = jnp.concatenate(
            [d_c * g * i * (1 - i), d_c * before * f * (1 - f), d_c * i * (1 - g * g), d_h * bent * o * (1 - o)],
            axis=-1,
        ).astype(dtype)
        return ((d_gates @ transposed).astype(wide), d_c * f, before), d_gates

    carry = d_last_h, d_last_c, last_c
    (d_h, d_c, _), d_gates = lax.scan(step, carry, (d_outputs, cells, opened), reverse=True)
    before = jnp.concatenate([first_h[None].astype(dtype), outputs[:-1]])
    rows = lambda x: x.reshape(-1, x.shape[-1])  # a plain matrix product: XLA on CPU is slower over two axes
    d_kernel = rows(before).T @ rows(d_gates)
    return d_gates, d_h, d_c, d_kernel


_recur.defvjp(_forward, _backward)
