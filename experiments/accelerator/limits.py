"""Row 0 of the queue: versions, and what the device can do at best (`experiments.benchmarks.machine`)."""

import argparse
import json
from pathlib import Path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.accelerator.limits", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for result.json")
    parser.add_argument("--small", action="store_true", help="tiny sizes: does it work?")
    options = parser.parse_args(arguments)
    import jax

    from experiments.benchmarks.machine import limits

    side = limits(options.small)
    side.run()
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    result = side.counted | {"count": jax.device_count(), "memory": memory}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
