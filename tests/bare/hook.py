"""Run a program as if only the packages of `packages.txt` were installed.

From the folder of the repository, `python -m tests.bare.hook MODULE ARGUMENTS...` is `python -m MODULE ARGUMENTS...` on
the bare machine: other distributions of this environment are neither importable nor known to `importlib.metadata`, in
the program and in the Python processes that it starts. A package that the list names and this environment lacks stays
missing, and versions are those of this environment.
"""

import importlib.metadata
import os
import re
import sys
from collections.abc import Sequence
from importlib.machinery import PathFinder
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parents[1]
OURS = "jaxfast"
"""The repository's own distribution, where it is installed."""


def normalized(name: str) -> str:
    """The name of a distribution in the form that package indexes compare.

    >>> normalized("array_record"), normalized("Jinja2")
    ('array-record', 'jinja2')
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def packages() -> set[str]:
    """The normalized names of the distributions that the bare machine has."""
    lines = (FOLDER / "packages.txt").read_text(encoding="utf-8").splitlines()
    return {normalized(line) for line in lines if line and not line.startswith("#")}


def refused(allowed: set[str]) -> set[str]:
    """The top-level modules of this environment that no distribution in `allowed` brings."""
    owners = importlib.metadata.packages_distributions()
    return {module for module, names in owners.items() if not allowed & {normalized(name) for name in names}}


def install() -> None:
    """Hide what the bare machine does not have from this process's imports and from `importlib.metadata`.

    What is imported already stays imported.
    """
    allowed = packages() | {OURS}
    hidden = refused(allowed)

    class Bare(PathFinder):
        """The finder of the folders in `sys.path`, for the distributions in `allowed`."""

        @classmethod
        def find_spec(cls, fullname, path=None, target=None):
            return None if fullname.partition(".")[0] in hidden else super().find_spec(fullname, path, target)

        @classmethod
        def find_distributions(cls, *args, **kwargs):
            found = super().find_distributions(*args, **kwargs)
            return (dist for dist in found if normalized(dist.metadata["Name"]) in allowed)

    sys.meta_path[:] = [Bare if finder is PathFinder else finder for finder in sys.meta_path]


def environment() -> dict[str, str]:
    """The variables with which a Python process, and those that it starts, install the hook before anything else."""
    paths = [str(FOLDER / "site"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths)}


def main(arguments: Sequence[str]) -> None:
    """Become `python -m ARGUMENTS`, with the hook."""
    if not arguments:
        sys.exit("usage: python -m tests.bare.hook MODULE ARGUMENTS...")
    os.execve(sys.executable, [sys.executable, "-m", *arguments], environment())


if __name__ == "__main__":
    main(sys.argv[1:])
