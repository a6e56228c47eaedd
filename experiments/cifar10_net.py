"""A network that learns CIFAR-10 in a few passes: Jordan's airbench94 (2024, arXiv:2404.00498), after Page's ResNet-9.

A frozen 2x2 convolution that whitens patches of the images; groups of convolution, max pooling, norm, GELU,
convolution, norm, GELU; the largest value of each channel; a small linear layer. Convolutions begin as the identity.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxfast.kernels import max_pool
from jaxfast.models.layers import BatchNorm, Conv, select_blocks


class Group(nn.Module):
    """Half the size: convolution, max pooling, norm, GELU, convolution, norm, GELU."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(2):
            x = Conv(self.width, 3, dtype=self.dtype, kernel_init=identity, name=f"conv{i}")(x)
            x = max_pool(x, (2, 2), (2, 2), "VALID") if i == 0 else x
            x = nn.gelu(BatchNorm(momentum=0.6, dtype=self.dtype, name=f"norm{i}")(x, train=train))
        return x


class Body(nn.Module):
    """The network without its head: (B, 32, 32, channels) to (B, 3, 3, widths[-1])."""

    widths: tuple[int, ...]
    dtype: jnp.dtype = jnp.float32

    @property
    def block_names(self) -> tuple[str, ...]:
        return ("stem", *(f"group{i}" for i in range(len(self.widths))))

    @property
    def groups(self) -> tuple[tuple[str, ...], ...]:
        """What does not train, the norms' biases, and the convolutions."""
        layers = lambda suffix: tuple(f"{name}/{suffix.format(i)}" for name in self.block_names[1:] for i in range(2))
        return ("stem", *layers("norm{}/scale")), layers("norm{}/bias"), layers("conv{}")

    @nn.compact
    def features(
        self, x: jax.Array, train: bool = False, *, after: str | None = None, until: str | None = None
    ) -> dict[str, jax.Array]:
        outputs = {}
        for name in select_blocks(self.block_names, after, until):
            if name == "stem":
                x = nn.gelu(Conv(8 * x.shape[-1], 2, padding="VALID", dtype=self.dtype, name=name)(x))
            else:
                x = Group(self.widths[int(name.removeprefix("group"))], self.dtype, name=name)(x, train)
            outputs[name] = x
        return outputs

    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        return self.features(x, train)[self.block_names[-1]]


class Head(nn.Module):
    """The largest value of each channel, and small logits of it, in float32."""

    n_out: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        x = x.max((1, 2)).astype(jnp.float32)
        uniform = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
        return nn.Dense(self.n_out, use_bias=False, kernel_init=uniform, name="dense")(x) / 9


def identity(key: jax.Array, shape: tuple[int, ...], dtype=jnp.float32) -> jax.Array:
    """A kernel (k, k, in, out) that hands its input on in the first channels; the others are torch's default."""
    kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")(key, shape, dtype)
    middle, n = shape[0] // 2, min(shape[2:])
    delta = jnp.zeros((*shape[:2], shape[2], n), dtype).at[middle, middle, jnp.arange(n), jnp.arange(n)].set(1)
    return jnp.concatenate([delta, kernel[..., n:]], -1)


def whitening(images: np.ndarray, mean: np.ndarray, std: np.ndarray, epsilon: float = 5e-4) -> np.ndarray:
    """A kernel (2, 2, C, 8 C) that gives 2x2 patches of `images` (n, h, w, C) no correlation and variance 1.

    Principal components over the root of their variance, and their negatives: after a GELU both signs are there.
    """
    x = (images - mean) / std
    patches = np.lib.stride_tricks.sliding_window_view(x, (2, 2), (1, 2)).transpose(0, 1, 2, 4, 5, 3)
    patches = patches.reshape(-1, 4 * x.shape[-1]).astype(np.float64)
    variances, vectors = np.linalg.eigh(patches.T @ patches / len(patches))
    kernel = (vectors / np.sqrt(variances + epsilon)).reshape(2, 2, x.shape[-1], -1)
    return np.concatenate([kernel, -kernel], -1).astype(np.float32)
