"""jaxfast with the packages of a bare GPU machine alone: the hook that hides all others, and every front door."""

import json
import os
import subprocess
import sys

import hook
import pytest

PROBE = """
import importlib.util, json, sys
from importlib import metadata
found = {name: importlib.util.find_spec(name) is not None for name in json.loads(sys.argv[1])}
for name in found:
    try:
        __import__(name)
    except ModuleNotFoundError as error:
        assert not found[name] and error.name == name, (name, error)
    else:
        assert found[name], name
known = [dist.metadata["Name"] for dist in metadata.distributions()]
print(json.dumps([found, "outside-the-list" in known, "numpy" in known]))
"""
CHILD = "import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', *sys.argv[1:]]))"
INSIDE = ["json", "numpy", "rich", "jaxfast", "experiments", "tests"]


@pytest.fixture
def outside(tmp_path, monkeypatch):
    """A package `outside_the_list`, installed for processes that start with this environment."""
    folder = tmp_path / "outside_the_list-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: outside-the-list\nVersion: 1.0\n")
    (folder / "top_level.txt").write_text("outside_the_list\n")
    (tmp_path / "outside_the_list.py").write_text("")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), str(hook.ROOT)]))


@pytest.mark.parametrize("start", [["-c", PROBE], ["-c", CHILD, PROBE]], ids=["program", "its child"])
@pytest.mark.parametrize("hidden", [True, False])
def test_the_hook_hides_what_the_list_does_not_name(outside, start, hidden):
    environment = hook.environment() if hidden else os.environ
    command = [sys.executable, *start, json.dumps([*INSIDE, "outside_the_list"])]
    done = subprocess.run(command, env=environment, cwd=hook.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, outside_known, numpy_known = json.loads(done.stdout)
    assert [name for name in INSIDE if not found[name]] == []
    assert (found["outside_the_list"], outside_known, numpy_known) == (not hidden, not hidden, True)


def test_the_command_passes_arguments_and_status(outside):
    command = [sys.executable, "-m", "tests.bare.hook", "pip", "--version"]
    assert subprocess.run(command, cwd=hook.ROOT, capture_output=True).returncode == 0
    done = subprocess.run([*command[:3], "outside_the_list"], cwd=hook.ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and "No module named outside_the_list" in done.stderr


def test_the_list_leaves_out_what_a_pip_installation_of_jaxfast_brings():
    missing = {"grain", "array-record", "tyro", "simplejpeg", "cykooz-resizer", "tensorboardx", "tensorflow-datasets"}
    assert not missing & hook.packages()
    assert {"jax", "flax", "optax", "orbax-checkpoint", "torch", "pandas"} <= hook.packages()


@pytest.mark.parametrize(
    "door",
    [
        "modules",
        "programs",
        "ratings",
        *(pytest.param(door, marks=pytest.mark.slow) for door in ("images", "tables", "language", "texts")),
    ],
)
def test_a_front_door_works_with_these_packages_alone(door):
    environment = hook.environment() | {"JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-m", "tests.bare.smoke", door]
    done = subprocess.run(command, env=environment, cwd=hook.ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, error = json.loads(done.stdout.splitlines()[-1])
    assert name == door and error is None, error
