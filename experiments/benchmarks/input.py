"""Images per second and core, from JPEG files to arrays on the device, beside Pillow and torch's DataLoader.

The same files on each side: photographs of 500x375 and 2000x1500 pixels, cut at random from those that scikit-image and
scikit-learn bring, and `flowers.zip` (128 px). Pillow is a plain loop, as one writes it: open, convert, resize with the
same filter and crop, asarray. torch's DataLoader does that in its dataset and collates to uint8 tensors. CPU time of
worker processes counts. "packed": shards that `jaxfast.data.pack` has written at 256 px, beside the files that were
packed.
"""

import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from experiments.benchmarks.harness import Workload
from experiments.benchmarks.side import Side, settle
from experiments.data import data_file

BATCH = 50


def photographs(folder: str, count: int, width: int, height: int) -> list[Path]:
    """JPEGs of that size, written where they are not there yet: parts of photographs, some mirrored, qualities 75 to
    95."""
    from PIL import Image
    from skimage import data
    from sklearn.datasets import load_sample_images

    paths = [Path(folder, "photographs", "ab"[i % 2], f"{i:04}.jpg") for i in range(count)]
    if paths[0].exists():
        return paths
    rng = np.random.default_rng(0)
    pictures = [data.astronaut(), data.coffee(), data.chelsea(), data.rocket(), *load_sample_images().images]
    for i, path in enumerate(paths):
        pixels = pictures[i % len(pictures)]
        picture = Image.fromarray(pixels[:, ::-1] if rng.random() < 0.5 else pixels)
        scale = rng.uniform(0.6, 1) * min(picture.width / width, picture.height / height)
        part = width * scale, height * scale
        x, y = rng.uniform(0, picture.width - part[0]), rng.uniform(0, picture.height - part[1])
        picture = picture.resize((width, height), Image.Resampling.BICUBIC, box=(x, y, x + part[0], y + part[1]))
        path.parent.mkdir(parents=True, exist_ok=True)
        picture.save(path, quality=int(rng.integers(75, 96)))
    return paths


