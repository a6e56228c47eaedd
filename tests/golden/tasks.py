"""Small data of every kind, drawn from fixed seeds: images, masks, points, tables, ratings, texts."""

import numpy as np
import pandas as pd

from jaxfast import collab, tabular, text, vision

BATCH = 8
ROWS = 12 * BATCH + 4
"""80 % of them are ten batches; the rest are two whole batches and one that has to be padded."""
WORDS = "alba bruno clara dario elena fabio gina hugo".split()


def pixels(rows=ROWS, size=16, seed=0):
    """Noise images (rows, size, size, 3) of three classes, whose class's channel is darkened, and their labels."""
    rng, labels = np.random.default_rng(seed), np.arange(rows) % 3
    images = rng.integers(0, 256, (rows, size, size, 3)).astype(np.uint8)
    images[np.arange(rows), :, :, labels] //= 3
    return images, labels


def images(rows=ROWS, size=16, **options):
    found, labels = pixels(rows, size)
    options = {"classes": ["red", "green", "blue"], "batch_size": BATCH, "augment": False} | options
    return vision.from_arrays(found, labels, **options)


def tags(size=16):
    """Images of any number of labels: two bits of the class."""
    found, labels = pixels(size=size)
    rows = np.stack([labels == 0, labels != 1], 1).astype(np.int64)
    return vision.from_arrays(found, rows, classes=["red", "bluish"], batch_size=BATCH, augment=False)


def points(size=16, seed=1):
    """A bright square on grey noise, whose middle (x, y) is the target; random transforms move both."""
    rng = np.random.default_rng(seed)
    found = rng.integers(0, 120, (ROWS, size, size, 3)).astype(np.uint8)
    middles = rng.integers(3, size - 3, (ROWS, 1, 2))
    for image, ((x, y),) in zip(found, middles, strict=True):
        image[y - 3 : y + 3, x - 3 : x + 3] = 250
    return vision.from_arrays(found, middles.astype(np.float32), task="points", batch_size=BATCH)


def masks(size=32, seed=2, batch_size=BATCH):
    """A dark rectangle in each image is class 1; its border's code 9 counts in nothing."""
    rng, (found, _) = np.random.default_rng(seed), pixels(size=size)
    codes = np.zeros((ROWS, size, size), np.uint8)
    for image, code in zip(found, codes, strict=True):
        y, x = rng.integers(2, size // 2, 2)
        code[y - 1 : y + 11, x - 1 : x + 11], code[y : y + 10, x : x + 10] = 2, 1
        image[y : y + 10, x : x + 10] //= 4
    return vision.from_arrays(
        found, codes, classes=["ground", "hole", "edge"], void="edge", task="segmentation", batch_size=batch_size
    )


def table(target, rows=ROWS, seed=3, batch_size=BATCH, **options):
    """Towns, two numbers with empty cells, and a class "rich" or a price that depend on them."""
    rng = np.random.default_rng(seed)
    town, x, noise = rng.choice(["Aa", "Bo", "Cy", "Du"], rows), rng.normal(size=rows), rng.normal(size=rows)
    rich = np.where(np.isin(town, ["Aa", "Bo"]) & (x > -0.5), "yes", "no")
    price = np.exp(0.5 * x + (town == "Aa"))
    frame = pd.DataFrame({"town": town, "x": x, "noise": noise, target: {"rich": rich, "price": price}[target]})
    frame.loc[::11, "noise"] = np.nan
    return tabular.from_frame(frame, target=target, batch_size=batch_size, **options)


def ratings(seed=4):
    """A hundred ratings, 1 to 5, from two hidden tastes of 20 users and 15 items."""
    rng = np.random.default_rng(seed)
    tastes, traits = rng.normal(size=(20, 2)), rng.normal(size=(15, 2))
    user, item = rng.integers(0, 20, ROWS), rng.integers(0, 15, ROWS)
    rating = np.clip(np.round(3 + (tastes[user] * traits[item]).sum(1)), 1, 5)
    frame = pd.DataFrame({"user": [f"u{u:02}" for u in user], "item": 100 + item, "rating": rating})
    return collab.from_frame(frame, batch_size=BATCH)


def sentences(rows=ROWS, seed=5):
    """Texts of sixteen names, four runs through a part of the alphabet, and the half that the runs start in."""
    rng = np.random.default_rng(seed)
    halves = rng.integers(0, 2, rows)
    starts = rng.integers(0, 4, (rows, 4)) + 4 * halves[:, None]
    found = [" ".join(WORDS[(start + i) % 8] for start in row for i in range(4)) for row in starts]
    return found, ["late" if half else "early" for half in halves]


def streams(batch_size=BATCH):
    """Texts to model: ten batches of eight streams, 16 tokens each."""
    return text.from_texts(sentences()[0], batch_size=batch_size, bptt=16, min_freq=1)


def labelled_texts():
    found, labels = sentences()
    return text.from_texts(found, labels, batch_size=BATCH, min_freq=1, buckets=1)
