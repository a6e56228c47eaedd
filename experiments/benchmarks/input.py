"""Images per second and core, from JPEG files to arrays on the device, beside Pillow and torch's DataLoader.

    python -m experiments.benchmarks.input
    python -m experiments.benchmarks.input decode_500x375 loader --json input.json

The same files on each side in the same run: photographs of 500x375 and 2000x1500 pixels, cut at random from those that
scikit-image and scikit-learn bring, and `flowers.zip` (128 px) where it is found. Pillow is a plain loop, as one writes
it: open, convert, resize with the same filter and crop, asarray. torch's DataLoader does that in its dataset, collates
to uint8 tensors, and runs in a process of its own. Everything is pinned to one core; images per second are of CPU time,
worker processes counted; both sides take turns, the ratio is the median of the rounds' ratios. `packed`: shards written
by `jaxfast.data.pack` at 256 px, beside Pillow on the files that were packed.

One core of an AMD EPYC that others used too, Pillow 13.0, simplejpeg 1.9, cykooz-resizer 4.0, torch 2.13, 5 rounds:

    decode_500x375          1.9x   1514 and  866      decode_2000x1500        5.6x    154 and   27
    presize_500x375_128     2.2x   1110 and  524      presize_2000x1500_224   5.5x    175 and   32
    presize_500x375_224     2.1x   1026 and  478
    decode_flowers          2.4x  11954 and 4879      presize_flowers_64      2.2x   6815 and 3038
    loader                  1.6x    850 and  526      packed_decode_256       6.4x   2924 and  473
    loader_0_workers        1.8x    891 and  457      packed_loader_256       5.3x   2227 and  451
    loader_2_workers        2.3x    720 and  305      packed_loader_128       3.5x   1898 and  556
                                                      packed_loader_torch     5.2x   2343 and  427

At 500x375 three times Pillow is out of reach: decoding alone is 3.2 times Pillow's decoding and resizing, and resizing
is not free. Packing the files once goes past it.
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from experiments.data import data_file

BATCH = 50


def photographs(folder: Path, n: int, size: tuple[int, int]) -> list[Path]:
    """Write `n` JPEGs of `size` (width, height): parts of photographs, some mirrored, qualities 75 to 95."""
    from skimage import data
    from sklearn.datasets import load_sample_images

    rng = np.random.default_rng(0)
    pictures = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), *load_sample_images().images]
    paths = [folder / f"{'ab'[i % 2]}/{i:04}.jpg" for i in range(n)]
    for i, path in enumerate(paths):
        pixels = pictures[i % len(pictures)]
        picture = Image.fromarray(pixels[:, ::-1] if rng.random() < 0.5 else pixels)
        scale = rng.uniform(0.6, 1) * min(picture.width / size[0], picture.height / size[1])
        width, height = size[0] * scale, size[1] * scale
        x, y = rng.uniform(0, picture.width - width), rng.uniform(0, picture.height - height)
        picture = picture.resize(size, Image.Resampling.BICUBIC, box=(x, y, x + width, y + height))
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=int(rng.integers(75, 96)))
    return paths


def flowers(folder: Path, n: int) -> list[Path]:
    with zipfile.ZipFile(data_file("flowers.zip")) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        names = names[:: len(names) // n][:n]
        archive.extractall(folder, names)
    return [folder / name for name in names]


def by_pillow(path: Path, side: int | None = None) -> np.ndarray:
    """What a plain loop does with a file: all pixels, or the largest central square at `side` pixels."""
    with Image.open(path) as image:
        picture = image.convert("RGB")
    if side is not None:
        edge = min(picture.size)
        x, y = (picture.width - edge) / 2, (picture.height - edge) / 2
        box = (x, y, x + edge, y + edge)
        picture = picture.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.asarray(picture)


def cpu() -> float:
    """CPU seconds of this process and of its running children."""
    ticks = 0
    for child in multiprocessing.active_children():
        fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


def settle() -> None:
    """Wait until what reads ahead has read as far as it may."""
    start = -1.0
    while cpu() - start > 0.01:
        start = cpu()
        time.sleep(0.2)


def rate(run: Callable[[], int]) -> float:
    """Images per CPU second of `run`, which gives how many it has read: as much is read ahead after it as before."""
    settle()
    start = cpu()
    n = run()
    settle()
    return n / (cpu() - start)


def compare(name: str, ours: Callable[[], int], theirs: Callable[[], int], other: str, rounds: int) -> dict:
    ours(), theirs()
    pairs = [(rate(ours), rate(theirs)) for _ in range(rounds)]
    return row(name, pairs, other)


def row(name: str, pairs: list[tuple[float, float]], other: str) -> dict:
    ours, theirs = (statistics.median(column) for column in zip(*pairs, strict=True))
    ratio = statistics.median(a / b for a, b in pairs)
    return {"name": name, "ratio": ratio, "ours": ours, "theirs": theirs, "beside": other, "unit": "images per CPU s"}


def loop(function: Callable[[Path], object], paths: list[Path]) -> Callable[[], int]:
    def run() -> int:
        for path in paths:
            function(path)
        return len(paths)

    return run


def decoding(folder: Path, rounds: int) -> list[dict]:
    """Decoding, and decoding with presizing, file by file."""
    from jaxfast.data.images import decode, read_image

    rows = []
    sets = {
        "500x375": (photographs(folder / "500", 200, (500, 375)), (128, 224)),
        "2000x1500": (photographs(folder / "2000", 24, (2000, 1500)), (224,)),
    }
    try:
        sets["flowers"] = (flowers(folder / "flowers", 400), (64,))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
    for kind, (paths, sides) in sets.items():
        rows.append(compare(f"decode_{kind}", loop(decode, paths), loop(by_pillow, paths), "Pillow", rounds))
        for side in sides:
            ours, theirs = (lambda path, f=f, side=side: f(path, side) for f in (read_image, by_pillow))
            rows.append(compare(f"presize_{kind}_{side}", loop(ours, paths), loop(theirs, paths), "Pillow", rounds))
    return rows


def feed(data, batches: int, workers: int = 0) -> Callable[[], int]:
    """A function that reads on: so many batches, on the device."""
    import jax

    from jaxfast.data.loader import Streamed
    from jaxfast.mesh import data_mesh

    stream, key, step = Streamed(data, BATCH, data_mesh(), workers), jax.random.key(0), [0]

    def run() -> int:
        for _ in range(batches):
            epoch, within = divmod(step[0], len(data) // BATCH)
            jax.block_until_ready(stream.piece(stream.order(key, epoch), within, 1).data)
            step[0] += 1
        return batches * BATCH

    return run


def images_of(folder: Path, side: int):
    """All images of a folder as a data set, for the loader."""
    from jaxfast.data import ImageDataset, image_files

    files = image_files(folder)
    return ImageDataset(files, np.arange(len(files)), np.zeros(len(files), np.int32), (side, side))


def loading(folder: Path, rounds: int) -> list[dict]:
    """The whole loader, shuffled batches on the device, beside Pillow's loop and the DataLoader."""
    paths, side = photographs(folder / "500", 200, (500, 375)), 224
    data, rows = images_of(folder / "500", side), []

    def stacks() -> int:
        for start in range(0, len(paths), BATCH):
            np.stack([by_pillow(path, side) for path in paths[start : start + BATCH]])
        return len(paths)

    rows.append(compare("loader", feed(data, 12), stacks, "Pillow", rounds))
    for workers in (0, 2):
        ours, theirs = feed(data, 12, workers), lambda w=workers: torch_rate(folder / "500", side, w)
        ours()
        pairs = [(rate(ours), theirs()) for _ in range(rounds)]
        rows.append(row(f"loader_{workers}_workers", pairs, f"DataLoader, {workers} workers"))
    return rows


