"""Forms of an operation that one platform's compiler handles badly, each equal to the plain one.

The form is chosen when a program is lowered, by `jax.lax.platform_dependent`: a program exported for several
platforms, or compiled for a TPU on a CPU machine, holds the right one for each.
"""

from jaxfast.kernels.batch_norm import batch_norm
from jaxfast.kernels.conv import conv2d
from jaxfast.kernels.embedding import embed
from jaxfast.kernels.guard import apply_if
from jaxfast.kernels.pool import max_pool

__all__ = ["apply_if", "batch_norm", "conv2d", "embed", "max_pool"]
