"""Where experiments find outside data: `--data DIR`, or JAXFAST_DATA, or a folder `shared/data` beside the
repository."""

import os
from pathlib import Path


def data_file(name: str, given: str | Path | None = None) -> Path:
    """The path of the data file `name` in `given`, JAXFAST_DATA or the default folder; FileNotFoundError without it."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(given or os.environ.get("JAXFAST_DATA") or beside).expanduser()
    path = folder / name
    if not path.exists():
        raise FileNotFoundError(f"{name} is not in {folder}: give the folder that holds it with --data or JAXFAST_DATA")
    return path
