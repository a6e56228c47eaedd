"""Compiled programs that travel: what one call has compiled, a retry need not compile again."""

import tarfile
from pathlib import Path

NAME = "cache.tar"
LIMIT = 15 * 2**20
"""Bytes of programs that are packed: some services give back files of at most 16 MiB."""


def pack(folder: Path, path: Path, limit: int = LIMIT) -> int:
    """Write the newest files of `folder` into the archive `path`, up to `limit` bytes; gives how many."""
    files = [file for file in folder.rglob("*") if file.is_file()]
    total, chosen = 0, []
    for file in sorted(files, key=lambda file: -file.stat().st_mtime):
        total += file.stat().st_size + 1024  # a header, and the rest of the last block
        if total > limit:
            break
        chosen.append(file)
    with tarfile.open(path, "w") as archive:
        for file in chosen:
            archive.add(file, file.relative_to(folder))
    return len(chosen)


def unpack(path: Path, folder: Path) -> int:
    """Read an archive of `pack` into `folder`, if there is one; gives the number of files."""
    if not path.exists():
        return 0
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
        return len(archive.getnames())
