"""How to run the tests of this folder: on any machine with an accelerator, from the root of the repository,

    JAXFAST_TEST_PLATFORM=gpu python -m pytest tests/device -n0 -q

with "tpu" for a TPU, and with "cpu" to rehearse them without an accelerator. jaxfast does not have to be installed; the
packages that it imports do, and so do pytest and pytest-xdist. Every test runs on the first device and compares it with
the CPU of the same process. Where jax does not find the platform that is asked for, the first test fails and the run
ends.

Without the variable, as in an ordinary run of the suite, these tests are skipped: `test_rehearsal.py` runs them on the
CPU in a process of their own. On a GPU they run with XLA's deterministic operations, because some compare bits.
"""

import os
from pathlib import Path

import jax
import pytest

HERE = Path(__file__).parent
ASKED = os.environ.get("JAXFAST_TEST_PLATFORM")

collect_ignore = ["test_rehearsal.py"] if ASKED else []  # it starts runs of its own, which say nothing of a device


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent == HERE and item.path.name != "test_rehearsal.py":
            item.add_marker(pytest.mark.device)
            if not ASKED:
                reason = "set JAXFAST_TEST_PLATFORM to gpu or tpu, or to cpu to rehearse (see tests/device/conftest.py)"
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_runtest_setup(item):
    if item.get_closest_marker("device") and (wrong := _missing(ASKED)):
        item.session.shouldfail = "the platform that is asked for is missing"
        pytest.fail(wrong, pytrace=False)


def _missing(platform: str) -> str | None:
    """A sentence that says that the default backend is not `platform`, or None where it is."""
    try:
        found = f"its default backend is {jax.default_backend()}"
        if jax.default_backend() == platform:
            return None
    except RuntimeError as error:
        found = " ".join(str(error).split())
    return f"JAXFAST_TEST_PLATFORM asks for {platform}, which jax does not find on this machine: {found}"


@pytest.fixture(autouse=True)
def full_precision():
    """Multiply fp32 matrices in fp32: by default a GPU rounds them to TF32 and a TPU to bf16."""
    with jax.default_matmul_precision("highest"):
        yield
