"""What a machine without network needs, laid together in a folder of limited size: data and packages."""

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from experiments.accelerator.rows import Row
from experiments.benchmarks.process import ROOT
from experiments.data import data_file

SITE = "site"
"""The folder of packages, which the queue puts on Python's path."""
THERE = ROOT / "tests" / "bare" / "packages.txt"
PIXELS = 224


def packages_there(path: Path = THERE) -> set[str]:
    """The distributions of a machine, from a file with one a line, by normalized name."""
    lines = (line.partition("#")[0].partition("==")[0].strip() for line in path.read_text().splitlines())
    return {normalized(line) for line in lines if line}


def normalized(name: str) -> str:
    """A distribution's name as PyPI compares it.

    >>> normalized("elpv_dataset")
    'elpv-dataset'
    """
    return re.sub(r"[-_.]+", "-", name).lower()


def pack(
    rows: Iterable[Row],
    folder: Path,
    budget: int,
    *,
    there: set[str],
    extra: Sequence[str] = (),
    install: Callable[[str, Path], None] | None = None,
    say: Callable[[str], None] = print,
) -> list[str]:
    """Lay together what rows need, in order, as far as it fits into `budget` bytes; gives the rows that lack nothing.

    Files of data are copied into `folder`, packages that are not `there` are installed into `folder`/site, and so are
    the `extra` ones, which may be requirements such as "optax==0.2.9". Photographs are made smaller (`shrink`). Raises
    ValueError if the folder already holds something, or a package has compiled parts.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ValueError(f"{folder} is not empty: name a new folder")
    install = install or pip_install
    (folder / SITE).mkdir(parents=True)
    used, complete, packed = 0, [], set()
    wanted = [("", [], list(extra)), *((row.name, list(row.files), list(row.packages)) for row in rows)]
    for name, files, packages in wanted:
        missing = [package for package in packages if not name or normalized(package) not in there]
        with tempfile.TemporaryDirectory() as place:
            stage = Path(place)
            try:
                for file in set(files) - packed:
                    copy(data_file(file), stage / file)
                for package in set(missing) - packed:
                    install(package, stage / SITE)
            except FileNotFoundError as error:
                say(f"{name:24} {error}")
                continue
            size = size_of(stage)
            if used + size > budget:
                say(f"{name:24} does not fit: {size / 2**20:.1f} MiB, {(budget - used) / 2**20:.1f} are left")
                continue
            shutil.copytree(stage, folder, dirs_exist_ok=True)
            used, packed = used + size, packed | set(files) | set(missing)
        if name:
            complete.append(name)
            say(f"{name:24} {size / 2**20:5.1f} MiB")
    say(f"{used / 2**20:.1f} MiB in {folder}: {len(complete)} rows have what they need")
    return complete


def copy(source: Path, target: Path) -> None:
    """A file, or a folder with all that is in it."""
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)


def size_of(folder: Path) -> int:
    """Bytes of all files under a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def pip_install(requirement: str, site: Path) -> None:
    """Install one package without what it depends on. Raises ValueError if pip fails or the package has compiled
    parts, which run on this machine's Python only."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(site)]
    done = subprocess.run([*command, requirement.replace("_", "-")], capture_output=True, text=True)
    if done.returncode:
        words = done.stderr.strip().splitlines() or ["no word from pip"]
        raise ValueError(f"pip cannot install {requirement}: {words[-1]}")
    compiled = sorted(file.name for file in site.rglob("*.so"))
    if compiled:
        raise ValueError(f"{requirement} has compiled parts ({compiled[0]}): only pure Python travels")
    if (site / "elpv_dataset").exists():
        shrink(site / "elpv_dataset" / "data")


def shrink(data: Path, pixels: int = PIXELS, quality: int = 92) -> None:
    """Make the photographs of `elpv_dataset` JPEGs of `pixels` a side: PNGs of 300 px are 92 MiB, these a quarter."""
    from PIL import Image

    labels = data / "labels.csv"
    for file in sorted((data / "images").glob("*.png")):
        with Image.open(file) as image:
            image.resize((pixels, pixels), Image.Resampling.BICUBIC).save(file.with_suffix(".jpg"), quality=quality)
        file.unlink()
    labels.write_text(labels.read_text().replace(".png", ".jpg"))
