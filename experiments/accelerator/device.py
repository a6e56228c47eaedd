"""What jax runs on, asked in a process of its own: whoever asks must not hold the accelerator's memory."""

import json
import subprocess
import sys


def describe(python: str = sys.executable) -> dict:
    """{"device": "NVIDIA H200", "platform": "gpu", "count": 1, "versions": {"jax": ...}}.

    Raises RuntimeError, with the last line of jax's own words, if jax does not start.
    """
    done = subprocess.run([python, "-m", __name__], capture_output=True, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(f"jax does not start here: {words[-1]}")
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    import jax

    from experiments.benchmarks.machine import named, versions

    devices = jax.devices()
    found = {"device": named(devices[0]), "platform": devices[0].platform, "count": len(devices)}
    print(json.dumps(found | {"versions": versions()}))


if __name__ == "__main__":
    main()
