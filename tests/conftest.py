"""Eight CPU devices for every test, and the place of outside data."""

import atexit
import os
import tempfile
from pathlib import Path

import jax
import pytest

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 8)
# Learners of the same shape share programs: what one test compiled, the next reads.
_cache = tempfile.TemporaryDirectory(prefix="jaxfast-tests-")
atexit.register(_cache.cleanup)
jax.config.update("jax_compilation_cache_dir", _cache.name)
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


def data_root() -> Path:
    default = Path(__file__).resolve().parents[1].parent / "shared" / "data"
    return Path(os.environ.get("JAXFAST_DATA", default))


@pytest.fixture
def one_device(monkeypatch):
    """Learners see one device, as they do in an experiment's own process on CPU."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *backend: devices)


@pytest.fixture
def outside_data():
    """`outside_data("flowers.zip")` gives the file's path, or skips the test where it is missing."""

    def find(name: str) -> Path:
        path = data_root() / name
        if not path.exists():
            pytest.skip(f"{name} is not in {data_root()}: set JAXFAST_DATA to the folder that holds it")
        return path

    return find