def packed(folder: Path, rounds: int) -> list[dict]:
    """Shards of 256 px, read image by image and by the loader."""
    from jaxfast import vision
    from jaxfast.data.images import decode
    from jaxfast.data.pack import pack

    paths = photographs(folder / "500", 200, (500, 375))
    pack(folder / "500", folder / "shards", size=256, quiet=True)
    read = lambda side: vision.from_packed(folder / "shards", size=side, batch_size=BATCH, valid=[0]).train
    pillow = lambda side: loop(lambda path: by_pillow(path, side), paths)
    items = read(256).items
    ours = loop(lambda i: decode(items[i]), range(len(paths)))
    rows = [compare("packed_decode_256", ours, pillow(256), "Pillow on the files", rounds)]
    for side in (256, 128):
        rows.append(compare(f"packed_loader_{side}", feed(read(side), 12), pillow(side), "Pillow on the files", rounds))
    run = feed(read(256), 12)
    run()
    pairs = [(rate(run), torch_rate(folder / "500", 256, 0)) for _ in range(rounds)]
    return [*rows, row("packed_loader_torch", pairs, "DataLoader on the files, 0 workers")]


def torch_rate(folder: Path, side: int, workers: int) -> float:
    """Images per CPU second of torch's DataLoader, measured in another process."""
    command = [sys.executable, "-m", "experiments.benchmarks.input", "--torch", folder, str(side), str(workers)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def _torch_process(folder: str, side: int, workers: int) -> None:
    import torch

    torch.set_num_threads(1)
    np.ones(2**25, np.uint8)

    class Files(torch.utils.data.Dataset):
        paths = sorted(Path(folder).rglob("*.jpg"))

        def __len__(self):
            return len(self.paths)

        def __getitem__(self, i):
            return torch.from_numpy(by_pillow(self.paths[i], side).copy()), 0

    loader = torch.utils.data.DataLoader(
        Files(), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=True
    )
    read = lambda: sum(len(images) for images, _ in loader)
    read()
    print(rate(lambda: read() + read() + read()))


ROWS = {"decoding": decoding, "loading": loading, "packed": packed}
"""What measures the rows of the report, by group."""


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(
        prog="python -m experiments.benchmarks.input",
        description=__doc__,
        formatter_class=argparse.RawTextHelpFormatter,
    )
    parser.add_argument("groups", nargs="*", choices=[[], *ROWS], help="groups of rows to measure (default: all)")
    parser.add_argument("--rounds", type=int, default=7, help="how often both sides take turns (default: 7)")
    parser.add_argument("--core", type=int, default=0, help="the core that everything runs on (default: 0)")
    parser.add_argument("--json", metavar="FILE", help="write the rows there, too")
    parser.add_argument("--torch", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.torch:
        return _torch_process(options.torch[0], *map(int, options.torch[1:]))
    os.sched_setaffinity(0, {options.core})
    np.ones(2**25, np.uint8)  # once so much was freed, malloc keeps what images take, as it does beside batches
    rows = []
    for group in options.groups or ROWS:
        with tempfile.TemporaryDirectory() as folder:
            for r in ROWS[group](Path(folder), options.rounds):
                rows.append(r)
                ours = f"{r['name']:22} {r['ratio']:5.2f}x  {r['ours']:6.0f} {r['unit']}"
                print(f"{ours}, {r['beside']} {r['theirs']:6.0f}", flush=True)
    if options.json:
        Path(options.json).write_text(json.dumps(rows, indent=2) + "\n")
    return rows


if __name__ == "__main__":
    main()
