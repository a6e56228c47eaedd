"""The platform of every test, eight CPU devices unless another is asked for, and the place of outside data.

`JAXFAST_TEST_PLATFORM` names the platform: "cpu" (the default), "gpu" or "tpu". An accelerator keeps its own number of
devices, with the CPU beside it to compare with, and is used by one process. `tests/device` says what runs there.
"""

import atexit
import os
import tempfile
from pathlib import Path

import jax
import pytest

PLATFORMS = {"cpu": "cpu", "gpu": "cuda,cpu", "tpu": "tpu,cpu"}
"""What jax calls each platform, and the CPU that a test compares it with."""

_platform = os.environ.get("JAXFAST_TEST_PLATFORM") or "cpu"
jax.config.update("jax_platforms", PLATFORMS.get(_platform, "cpu"))
if _platform == "cpu":
    jax.config.update("jax_num_cpu_devices", 8)
else:  # both are read when the backend starts
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"
    if _platform == "gpu":
        # Sums by atomic additions differ from run to run, and the device tests compare bits.
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true".strip()
# Learners of the same shape share compiled programs, in every process of the run. The folder has no size limit: with
# one, a test that is interrupted between the two files of a program makes every later write fail. Without one, a
# program that was written in part is compiled again, with a warning that is ignored below.
_SHARED = "JAXFAST_TESTS_COMPILED"
if _SHARED not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="jaxfast-tests-")
    atexit.register(_cache.cleanup)
    os.environ[_SHARED] = _cache.name
jax.config.update("jax_compilation_cache_dir", os.environ[_SHARED])
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)


collect_ignore = ["bare/site"]  # the start-up file of bare runs: to import it is to install its hook


def pytest_configure(config):
    if _platform not in PLATFORMS:
        raise pytest.UsageError(f"JAXFAST_TEST_PLATFORM={_platform!r}: give one of {', '.join(PLATFORMS)}")
    config.addinivalue_line("filterwarnings", "ignore:Error (reading|writing) persistent compilation cache")


def pytest_collection_modifyitems(items):
    """Files with slow tests come first: left for the end, they would keep one process busy and the others idle."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config):
    """Keep an accelerator to one process, whose memory several would share; else xdist counts the cores."""
    return None if _platform == "cpu" else 0


@pytest.fixture
def one_device(monkeypatch):
    """Learners see one device, as they do in an experiment's own process on CPU."""
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda *backend: devices)


@pytest.fixture(scope="session")
def outside_data():
    """`outside_data("flowers.zip")` gives the file's path, or skips the test where it is missing."""
    root = Path(os.environ.get("JAXFAST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

    def find(name: str) -> Path:
        path = root / name
        if not path.exists():
            pytest.skip(f"{name} is not in {root}: set JAXFAST_DATA to the folder that holds it")
        return path

    return find
