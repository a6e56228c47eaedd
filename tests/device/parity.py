"""What the device tests share: the two devices that they compare, and how far apart two results are."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np


def accelerator() -> jax.Device:
    """The device under test, which is the default one."""
    return jax.devices()[0]


def host() -> jax.Device:
    """The CPU device to compare with; in a rehearsal on the CPU, where there are eight, it is the last of them."""
    return jax.devices("cpu")[-1]


def on(device: jax.Device, function: Callable, *arguments):
    """The result of the compiled `function` on `device`, as NumPy arrays."""
    # A CPU takes longer to optimize programs this small than to run them. A whole training step is not one of them:
    # at level 0 jaxlib 0.10.2 finds a gradient that is not finite where the other levels find none.
    options = {"xla_backend_optimization_level": 0} if device.platform == "cpu" else None
    return jax.device_get(jax.jit(function, compiler_options=options)(*jax.device_put(arguments, device)))


def apart(got, want) -> float:
    """The distance of two trees of arrays, as a share of the length of `want`."""
    flat = lambda tree: np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])
    return float(np.linalg.norm(flat(got) - flat(want)) / np.linalg.norm(flat(want)))


def assert_close(got, want, tolerance: float) -> None:
    """Fail where a leaf differs by more than `tolerance` times the largest magnitude in that leaf of `want`."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        limit = tolerance * max(np.abs(b).max(), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=limit, err_msg=jax.tree_util.keystr(path))


def assert_same_bits(got, want) -> None:
    """Fail where a bit of a leaf differs; random keys count by their data."""
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(got), jax.tree.leaves(want), strict=True):
        a, b = bits(a), bits(b)
        assert a.dtype == b.dtype and a.tobytes() == b.tobytes(), f"{jax.tree_util.keystr(path)} differs"


def bits(x) -> np.ndarray:
    """An array on the host; of random keys their data."""
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(x) if is_key else x)


def derivatives(function: Callable, order: int = 2) -> Callable:
    """The function of the same float arguments that returns values, gradients, and gradients of the gradients.

    The gradient is that of a curved sum of the outputs, so that second derivatives are not zero. Both are taken in
    reverse mode. `order` 1 leaves out the second.
    """

    def total(*arguments):
        outputs = function(*arguments)
        return sum(jnp.sum(_weights(y) * jnp.sin(y)) for y in jax.tree.leaves(outputs)), outputs

    def along(*arguments):
        gradients = jax.grad(lambda *a: total(*a)[0], _all(arguments))(*arguments)
        return sum(jnp.sum(_weights(g) * g) for g in gradients)

    def every(*arguments):
        gradients, values = jax.grad(total, _all(arguments), has_aux=True)(*arguments)
        found = {"value": values, "gradient": gradients}
        return found | ({"second": jax.grad(along, _all(arguments))(*arguments)} if order > 1 else {})

    return every


def draw(*shapes: Sequence[int]) -> list[np.ndarray]:
    """Normal numbers, fp32, one array for each shape."""
    return [np.random.default_rng(i).normal(size=shape).astype(np.float32) for i, shape in enumerate(shapes)]


def _all(arguments: Sequence) -> tuple[int, ...]:
    return tuple(range(len(arguments)))


def _weights(x: jax.Array) -> jax.Array:
    """Fixed numbers of both signs, so that errors do not cancel in a sum."""
    return jnp.cos(jnp.arange(x.size, dtype=x.dtype)).reshape(x.shape)
