"""Programs that tests run as processes of their own: one machine of a job, or one that is killed and restarted."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax

_TESTS = Path(__file__).parents[1]


def start(job: str, *, processes: int = 1, devices: int = 8, **options) -> list[subprocess.Popen]:
    """Start `tests.jobs.<job>` in `processes` processes with `devices` CPU devices each; `options` reach its `main`."""
    with socket.socket() as probe:  # a free port for the coordinator
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "PYTHONPATH": str(_TESTS),
        "JAX_PLATFORMS": "cpu",
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_COMPILATION_CACHE_DIR": jax.config.jax_compilation_cache_dir or "",
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.5",
        "JAX_ENABLE_X64": str(options.pop("x64", 0)),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-m", f"jobs.{job}", json.dumps(options)],
            env=environment | {"JOB": f"127.0.0.1:{port} {processes} {i}" if processes > 1 else ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for i in range(processes)
    ]


def finish(processes: list[subprocess.Popen], timeout: float = 600) -> list[str]:
    """What the processes printed, once all have ended well."""
    try:
        printed = [process.communicate(timeout=timeout)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, text in zip(processes, printed, strict=True):
        assert process.returncode == 0, text
    return printed


def run(job: str, **options) -> list[str]:
    return finish(start(job, **options))


def join() -> dict:
    """In the process: become part of the job; returns the options."""
    from jaxfast.mesh import init_distributed

    if os.environ["JOB"]:
        coordinator, processes, number = os.environ["JOB"].split()
        assert init_distributed(coordinator, int(processes), int(number))
    else:
        assert not init_distributed()
    return json.loads(sys.argv[1])
