"""What the machine can do at best, beside which a row is a share: a large matmul and a copy, on the same core.

A side like the others (`limits`), run in every round, because a machine that others use too is not the same all the
time.
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
    "device", "platform" and "versions". bf16 only on an accelerator; fp32 is TF32 there, as in training."""
    import jax
    import jax.numpy as jnp

    device = jax.devices()[0]
    on_cpu = device.platform == "cpu"
    n = 256 if small else 1536 if on_cpu else 8192
    size = 2**20 if small else 2**26 if on_cpu else 2**30
    clock = time.process_time if on_cpu else time.perf_counter
    kinds = {"fp32": jnp.float32} if on_cpu else {"fp32": jnp.float32, "bf16": jnp.bfloat16}
    products = {kind: (jax.jit(jnp.matmul), jnp.ones((n, n), dtype)) for kind, dtype in kinds.items()}
    # in place, so that what is measured is memory and not the getting of it
    add, held = jax.jit(lambda x: x + 1, donate_argnums=0), [jnp.zeros(size, jnp.float32)]
    counted = {"device": named(device), "platform": device.platform, "versions": versions(), "peak": {}}

    def touch() -> None:
        held[0] = add(held[0]).block_until_ready()

    def run() -> list[float]:
        for kind, (product, x) in products.items():
            counted["peak"][kind] = 2 * n**3 / shortest(lambda p=product, x=x: p(x, x).block_until_ready(), clock)
        counted["peak"]["copy"] = 2 * held[0].nbytes / shortest(touch, clock)
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
