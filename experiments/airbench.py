"""airbench94 itself, as its package publishes it, on the images of `cifar10.npz`: accuracies and seconds of its runs.

    pip install airbench torchvision
    python -m experiments.cifar10 --full --seeds 3 --airbench

The package (Jordan 2024, arXiv:2404.00498; measured against 0.1.8) trains on a CUDA GPU. It runs in a process of its
own, before JAX takes the card's memory. Its loader reads `cifar10/train.pt` and `cifar10/test.pt` of the current folder
and downloads the original pixels where these are missing; here they hold the JPEG pixels that our side trains on.

`warmup94` comes first, as its authors do it, then `train94` once for each seed. Seconds are those of its own timer
(CUDA events), which it prints: "seconds_training" holds the whitening and the training steps, "seconds" also the
prediction of the test images over six views of each. The validation after each epoch is not timed.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("torch", "torchvision", "airbench")
PATIENCE = 300  # seconds until a process that hangs is ended


def refusal() -> str | None:
    """Why airbench cannot run here, in one sentence; None where it can."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return f"--airbench needs what is not installed: pip install {' '.join(missing)}"
    # torch is asked in a process of its own: its CUDA libraries stay out of the one that JAX computes in.
    code = f"import {', '.join(PACKAGES)}; print(torch.cuda.is_available())"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    if found.returncode:
        return f"--airbench needs {', '.join(PACKAGES)}, and importing them fails: {_last_line(found.stderr)}"
    if _last_line(found.stdout) != "True":
        return "--airbench needs a CUDA GPU, and torch does not find one: leave the option out on this machine"
    return None


def prepare(path: Path, folder: Path) -> None:
    """Write `folder`/cifar10/train.pt and test.pt as airbench's loader reads them: the pixels and labels of `path`.

    images: uint8 (n, 32, 32, 3); labels: int64 (n,); classes: their names.
    """
    import torch

    from experiments.one_cycle import read

    with np.load(path) as file:
        classes = [str(name) for name in file["class_names"]]
    (folder / "cifar10").mkdir(parents=True, exist_ok=True)
    for split in ("train", "test"):
        images, labels = read(path, split, slice(None))
        images = np.ascontiguousarray(images[:, 4:-4, 4:-4])
        content = {"images": torch.from_numpy(images), "labels": torch.from_numpy(labels), "classes": classes}
        torch.save(content, folder / "cifar10" / f"{split}.pt")


def measure(folder: Path, seeds: int, **options) -> list[dict]:
    """Warm airbench up and train with every seed on the files in `folder`; `options` are those of `train94`."""
    import airbench
    import torch

    runs = []
    with contextlib.chdir(folder):
        airbench.warmup94(**options)
        for seed in range(seeds):
            torch.manual_seed(seed)
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                airbench.train94(**options)
            print(printed.getvalue(), end="", flush=True)
            runs.append(parse(printed.getvalue()))
    return runs


def parse(printed: str) -> dict:
    """What the table that `train94` prints says at its end. Raises ValueError if its last row is not that of a run."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in printed.splitlines() if line.startswith("|")
    ]
    table = [dict(zip(rows[0], row, strict=True)) for row in rows[1:]]
    if len(table) < 2 or table[-1].get("epoch") != "eval":
        raise ValueError(f"airbench's last row is not that of its final evaluation: {printed.splitlines()[-3:]}")
    *_, epoch, last = table
    return {
        "accuracy": float(last["val_acc"]),
        "accuracy_tta": float(last["tta_val_acc"]),
        "seconds_training": float(epoch["total_time_seconds"]),
        "seconds": float(last["total_time_seconds"]),
    }


def run(path: Path, seeds: int, module: str = "experiments.airbench") -> dict:
    """The result of airbench in a process of its own, or {"error": why there is none}."""
    command = [sys.executable, "-m", module, str(Path(path).resolve()), "--seeds", str(seeds)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}  # JAX reads images there, and leaves the card alone
    try:
        done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=PATIENCE)
    except subprocess.TimeoutExpired:
        return {"error": f"airbench did not end within {PATIENCE} s"}
    sys.stderr.write(done.stderr)
    if done.returncode:
        return {"error": f"airbench ended with status {done.returncode}: {_last_line(done.stderr)}"}
    return json.loads(_last_line(done.stdout))


def summary(runs: list[dict]) -> dict:
    """The means of the runs, the runs, and what they ran on."""
    import torch

    return {
        **{name: float(np.mean([run[name] for run in runs])) for name in runs[0]},
        "runs": runs,
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "versions": {name: importlib.metadata.version(name) for name in ("airbench", "torch")},
    }


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it says nothing"])[-1]


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.airbench", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("path", type=Path, help="cifar10.npz")
    parser.add_argument("--seeds", type=int, default=1, help="runs (%(default)s)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="airbench-") as folder, contextlib.redirect_stdout(sys.stderr):
        prepare(options.path, Path(folder))
        runs = measure(Path(folder), options.seeds)
    print(json.dumps(summary(runs)))


if __name__ == "__main__":
    main()
