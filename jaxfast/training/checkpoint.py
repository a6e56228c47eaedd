"""A training state on disk, through orbax: saved whole, restored onto any devices, checked bit by bit."""

import contextlib
import ctypes
import gc
import glob
import json
import logging
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jaxtyping import Array

from jaxfast.training.state import TrainState

METADATA = "_CHECKPOINT_METADATA"
"""The file that orbax leaves in a whole checkpoint."""
FORMAT = 2
"""The format of the metadata beside a state: 1 had no seal."""


def save_state(path: str | Path, state: TrainState, about: dict) -> None:
    """Write `state` and the JSON-able `about` into the folder `path`, replacing a checkpoint that is there.

    The new one is written beside the old one and takes its place when it is whole, so that one of them is there at
    every moment. (Object stores cannot rename: at a URL the old one is deleted first.)
    Raises FileExistsError if something else is there, and OSError if it cannot be written.
    """
    from orbax.checkpoint import v1 as ocp

    target = Path(absolute(path))
    if target.is_file() or target.is_dir() and any(target.iterdir()) and not (target / METADATA).exists():
        raise FileExistsError(f"{path} holds something else than a checkpoint, which saving would remove: name another")
    tree = plain(state)
    beside = absolute(path) if "://" in str(path) else str(target.with_name(f".{target.name}.new"))
    try:
        with writing(path):
            ocp.save(beside, tree, overwrite=True, custom_metadata=sealed(described(tree) | about))
        if "://" not in str(path) and jax.process_index() == 0:
            replace_folder(beside, target)
    finally:
        if "://" not in str(path) and jax.process_index() == 0:
            for part in target.parent.glob(f".{glob.escape(target.name)}.new*"):  # of a write that failed
                shutil.rmtree(part, ignore_errors=True)
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(f"saved {path}")


@contextlib.contextmanager
def writing(path: str | Path):
    """Within the block, what a storage raises becomes an OSError that names `path`."""
    try:
        yield
    except FileExistsError:
        raise
    except Exception as error:  # orbax and its storage raise many kinds where a disk is full
        gc.collect()
        full = "No space left" in str(error) or "Disk quota" in str(error)
        reason = "the disk is full" if full else " ".join(str(error).split())[:160] or type(error).__name__
        raise OSError(f"the checkpoint {path} cannot be written: {reason}") from error


def read_about(path: str | Path) -> dict:
    """What was saved beside the state. FileNotFoundError where there is no checkpoint, ValueError where it is
    damaged, or of another format."""
    from orbax.checkpoint import v1 as ocp

    path = absolute(path)
    if "://" not in path and not Path(path).exists():
        raise FileNotFoundError(f"no checkpoint at {path}: give the folder that learn.save wrote")
    try:
        with _muted("absl"):
            about = ocp.checkpointables_metadata(path).custom_metadata or {}
    except Exception as error:  # nearly anything, where a file is damaged
        raise ValueError(f"{path} is not a checkpoint, or its writing was cut off: load another") from error
    if not isinstance(about, dict) or "jaxfast" not in about:
        raise ValueError(f"{path} is not a checkpoint of jaxfast: its metadata do not name the library")
    if "format" not in about and "seal" not in about:
        raise ValueError(
            f"{path} is a checkpoint of format 1, which this jaxfast does not read (it reads format {FORMAT}): load it "
            f"with jaxfast {about['jaxfast']}, or train again"
        )
    if about.get("seal") != sealed(about)["seal"]:
        raise ValueError(f"the checkpoint {path} is damaged: its metadata are not those that were saved")
    if about["format"] != FORMAT:
        raise ValueError(f"{path} is a checkpoint of format {about['format']}, this jaxfast reads format {FORMAT}")
    return about


def load_state(path: str | Path, like: TrainState) -> TrainState:
    """The state saved at `path`, with the structure, types and device placement of `like`.

    ValueError where the saved arrays do not have that structure (another architecture, number of classes or frozen
    part), or are damaged: their bits are compared with the fingerprint taken when they were saved.
    """
    from orbax.checkpoint import v1 as ocp

    about, wanted = read_about(path), plain(like)
    if about["structure"] != structure(wanted):
        raise Misfit(
            f"the checkpoint {path} does not fit: it holds {about['arrays']} arrays, the state {len(wanted)} or arrays "
            "of other names and shapes; load it with the model, number of classes and frozen part that it was saved of"
        )
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted)
    tree = read_arrays(path, lambda: ocp.load(absolute(path), abstract), about["fingerprint"])
    state = jax.tree.unflatten(jax.tree.structure(_keyless(like)), [tree[name] for name in wanted])
    return state.replace(key=jax.random.wrap_key_data(state.key))


class Misfit(ValueError):
    """A checkpoint that is whole, but of another state or of other data."""


