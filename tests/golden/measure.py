"""What is recorded of a learner, and how it is compared with what was recorded before."""

import hashlib
import os
import platform
from pathlib import Path

import jax
import numpy as np

from .learners import STEPS, Road

BITWISE = "JAXFAST_GOLDEN"
"""The environment variable that asks for equal bits, by the value "bitwise", from the machine that recorded."""
KINDS = ("losses", "validate", "lr_find", "sums")
_UNITS = ("avx2", "avx512f", "amx_tile", "asimd", "sve")


def machine() -> dict[str, str | int]:
    """What decides how sums are rounded: the version of jax, the processor with its vector units, and its cores."""
    cpu, flags = platform.processor() or platform.machine(), []
    info = Path("/proc/cpuinfo")
    if info.exists():
        lines = [line.partition(":") for line in info.read_text().splitlines()]
        found = {name.strip(): value.strip() for name, _, value in reversed(lines)}
        cpu = found.get("model name", cpu)
        flags = (found.get("flags") or found.get("Features") or "").split()
    units = [unit for unit in _UNITS if unit in flags]
    return {"jax": jax.__version__, "cpu": " ".join([cpu, *units]), "cores": len(os.sched_getaffinity(0))}


def arrays(tree) -> dict[str, np.ndarray]:
    """The leaves of a tree on the host, by path and in the order of the paths; keys as their words."""
    found = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        found[jax.tree_util.keystr(path, simple=True, separator="/")] = np.asarray(leaf)
    return dict(sorted(found.items()))


def digest(tree) -> str:
    """SHA-256 of the paths, types, shapes and bytes of all leaves."""
    total = hashlib.sha256()
    for path, leaf in arrays(tree).items():
        total.update(f"{path} {leaf.dtype} {leaf.shape} ".encode())
        total.update(np.ascontiguousarray(leaf).tobytes())
    return total.hexdigest()


def sums(tree) -> dict[str, float]:
    """The sum of |x| in float64 below each of the first two names of a path, such as "params/body"."""
    found: dict[str, float] = {}
    for path, leaf in arrays(tree).items():
        name = "/".join(path.split("/")[:2])
        found[name] = found.get(name, 0.0) + float(np.abs(leaf.astype(np.float64)).sum())
    return found


def measured(road: Road) -> dict:
    """Train a fresh learner: its losses, validation after them, a rate search, and checksums of its variables.

    Raises RuntimeError if the search changes a bit of the state.
    """
    learn = road.build()
    learn.freeze_to(road.frozen_to)
    first = digest(learn.state.variables)
    road.fit(learn)
    trained = digest(learn.state)
    result = {
        "losses": [float(loss) for loss in learn.history.losses[:STEPS]],
        "validate": {name: float(value) for name, value in learn.validate().items()},
        "lr_find": [float(loss) for loss in learn.lr_find(1e-6, 1e-2, 10).raw_losses],
        "sums": sums(learn.state.variables),
        "sha256": {"initial": first, "trained": digest(learn.state.variables)},
    }
    if digest(learn.state) != trained:
        raise RuntimeError("lr_find or validate changed the state of the learner")
    return result


def differences(now: dict, then: dict, rtol: float) -> list[str]:
    """One line for every number of `now` that is further than `rtol`, the relative difference, from that of `then`."""
    found = []
    for kind in KINDS:
        new, old = _named(now[kind]), _named(then[kind])
        if new.keys() != old.keys():
            found.append(f"{kind} has {list(new)}, recorded are {list(old)}")
            continue
        for name, value in old.items():
            off = _off(new[name], value)
            if not off <= rtol:
                found.append(f"{kind}[{name}] is {new[name]!r}, recorded is {value!r}: {off:.1e} of it")
    return found


def distance(now: dict, then: dict) -> float:
    """The largest relative difference of numbers that both have."""
    pairs = [(_named(now[kind]), _named(then[kind])) for kind in KINDS]
    return max(_off(new[name], value) for new, old in pairs for name, value in old.items() if name in new)


def _named(values: list | dict) -> dict:
    return dict(enumerate(values)) if isinstance(values, list) else values


def _off(new: float, old: float) -> float:
    return 0.0 if new == old else abs(new - old) / abs(old) if old else float("inf")
