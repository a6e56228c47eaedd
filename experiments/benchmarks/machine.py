"""What the machine can do at best, beside which a row is a share: a large matmul and a copy, on the same core.

A side like the others (`limits`), run in every round on a core, because a machine that others use too is not the same
all the time, and before and after the rounds on an accelerator.
"""

import datetime
import importlib.metadata
import platform
import time
from collections.abc import Callable

from experiments.benchmarks.side import Side

PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy", "torch")


def limits(small: bool = False) -> Side:
    """A run gives the seconds of nothing but counts "peak": {"fp32": FLOP/s, "bf16": FLOP/s, "copy": bytes/s}, and
    "device", "platform" and "versions". bf16 only on an accelerator; fp32 is TF32 there, as in training.

    The matrices are random: a GPU multiplies ones some 13 % faster, because fewer bits change. On an accelerator a
    program multiplies 20 times, so that its dispatch does not count, and 8 GiB are copied; the memory is given back
    after each run.
    """
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    n, times = (256, 1) if small else (1536, 1) if on_cpu else (8192, 20)
    size, pieces = (2**20, 1) if small else (2**26, 1) if on_cpu else (2**30, 2)  # an index past 2**31 is slower
    clock = time.process_time if on_cpu else time.perf_counter
    kinds = {"fp32": jnp.float32} if on_cpu else {"fp32": jnp.float32, "bf16": jnp.bfloat16}
    # each product is divided by the root of n, so that the next factor has the size of the first
    chain = jax.jit(lambda a, x: jax.lax.fori_loop(0, times, lambda _, x: a @ x, x))
    # in place, so that what is measured is memory and not the getting of it
    add = jax.jit(lambda xs: [x + 1 for x in xs], donate_argnums=0)
    counted = {"device": named(device), "platform": device.platform, "versions": versions(), "peak": {}}

    def product(dtype) -> float:
        a, x = (jax.random.normal(jax.random.key(i), (n, n)).astype(dtype) for i in range(2))
        a = (a / n**0.5).astype(dtype)
        return shortest(lambda: chain(a, x).block_until_ready(), clock)

    def copy() -> float:
        held = [[jnp.zeros(size, jnp.float32) for _ in range(pieces)]]

        def touch() -> None:
            held[0] = jax.block_until_ready(add(held[0]))

        return shortest(touch, clock)

    def run() -> list[float]:
        for kind, dtype in kinds.items():
            counted["peak"][kind] = 2 * times * n**3 / product(dtype)
        counted["peak"]["copy"] = 2 * 4 * size * pieces / copy()
        return []

    return Side(run, counted=counted)


def shortest(run: Callable[[], object], clock: Callable[[], float], times: int = 4) -> float:
    """Seconds of the fastest of a few runs, the first one left out."""
    found = []
    for _ in range(times):
        start = clock()
        run()
        found.append(clock() - start)
    return min(found[1:])


def named(device) -> str:
    """ "NVIDIA H200", or of a CPU its model."""
    if device.platform != "cpu":
        return device.device_kind
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        return f"1 core of {models[0]}"
    except (OSError, IndexError):
        return f"1 core of {platform.machine()}"


def versions() -> dict[str, str]:
    """Of Python and of the packages that are there."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def now() -> str:
    return datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC")
