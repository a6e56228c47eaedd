"""Weights of one number of channels for images of another: timm's rule (`adapt_input_conv`)."""

import numpy as np


def adapt_kernel(kernel: np.ndarray, channels: int) -> np.ndarray:
    """Return a first convolution's kernel (k, k, given, out) for images of `channels`.

    One channel takes the sum over the given ones, so that a grey image gives what it gave as RGB; any other number
    repeats them in order, scaled by given / channels. fastai's rule (`_load_pretrained_weights`) is the same for one
    and two channels, but sets the kernel of a fourth and further ones to zero.
    """
    given = kernel.shape[2]
    if channels == given:
        return kernel
    if channels == 1:
        return kernel.sum(axis=2, keepdims=True)
    return kernel[:, :, np.arange(channels) % given] * np.asarray(given / channels, kernel.dtype)


def adapt_statistics(values: tuple[float, ...], channels: int) -> tuple[float, ...]:
    """Return the means or deviations of some channels for `channels`: the mean for one, else repeated in order.

    >>> adapt_statistics((1.0, 2.0, 6.0), 1), adapt_statistics((1.0, 2.0, 6.0), 4)
    ((3.0,), (1.0, 2.0, 6.0, 1.0))
    """
    if channels == 1:
        return (sum(values) / len(values),)
    return tuple(values[i % len(values)] for i in range(channels))
