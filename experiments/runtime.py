"""What an experiment sets before it computes: compiled programs on disk, memory in large pages and seldom collected."""

import gc
import os
import sys
from pathlib import Path


def start(cache: str = "~/.cache/jaxfast/compiled") -> None:
    """Turn JAX's persistent compilation cache on in the folder `cache` ("" for none) and large pages for a CPU run.

    A folder that JAX_COMPILATION_CACHE_DIR names is used instead, as whoever started the process wants it.

    XLA on CPU maps a step's temporary memory anew at each dispatch, and faulting it in by pages of 4 KiB takes longer
    than the arithmetic: EfficientNet-Lite0 at 96 px, batch 32, jax 0.10.2, before most of `jaxfast.kernels`, on two
    shared cores, the better of two epochs: 1.04 s of CPU time a step, with large pages 0.71 (wall time, which other
    jobs disturb: 1.04 s and 0.39 s).
    glibc reads the setting when a process starts, so the process starts again, once.

    Tracing a model makes millions of objects that stay, and Python's garbage collector goes over them in vain every few
    hundred: with a threshold of 100,000 the quickstart takes 12.7 s of CPU time to its first step, else 14.9 (warm
    compilation cache, medians of three).
    """
    tunable = "glibc.malloc.hugetlb=1"
    given = os.environ.get("GLIBC_TUNABLES", "")
    if sys.platform == "linux" and "glibc.malloc.hugetlb" not in given:
        os.environ["GLIBC_TUNABLES"] = f"{given}:{tunable}" if given else tunable
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])
    gc.set_threshold(100_000)
    cache = os.environ.get("JAX_COMPILATION_CACHE_DIR", cache)
    if cache:
        import jax

        jax.config.update("jax_compilation_cache_dir", str(Path(cache).expanduser()))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
