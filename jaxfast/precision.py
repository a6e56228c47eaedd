"""Mixed precision: which type a model computes in, and the dynamic loss scale that fp16 needs.

Parameters, optimizer state, statistics, softmax and losses are fp32 always; only the compute type changes.
"""

import dataclasses
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from jaxfast.messages import first, nearest


class Precision(NamedTuple):
    """The compute type, and whether gradients need a loss scale."""

    dtype: jnp.dtype
    loss_scale: bool


PRECISIONS = {
    "fp32": Precision(jnp.dtype(jnp.float32), False),
    "bf16": Precision(jnp.dtype(jnp.bfloat16), False),
    "fp16": Precision(jnp.dtype(jnp.float16), True),
}


def resolve(precision: str = "auto", device: jax.Device | None = None) -> Precision:
    """ "fp32", "bf16", "fp16", or "auto": bf16 on TPU and on GPUs from compute capability 8.0, fp16 with a dynamic
    loss scale on older GPUs (T4, V100), fp32 on CPU. ValueError for another name."""
    if precision == "auto":
        device = device or jax.devices()[0]
        if device.platform == "cpu":
            precision = "fp32"
        elif device.platform == "gpu" and float(getattr(device, "compute_capability", None) or 8) < 8:
            precision = "fp16"
        else:
            precision = "bf16"
    if precision not in PRECISIONS:
        known = ["auto", *PRECISIONS]
        raise ValueError(f"unknown precision {precision!r}: give one of {first(known)}{nearest(precision, known)}")
    return PRECISIONS[precision]


def cast_module(module: nn.Module, dtype: jnp.dtype) -> nn.Module:
    """A copy of a Linen module that computes in `dtype`: every `dtype` attribute, of its submodule attributes too."""
    changes = {}
    for field in dataclasses.fields(module):
        value = getattr(module, field.name, None)
        if field.name == "dtype":
            changes["dtype"] = dtype
        elif isinstance(value, nn.Module) and field.name != "parent":
            changes[field.name] = cast_module(value, dtype)
    return module.clone(**changes) if changes else module


class LossScale(struct.PyTreeNode):
    """Dynamic loss scale (Micikevicius et al. 2018): halved when a gradient overflows, doubled after `period` good
    steps."""

    scale: Float[Array, ""]
    good_steps: Int[Array, ""]
    period: int = struct.field(pytree_node=False, default=2000)

    @classmethod
    def create(cls, scale: float = 2.0**15, period: int = 2000) -> "LossScale":
        return cls(jnp.float32(scale), jnp.int32(0), period)

    def adjust(self, finite: Bool[Array, ""]) -> "LossScale":
        grow = finite & (self.good_steps + 1 >= self.period)
        scale = jnp.where(finite, jnp.where(grow, self.scale * 2, self.scale), self.scale / 2)
        return self.replace(
            scale=jnp.clip(scale, 1.0, 2.0**24),
            good_steps=jnp.where(finite & ~grow, self.good_steps + 1, 0),
        )


def all_finite(tree) -> Bool[Array, ""]:
    """Whether every number of every leaf is finite."""
    # x - x is nan for what is not finite and 0 else: one fused sum; isfinite(x).all() takes several passes on CPU.
    wide = [leaf.astype(jnp.promote_types(leaf.dtype, jnp.float32)) for leaf in jax.tree.leaves(tree)]
    return ~jnp.isnan(jnp.stack([(leaf - leaf).sum() for leaf in wide]).sum())
