"""Test-time augmentation: the mean prediction over random copies of an example, or over crops of its corners."""

from collections.abc import Callable, Iterable, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int, Key

from jaxfast.augment import resample, zoom_matrix
from jaxfast.mesh import to_host
from jaxfast.training.state import TTA

Batch = Mapping[str, Array]

# Where a crop lies, (x, y): the middle and the corners of what is there to see.
_PLACES = ((0, 0), (-1, -1), (1, -1), (-1, 1), (1, 1))


def make_tta(predict: Callable, augment: Callable, prepare: Callable | None = None) -> Callable:
    """The compiled function `program(variables, batch, key, n, beta) -> predictions` that `tta` calls.

    `predict(variables, batch)` gives predictions (activated outputs) for a batch as it reaches the module, which is
    what the transforms `augment(key, batch)` of training and `prepare(batch)` of evaluation make. `n` and `beta` are
    traced.
    """

    @jax.jit
    def program(variables, batch, key, n, beta):
        plain = predict(variables, batch if prepare is None else prepare(batch))

        def add(i, total):
            return total + predict(variables, augment(jax.random.fold_in(key, i), batch))

        augmented = jax.lax.fori_loop(0, n, add, jnp.zeros_like(plain)) / n
        return augmented + beta * (plain - augmented)

    return program


def tta(
    program: Callable,
    variables: dict,
    batches: Iterable[dict],
    key: Key[Array, ""],
    *,
    n: int = 4,
    beta: float = 0.25,
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets of `batches` on the host: the mean over `n` augmentations, moved to the plain prediction
    by `beta` (fastai's Learner.tta: n 4, beta .25; beta 1 is the plain prediction alone).

    `batches` have a "mask" entry that is False on padded rows. ValueError for n < 1 and beta outside 0..1.
    """
    if n < 1 or n != int(n):
        raise ValueError(f"n is {n}: average over at least 1 augmented prediction, a whole number")
    if not 0 <= beta <= 1:
        raise ValueError(f"beta is {beta}: give the weight of the plain prediction, 0 to 1")
    key = jax.random.fold_in(key, TTA)
    n, beta = np.int32(n), np.float32(beta)
    return _collect(
        (program(variables, batch, jax.random.fold_in(key, i), n, beta), batch) for i, batch in enumerate(batches)
    )


def corner_crops(
    size: int | tuple[int, int], zoom: float = 1.0
) -> Callable[[Int[Array, ""] | int, Batch], dict[str, Array]]:
    """Return `crop(i, batch)`, which cuts crop i of 0..9 out of every image of `batch["image"]`.

    (B, H, W, C), uint8 or float in 0..255, to float32 (B, *size, C): the centre (i = 0), the four corners (1 to 4), and
    the mirror images of these five (5 to 9), as in Krizhevsky et al. 2012, section 4.1. `zoom` enlarges the crops
    towards their corners, so that those of images no larger than `size` differ too (fastai v1's TTA: 1.35). i may be
    traced. Other entries are passed on untouched. ValueError for images smaller than `size`, for a zoom outside 1..10,
    and for one of 1 where the images are no larger than `size`: all crops would be the same.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if not 1 <= zoom <= 10:
        raise ValueError(f"zoom is {zoom}: give a number from 1 to 10")
    half = (width - 1) / 2, (height - 1) / 2

    def crop(i, batch):
        images = batch["image"]
        down, right = images.shape[1] - height, images.shape[2] - width
        stored = f"images of {images.shape[1]}x{images.shape[2]} pixels"
        if down < 0 or right < 0:
            raise ValueError(f"{stored} are smaller than the crops of {height}x{width}: give a smaller size")
        if zoom == 1 and down == right == 0:
            raise ValueError(
                f"{stored} have one crop of {height}x{width}: give them a larger presize=, or a zoom above 1"
            )
        x, y = jnp.asarray(_PLACES, jnp.float32)[i % 5]
        # A whole number of pixels, so that without zoom nothing is interpolated; the centre is that of `center_crop`.
        left, top = jnp.floor(right * (x + 1) / 2), jnp.floor(down * (y + 1) / 2)
        matrix = zoom_matrix(zoom, x, y, half)
        mirror = jnp.where(i >= 5, -1.0, 1.0)
        matrix = matrix * jnp.stack([mirror, jnp.float32(1), jnp.float32(1)])
        cut = jax.vmap(lambda image: resample(image, matrix, (height, width), left, top))
        return {**batch, "image": cut(images)}

    return crop


def make_crop_tta(predict: Callable, crop: Callable) -> Callable:
    """The compiled function `program(variables, batch, n) -> predictions` that `crop_tta` calls.

    `predict` as in `make_tta`; `crop(i, batch)` makes view i of a batch, for i < n, which is traced.
    """

    @jax.jit
    def program(variables, batch, n):
        first = predict(variables, crop(0, batch))
        return jax.lax.fori_loop(1, n, lambda i, total: total + predict(variables, crop(i, batch)), first) / n

    return program


def crop_tta(
    program: Callable, variables: dict, batches: Iterable[dict], *, n: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and targets of `batches` on the host: the mean over `n` crops, 5 (centre and corners) or 10 (and
    their mirror images). `batches` as in `tta`; ValueError for another n."""
    if n not in (5, 10):
        raise ValueError(f"crops={n!r}: give 5 (centre and corners) or 10 (and their mirror images)")
    return _collect((program(variables, batch, np.int32(n)), batch) for batch in batches)


def _collect(results: Iterable[tuple[Array, dict]]) -> tuple[np.ndarray, np.ndarray]:
    """(predictions, targets) of real rows on the host, each batch fetched after the next one is dispatched."""
    waiting, parts = [], []

    def fetch():
        predictions, target, mask = to_host(waiting.pop(0))
        parts.append((predictions[mask], target[mask]))

    for predictions, batch in results:
        waiting.append((predictions, batch["target"], batch["mask"]))
        if len(waiting) > 1:
            fetch()
    while waiting:
        fetch()
    predictions, targets = (np.concatenate(column) for column in zip(*parts, strict=True))
    return predictions, targets
