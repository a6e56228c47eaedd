"""Depthwise convolution on CPU: sums of shifted products, forward and backward.

XLA's own form on CPU is a scalar loop, and automatic differentiation of the shifted sum reduces one strided
slice per tap, which XLA does not vectorise. Measured with jax 0.10.2, one core, batch 32: see the line at
each function.
"""

import jax.numpy as jnp
from jax import lax

Pads = tuple[tuple[int, int], tuple[int, int]]


def _accumulator(dtype):
    return jnp.promote_types(dtype, jnp.float32)


def _padded(x, rows, cols, batch=0):
    # The barrier materialises the padded array; without it XLA repeats the pad, and whatever made x, in
    # every tap.
    x = x.astype(_accumulator(x.dtype))
    return lax.optimization_barrier(
        lax.pad(x, jnp.zeros((), x.dtype), ((0, batch, 0), (*rows, 0), (*cols, 0), (0, 0, 0)))
    )


def forward(x, kernel, strides: tuple[int, int], pads: Pads):
    """Depthwise convolution of (N, H, W, C) with (kh, kw, 1, C) as a sum over taps.

    12x12x240, 5x5: 2.4 ms, XLA's form 46 ms. 6x6x480, 3x3: 0.35 ms, XLA's form 15 ms.
    """
    (sh, sw), (kh, kw), (n, _, _, c) = strides, kernel.shape[:2], x.shape
    xp = _padded(x, *pads)
    ho, wo = (xp.shape[1] - kh) // sh + 1, (xp.shape[2] - kw) // sw + 1
    kernel = kernel.astype(xp.dtype)
    y = jnp.zeros((n, ho, wo, c), xp.dtype)
    for i in range(kh):
        for j in range(kw):
            tap = lax.slice(
                xp, (0, i, j, 0), (n, i + (ho - 1) * sh + 1, j + (wo - 1) * sw + 1, c), (1, sh, sw, 1)
            )
            y += tap * kernel[i, j, 0]
    return y.astype(x.dtype)


def input_gradient(g, kernel, strides: tuple[int, int], pads: Pads, size: tuple[int, int]):
    """Gradient to the (N, H, W, C) input of the given spatial size, one sum of taps per phase of the stride.

    24x24x144, 5x5, stride 2: 0.9 ms; autodiff of the shifted sum 21 ms, taps over a dilated g 4.7 ms.
    """
    (sh, sw), (kh, kw), (n, ho, wo, c) = strides, kernel.shape[:2], g.shape
    (top, _), (left, _) = pads
    up, vp = -(-(size[0] + top) // sh), -(-(size[1] + left) // sw)  # positions per phase in the padded image
    mh, mw = -(-kh // sh) - 1, -(-kw // sw) - 1  # furthest g that a position needs
    gp = _padded(g, (mh, max(0, up - ho)), (mw, max(0, vp - wo)))
    kernel = kernel.astype(gp.dtype)
    rows = []
    for a in range(sh):
        cols = []
        for b in range(sw):
            dx = jnp.zeros((n, up, vp, c), gp.dtype)
            for i in range(a, kh, sh):
                for j in range(b, kw, sw):
                    u, v = mh - i // sh, mw - j // sw
                    dx += gp[:, u : u + up, v : v + vp] * kernel[i, j, 0]
            cols.append(dx.astype(g.dtype))
        rows.append(jnp.stack(cols, 3))
    dx = jnp.stack(rows, 2).reshape(n, up * sh, vp * sw, c)
    return dx[:, top : top + size[0], left : left + size[1]]


def kernel_gradient(x, g, strides: tuple[int, int], pads: Pads, size: tuple[int, int]):
    """Gradient to the (kh, kw, 1, C) kernel of the given spatial size, in a loop over blocks of rows.

    The loop carries kw arrays of (kh, columns, C) and adds at least 16 rows at a time to each, elementwise,
    so that every inner loop runs over channels; only the small carry is reduced at the end. (With 15 rows or
    fewer XLA fuses the block's dynamic slice into each sum, which is 3 times slower.)
    12x12x240, 5x5: 3.1 ms, sums over shifted products 61 ms. 48x48x32, 3x3: 4 ms against 51 ms.
    """
    (sh, sw), (kh, kw), (n, ho, wo, c) = strides, size, g.shape
    blocks = max(1, ho // 16)
    rows = -(-ho // blocks)
    images = min(n, -(-24 // ho)) if ho < 16 else 1
    more = -n % images
    missing = (blocks * rows - 1) * sh + kh - (x.shape[1] + sum(pads[0]))
    xp = _padded(x, (pads[0][0], pads[0][1] + max(0, missing)), pads[1], more)
    gp = _padded(g, (0, blocks * rows - ho), (0, 0), more)
    # At stride 1 a shift by one column is a shift by C in the row, and the inner loop runs over columns and
    # channels.
    flat = sw == 1
    if flat:
        xp, gp = (a.reshape(*a.shape[:2], -1) for a in (xp, gp))
    height = (rows - 1) * sh + kh if blocks > 1 else xp.shape[1]

    def add_block(t, sums):
        first, row = t // blocks * images, t % blocks * rows
        xb = lax.dynamic_slice_in_dim(xp, first, images, 0)
        gb = lax.dynamic_slice_in_dim(gp, first, images, 0)
        if blocks > 1:
            xb = lax.dynamic_slice_in_dim(xb, row * sh, height, 1)
            gb = lax.dynamic_slice_in_dim(gb, row, rows, 1)
        out = []
        for j, total in enumerate(sums):
            shifted = xb[:, :, j * c : (j + wo) * c] if flat else xb[:, :, j : j + (wo - 1) * sw + 1 : sw]
            for image in range(images):
                for r in range(rows):
                    total += shifted[image, r * sh : r * sh + kh] * gb[image, r]
            out.append(total)
        return tuple(out)

    zeros = jnp.zeros((kh, *gp.shape[2:]), gp.dtype)
    sums = lax.fori_loop(0, (n + more) // images * blocks, add_block, (zeros,) * kw)
    return jnp.stack([total.reshape(kh, wo, c).sum(1) for total in sums], 1)[:, :, None]
