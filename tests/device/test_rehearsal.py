"""The device tests in an ordinary run: rehearsed on the CPU, and refused where the platform is missing."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def run(platform, *arguments, **environment):
    """pytest in a process of its own: (exit status, output)."""
    command = [sys.executable, "-m", "pytest", "-q", "-n0", "-p", "no:cacheprovider", *arguments]
    plain = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "XLA_", "JAX_"))}
    variables = plain | {"JAXFAST_TEST_PLATFORM": platform} | environment
    done = subprocess.run(command, cwd=HERE.parents[1], env=variables, capture_output=True, text=True, timeout=1200)
    return done.returncode, done.stdout + done.stderr


# What each file holds, and how many of them only a GPU can run; together at most 25.
FILES = [
    pytest.param("test_kernels.py", 13, 1),
    pytest.param("test_augment.py", 4, 0),
    pytest.param("test_export.py", 1, 0),
    pytest.param("test_training.py", 7, 0, marks=pytest.mark.slow),
]


@pytest.mark.parametrize("file, tests, gpu_only", FILES)
def test_the_device_tests_pass_on_the_cpu(file, tests, gpu_only):
    status, output = run("cpu", str(HERE / file))
    counts = {name: int(n) for n, name in re.findall(r"(\d+) (passed|skipped|failed|error)", output.splitlines()[-1])}
    assert status == 0, output
    assert counts.get("passed", 0) >= tests - gpu_only, output
    assert counts.get("skipped", 0) <= gpu_only, output


def test_every_file_of_device_tests_is_rehearsed():
    assert {path.name for path in HERE.glob("test_*.py")} - {Path(__file__).name} == {p.values[0] for p in FILES}


def test_a_platform_that_is_missing_is_a_failure():
    """One sentence, for the first test; no GPU is visible to the process, so that this holds where there is one."""
    status, output = run("gpu", str(HERE), CUDA_VISIBLE_DEVICES="")
    assert status == 1
    assert output.count("E   ") == 0 and "skipped" not in output.splitlines()[-1], output
    sentence = "JAXFAST_TEST_PLATFORM asks for gpu, which jax does not find on this machine: "
    assert len(re.findall(f"^{sentence}", output, re.MULTILINE)) == 1, output
    assert re.search(r"^1 error in ", output.splitlines()[-1]), output


def test_a_platform_that_does_not_exist_is_named():
    status, output = run("quantum", str(HERE))
    assert status == pytest.ExitCode.USAGE_ERROR
    assert "JAXFAST_TEST_PLATFORM='quantum': give one of cpu, gpu, tpu" in output


def test_without_the_variable_the_device_tests_are_skipped():
    status, output = run("", str(HERE / "test_augment.py"), "-rs")
    assert status == 0
    assert "set JAXFAST_TEST_PLATFORM to gpu or tpu" in output
    assert re.match(r"4 skipped", output.splitlines()[-1]), output