def flowers(folder: str, count: int) -> list[Path]:
    """Some of the flowers, taken out where they are not there yet."""
    with zipfile.ZipFile(data_file("flowers.zip")) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")]
        names = names[:: max(1, len(names) // count)][:count]
        if not Path(folder, names[0]).exists():
            archive.extractall(folder, names)
    return [Path(folder, name) for name in names]


def by_pillow(path: Path, side: int | None = None) -> np.ndarray:
    """What a plain loop does with a file: all pixels, or the largest central square at `side` pixels."""
    from PIL import Image

    with Image.open(path) as image:
        picture = image.convert("RGB")
    if side is not None:
        edge = min(picture.size)
        x, y = (picture.width - edge) / 2, (picture.height - edge) / 2
        box = (x, y, x + edge, y + edge)
        picture = picture.resize((side, side), Image.Resampling.BILINEAR, box=box)
    return np.asarray(picture)


def loop(function: Callable[[Path], np.ndarray], paths: Sequence[Path]) -> Side:
    """A side that reads file by file; its number is the last image's mean."""

    def run() -> list[float]:
        for path in paths:
            image = function(path)
        return [image.mean()]

    return Side(run, len(paths))


def files(folder: str, source: str, count: int, **size: int) -> list[Path]:
    keep_memory()
    return flowers(folder, count) if source == "flowers" else photographs(folder, count, **size)


def keep_memory() -> None:
    """Once so much was freed, malloc keeps what images take, as it does beside batches."""
    np.ones(2**25, np.uint8)


def our_files(folder: str, side: int | None, **source) -> Side:
    from jaxfast.data.images import decode, read_image

    paths = files(folder, **source)
    return loop(decode if side is None else partial(read_image, size=side), paths)


def their_files(folder: str, side: int | None, **source) -> Side:
    return loop(partial(by_pillow, side=side), files(folder, **source))


def feed(data, batches: int, workers: int) -> Side:
    """A side that reads on: so many batches, on the device."""
    import jax

    from jaxfast.data.loader import Streamed
    from jaxfast.mesh import data_mesh

    stream, key, step = Streamed(data, BATCH, data_mesh(), workers), jax.random.key(0), [0]

    def run() -> list[float]:
        for _ in range(batches):
            epoch, within = divmod(step[0], len(data) // BATCH)
            jax.block_until_ready(stream.piece(stream.order(key, epoch), within, 1).data)
            step[0] += 1
        return [BATCH]

    return Side(run, batches * BATCH, settle=settle)


def our_loader(folder: str, side: int, batches: int, workers: int, **source) -> Side:
    from jaxfast.data import ImageDataset

    paths = tuple(files(folder, **source))
    count = len(paths)
    return feed(ImageDataset(paths, np.arange(count), np.zeros(count, np.int32), (side, side)), batches, workers)


def our_shards(folder: str, side: int, batches: int, workers: int, **source) -> Side:
    from jaxfast import vision
    from jaxfast.data.pack import pack

    files(folder, **source)
    pack(Path(folder, "photographs"), Path(folder, "shards"), size=256, quiet=True)
    data = vision.from_packed(Path(folder, "shards"), size=side, batch_size=BATCH, valid=[0])
    return feed(data.train, batches, workers)


def their_loader(folder: str, side: int, batches: int, workers: int, **source) -> Side:
    import torch

    torch.set_num_threads(1)
    paths = files(folder, **source)

    class Files(torch.utils.data.Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, i):
            return torch.from_numpy(by_pillow(paths[i], side).copy()), 0

    loader = torch.utils.data.DataLoader(
        Files(), BATCH, shuffle=True, num_workers=workers, persistent_workers=workers > 0, drop_last=True
    )
    epochs = max(1, batches // (len(paths) // BATCH))

    def run() -> list[float]:
        for _ in range(epochs):
            for images, _ in loader:
                held = images
        return [len(held)]

    return Side(run, epochs * len(loader) * BATCH, settle=settle)


def by_file(title: str, side: int | None, count: int, tolerance: float, **source) -> Workload:
    return Workload(
        title, our_files, {"Pillow": their_files}, {"side": side, "count": count, **source},
        {"side": side and 16, "count": 3, **source}, unit="images", tolerance=tolerance,
        files=("flowers.zip",) if source["source"] == "flowers" else (), packages=("skimage", "sklearn"),
        their_packages=(),
    )  # fmt: skip


def by_batch(title: str, ours: Callable[..., Side], side: int, workers: int = 0) -> Workload:
    sizes = {"side": side, "batches": 12, "workers": workers, "count": 200, "source": "photographs"}
    small = {"batches": 1, "count": 51, "side": 16}
    return Workload(
        title, ours, {"DataLoader": their_loader}, sizes | PHOTOGRAPH, sizes | PHOTOGRAPH | small, unit="images",
        packages=("skimage", "sklearn"),
    )  # fmt: skip


PHOTOGRAPH, LARGE = {"width": 500, "height": 375}, {"width": 2000, "height": 1500}
SMALLER = {"source": "photographs", **PHOTOGRAPH}
LARGER = {"source": "photographs", **LARGE}
WORKLOADS = {
    "input": by_batch("JPEGs of 500x375 to batches of 224 px", our_loader, 224),
    "input_workers": by_batch("the same with 2 worker processes", our_loader, 224, workers=2),
    "input_packed": by_batch("the same at 256 px, ours from shards", our_shards, 256),
    "input_decode_500": by_file("decoding 500x375", None, 200, 1e-3, **SMALLER),
    "input_decode_2000": by_file("decoding 2000x1500", None, 24, 1e-3, **LARGER),
    "input_decode_flowers": by_file("decoding flowers, 128 px", None, 400, 1e-3, source="flowers"),
    "input_presize_500": by_file("500x375 to 224 px", 224, 200, 1e-2, **SMALLER),
    "input_presize_500_128": by_file("500x375 to 128 px", 128, 200, 1e-2, **SMALLER),
    "input_presize_2000": by_file("2000x1500 to 224 px", 224, 24, 1e-2, **LARGER),
    "input_presize_flowers": by_file("flowers to 64 px", 64, 400, 1e-2, source="flowers"),
}
