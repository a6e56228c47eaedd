"""MixUp and CutMix on the device: batch transforms whose targets become distributions over classes.

They follow the other transforms of a batch, and a loss that takes distributions takes them, label smoothing included:

    augment = compose(data.augment, mixup(len(data.classes)))
    learn = vision.learner(dataclasses.replace(data, augment=augment), "resnet18", loss=cross_entropy)

Each example is mixed with the one before it in the batch. The order of the data is random, so that the pairs are; and
the rows stay on their devices but for one at each border, where a random pairing would send every image everywhere.
"""

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax import Array

from jaxfast.augment import Augment

Batch = Mapping[str, Array]


@dataclasses.dataclass(frozen=True)
class Mixup:
    """See `mixup`."""

    classes: int | None
    alpha: float
    entry: str

    def __call__(self, key: Array, batch: Batch) -> dict[str, Array]:
        inputs = _entry(batch, self.entry, "MixUp").astype(jnp.float32)
        share = jax.nn.sigmoid(jnp.abs(_beta_log_odds(key, self.alpha, len(inputs))))  # the larger of the two
        target = _distribution(batch["target"], self.classes, "MixUp")
        return {**batch, self.entry: _blend(inputs, share), "target": _blend(target, share)}


@dataclasses.dataclass(frozen=True)
class Cutmix:
    """See `cutmix`."""

    classes: int | None
    alpha: float

    def __call__(self, key: Array, batch: Batch) -> dict[str, Array]:
        images = _entry(batch, "image", "CutMix")
        if batch["target"].ndim > 2:
            raise ValueError(
                f"CutMix takes a label or a row per image, the targets have the shape {batch['target'].shape}: "
                "use mixup"
            )
        count, height, width = images.shape[:3]
        share_key, x_key, y_key = jax.random.split(key, 3)
        cut = jnp.sqrt(jax.nn.sigmoid(_beta_log_odds(share_key, self.alpha, count)))
        rows, columns = _span(y_key, cut, height), _span(x_key, cut, width)
        box = rows[:, :, None] & columns[:, None, :]
        share = 1 - box.mean((1, 2))  # what is left of the image itself, after the border has cut the box
        target = _distribution(batch["target"], self.classes, "CutMix")
        image = jnp.where(box[..., None], _before(images), images)
        return {**batch, "image": image, "target": _blend(target, share)}


def mixup(classes: int | None = None, alpha: float = 0.4, *, entry: str = "image") -> Mixup:
    """Return `mix(key, batch)`, which blends every example with the one before it: share * own + (1 - share) * other.

    `batch[entry]` comes back as float32, "target" as (batch, ..., classes) for whole-numbered labels, of which there
    are `classes`; multi-hot rows and numbers (float) are blended as they are. The share is drawn for each example from
    Beta(alpha, alpha) and is at least 1/2. Source: Zhang et al. 2018; fastai's MixUp, alpha .4. Raises ValueError for
    alpha <= 0, and for labels without `classes`.
    """
    return Mixup(classes, _checked(alpha), entry)


def cutmix(classes: int | None = None, alpha: float = 1.0) -> Cutmix:
    """Return `mix(key, batch)`, which pastes a box of the image before it into every image of `batch["image"]`.

    The box has a random centre and the share 1 - Beta(alpha, alpha) of the area, less what lies outside; the target is
    blended by the area of each, as by `mixup`. Source: Yun et al. 2019; fastai's CutMix (which cuts one box for a
    batch, this one for each image). Images keep their dtype. Raises ValueError for alpha <= 0, labels without
    `classes`, and masks.
    """
    return Cutmix(classes, _checked(alpha))


@dataclasses.dataclass(frozen=True)
class Composed:
    """Transforms of a batch, one after the other, each with a key of its own (see `compose`)."""

    transforms: tuple[Augment, ...]

    def __call__(self, key: Array, batch: Batch) -> dict[str, Array]:
        for i, transform in enumerate(self.transforms):
            batch = transform(jax.random.fold_in(key, i), batch)
        return batch


def compose(*transforms: Augment | None) -> Composed:
    """The transform of a batch that applies `transforms` (key, batch) -> batch in order; None stands for none."""
    return Composed(tuple(transform for transform in transforms if transform is not None))


def unmixed(augment: Augment | None) -> Augment | None:
    """`augment` without MixUp and CutMix, for pictures and test-time augmentation. None if nothing is left."""
    if isinstance(augment, (Mixup, Cutmix)):
        return None
    if isinstance(augment, Composed):
        left = tuple(map(unmixed, augment.transforms))
        return compose(*left) if any(transform is not None for transform in left) else None
    return augment


def _beta_log_odds(key: Array, alpha: float, count: int) -> Array:
    """log(x / (1 - x)) for `count` draws x from Beta(alpha, alpha).

    In closed form, for `jax.random.beta` is a rejection loop that takes 2 s to compile: y of Beta(alpha + 1, alpha +
    1) by Ulrich's formula (Devroye 1996, "Random variate generation in one line of code"), which is a ratio of two
    Gamma(alpha + 1); each times U**(1 / alpha) is a Gamma(alpha).
    """
    u = jax.random.uniform(key, (4, count), minval=jnp.finfo(jnp.float32).tiny)
    y = 0.5 + 0.5 * jnp.sqrt(1 - u[0] ** (2 / (2 * alpha + 1))) * jnp.cos(2 * jnp.pi * u[1])
    return jnp.log(y) - jnp.log1p(-y) + (jnp.log(u[2]) - jnp.log(u[3])) / alpha


def _before(values: Array) -> Array:
    return jnp.roll(values, 1, axis=0)


def _blend(values: Array, share: Array) -> Array:
    share = share.reshape(-1, *[1] * (values.ndim - 1))
    return share * values + (1 - share) * _before(values)


def _span(key: Array, cut: Array, extent: int) -> Array:
    """Which of `extent` pixels boxes cover that are the share `cut` long, about any pixel: (count, extent)."""
    length = jnp.round(cut * extent)
    start = jax.random.randint(key, cut.shape, 0, extent) - jnp.floor(length / 2)
    pixel = jnp.arange(extent)
    return (pixel >= start[:, None]) & (pixel < (start + length)[:, None])


def _distribution(target: Array, classes: int | None, name: str) -> Array:
    if not jnp.issubdtype(target.dtype, jnp.integer):
        return target.astype(jnp.float32)
    if classes is None:
        raise ValueError(f"{name} turns labels into distributions over classes: say how many classes there are")
    return jax.nn.one_hot(target, classes, dtype=jnp.float32)


def _entry(batch: Batch, entry: str, name: str) -> Array:
    if entry not in batch:
        raise ValueError(f"{name} mixes batch[{entry!r}], the batch has {sorted(batch)}")
    return batch[entry]


def _checked(alpha: float) -> float:
    if not alpha > 0:
        raise ValueError(f"alpha is {alpha}: give a number above 0 (MixUp .4, CutMix 1)")
    return float(alpha)
