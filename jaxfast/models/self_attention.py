"""Self-attention between the places of a feature map, as in SAGAN (Zhang et al. 2018)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxfast.models.attention import SpectralDense


class SelfAttention(nn.Module):
    """x + gamma * attention of each place over all places, (B, H, W, C) to the same (fastai's SelfAttention).

    Queries and keys have C // 8 channels; "gamma" (1,) is at first zero. The table of weights has (H W)^2 numbers per
    image, so it belongs on small maps. Layers query, key, value (`SpectralDense`). ValueError for C below 8.
    """

    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool = False) -> jax.Array:
        batch, height, width, channels = x.shape
        if channels < 8:
            raise ValueError(f"self-attention over {channels} channels: it needs at least 8")
        places = x.astype(self.dtype).reshape(batch, height * width, channels)
        dense = lambda features, name: SpectralDense(features, self.dtype, name=name)(places, train)
        query, key, value = dense(channels // 8, "query"), dense(channels // 8, "key"), dense(channels, "value")
        wide = jnp.promote_types(self.dtype, jnp.float32)
        # as in SAGAN's own code and fastai's, the softmax runs over the queries
        scores = jnp.einsum("bic,bjc->bji", query, key, preferred_element_type=wide)
        found = jnp.einsum("bji,bic->bjc", jax.nn.softmax(scores).astype(self.dtype), value)
        gamma = self.param("gamma", nn.initializers.zeros, (1,), jnp.float32).astype(self.dtype)
        return (places + gamma * found).reshape(x.shape)