def read_arrays(path: str | Path, read: Callable[[], dict], wanted: str) -> dict:
    """The arrays that `read()` gives. Raises ValueError if it fails, or if their fingerprint is not `wanted`."""
    reason, tree = None, {}
    with _muted("absl", "asyncio"):
        try:
            tree = read()
        except Exception as error:  # orbax and its storage raise many kinds for a damaged file
            reason = " ".join(str(error).split())[:120] or type(error).__name__
        if reason:
            # Tasks that failed with it report when they go, now or later: hundreds of lines.
            logging.getLogger("asyncio").addFilter(_Abandoned(absolute(path)))
            gc.collect()
            raise ValueError(f"the checkpoint {path} is damaged: {reason}")
    if fingerprint(tree) != wanted:
        raise ValueError(f"the checkpoint {path} is damaged: its numbers are not those that were saved")
    return tree


def replace_folder(new: str | Path, old: str | Path) -> None:
    """Put the folder `new` in the place of `old`, and remove that; something is at `old` at every moment where the
    system can exchange two names (Linux), and but for microseconds elsewhere."""
    if not Path(old).exists():
        os.rename(new, old)
        return
    if not _exchange(new, old):
        aside = f"{old}.old"
        shutil.rmtree(aside, ignore_errors=True)
        os.rename(old, aside)
        os.rename(new, old)
        new = aside
    shutil.rmtree(new)


def _exchange(a: str | Path, b: str | Path) -> bool:
    """Exchange two names at once (renameat2 with RENAME_EXCHANGE); False where that is not possible."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return rename(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0


class _Abandoned(logging.Filter):
    """Drops what asyncio says of failed reads below `path` that nobody waits for any more."""

    def __init__(self, path: str):
        super().__init__()
        self.path = path

    def filter(self, record: logging.LogRecord) -> bool:
        return not (record.exc_info and self.path in str(record.exc_info[1]))


@contextlib.contextmanager
def _muted(*loggers: str):
    """Within the block these loggers pass on nothing."""
    before = [logging.getLogger(name).disabled for name in loggers]
    for name in loggers:
        logging.getLogger(name).disabled = True
    try:
        yield
    finally:
        for name, disabled in zip(loggers, before, strict=True):
            logging.getLogger(name).disabled = disabled


def fingerprint(tree) -> str:
    """Eight hexadecimal digits of all bits of a tree of arrays, the same wherever and however it is laid out.

    Two runs that end with the same fingerprint of `state.params` computed the same numbers.
    """
    total = 0
    for leaf in jax.tree.leaves(tree):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        spread = isinstance(leaf, jax.Array) and not (leaf.is_fully_addressable or leaf.is_fully_replicated)
        total = (total * 16777619 + int(_spread_sum(leaf) if spread else _host_sum(np.asarray(leaf)))) % 2**32
    return f"{total:08x}"


# Sums of integers modulo 2**32 do not depend on their order, nor on which device holds what; odd factors by place make
# words that change places change the sum.


def _host_sum(values: np.ndarray) -> int:
    # On the host where it can be: compiling a sum for each shape of a network takes XLA on CPU 16 s.
    words = np.ascontiguousarray(values).reshape(-1).view(f"u{min(values.dtype.itemsize, 4)}")
    total, block = 0, 2**22
    for start in range(0, len(words), block):
        part = words[start : start + block].astype(np.uint32)
        place = np.arange(start, start + len(part), dtype=np.uint32)
        total += int(((2 * place + 1) * part).sum(dtype=np.uint32))
    return total


@jax.jit
def _spread_sum(values: Array) -> Array:
    """`_host_sum` of an array whose parts lie on devices of several processes."""
    values = values.astype(jnp.uint8) if values.dtype == bool else values
    kind = jnp.dtype(f"uint{8 * min(values.dtype.itemsize, 4)}")
    words = jax.lax.bitcast_convert_type(values, kind).reshape(-1).astype(jnp.uint32)
    return ((2 * jax.lax.iota(jnp.uint32, words.size) + 1) * words).sum(dtype=jnp.uint32)


def described(tree: dict) -> dict:
    """What `load_state` checks a checkpoint of `tree` by."""
    import jaxfast

    return {
        "jaxfast": jaxfast.__version__,
        "format": FORMAT,
        "arrays": len(tree),
        "structure": structure(tree),
        "fingerprint": fingerprint(tree),
    }


def sealed(about: dict) -> dict:
    """`about` with a checksum of all of it, as JSON gives it back, so that a field that is gone or changed is seen."""
    plain = json.loads(json.dumps({name: value for name, value in about.items() if name != "seal"}))
    return plain | {"seal": f"{zlib.crc32(json.dumps(plain, sort_keys=True).encode()):08x}"}


def structure(tree: dict) -> str:
    """A checksum of the names, shapes and types of a tree of arrays."""
    text = str([(name, x.shape, str(x.dtype)) for name, x in sorted(tree.items())])
    return f"{zlib.crc32(text.encode()):08x}"


def plain(state: TrainState) -> dict:
    """Leaves by path: a checkpoint names no class of optax or of this library."""
    paths = jax.tree_util.tree_flatten_with_path(_keyless(state))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _keyless(state: TrainState) -> TrainState:
    return state.replace(key=jax.random.key_data(state.key))


def absolute(path: str | Path) -> str:
    """`path` as orbax wants it: from the root, or a URL such as gs://bucket/run."""
    return str(path) if "://" in str(path) else str(Path(path).resolve())
