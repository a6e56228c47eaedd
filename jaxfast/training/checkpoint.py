"""A training state on disk, through orbax: saved whole, restored onto any devices."""

from pathlib import Path

import jax

from jaxfast.training.state import TrainState


def save_state(path: str | Path, state: TrainState, about: dict) -> None:
    """Write `state` and the JSON-able `about` into the folder `path`, replacing a checkpoint that is there; atomic."""
    from orbax.checkpoint import v1 as ocp

    import jaxfast

    about = {"jaxfast": jaxfast.__version__, **about}
    ocp.save(_absolute(path), _plain(state), overwrite=True, custom_metadata=about)


def read_about(path: str | Path) -> dict:
    """What was saved beside the state. FileNotFoundError where there is no checkpoint, ValueError where it is
    damaged."""
    from orbax.checkpoint import v1 as ocp

    path = _absolute(path)
    if not Path(path).exists():
        raise FileNotFoundError(f"no checkpoint at {path}")
    try:
        about = ocp.metadata(path).custom_metadata or {}
    except (ValueError, KeyError, OSError) as error:
        raise ValueError(f"{path} is not a checkpoint, or its writing was cut off: load another") from error
    if "jaxfast" not in about:
        raise ValueError(f"{path} is not a checkpoint of jaxfast: its metadata do not name the library")
    return about


def load_state(path: str | Path, like: TrainState) -> TrainState:
    """The state saved at `path`, with the structure, types and device placement of `like`.

    ValueError where the saved arrays do not have that structure: another architecture, number of classes or frozen
    part.
    """
    from orbax.checkpoint import v1 as ocp

    read_about(path)
    wanted = _plain(like)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), wanted)
    try:
        tree = ocp.load(_absolute(path), abstract)
    except (ValueError, KeyError, FileNotFoundError, OSError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"the checkpoint {path} does not fit this learner, or is damaged: {reason}") from error
    state = jax.tree.unflatten(jax.tree.structure(_keyless(like)), [tree[name] for name in wanted])
    return state.replace(key=jax.random.wrap_key_data(state.key))


def _keyless(state: TrainState) -> TrainState:
    return state.replace(key=jax.random.key_data(state.key))


def _plain(state: TrainState) -> dict:
    """Leaves by path: a checkpoint names no class of optax or of this library."""
    paths = jax.tree_util.tree_flatten_with_path(_keyless(state))[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in paths}


def _absolute(path: str | Path) -> str:
    return str(path) if "://" in str(path) else str(Path(path).resolve())
