"""Each front door from data that are made here to a prediction, and whether it works with the packages at hand.

`python -m tests.bare.smoke DOORS...` prints one line of JSON per door: its name and None, or the error's traceback.
"""

import importlib
import json
import pkgutil
import sys
import tempfile
import traceback
from pathlib import Path

import jax
import numpy as np
import pandas as pd
from PIL import Image

import experiments
import jaxfast
from jaxfast import collab, tabular, text, vision

OPTIONS = {"quiet": True, "devices": jax.devices()[:1]}


def modules(folder: Path) -> None:
    """Every module of the package can be imported."""
    for found in pkgutil.walk_packages(jaxfast.__path__, "jaxfast."):
        importlib.import_module(found.name)


def programs(folder: Path) -> None:
    """Every experiment can be imported, but for the sides in torch where torch is missing."""
    for found in pkgutil.walk_packages(experiments.__path__, "experiments."):
        if found.name.endswith(".__main__"):
            continue
        try:
            importlib.import_module(found.name)
        except ModuleNotFoundError as error:
            if error.name != "torch":
                raise


def images(folder: Path) -> None:
    """JPEG files are read by Pillow alone; a ResNet fits and answers a file."""
    rng = np.random.default_rng(0)
    pixels, names = [], []
    for i in range(20):
        picture = rng.integers(0, 256, (40, 48, 3)).astype(np.uint8)
        picture[..., i % 2] //= 4
        names.append("red" if i % 2 else "green")
        file = folder / "images" / names[-1] / f"{i}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(file)
        pixels.append(picture[:32, :32])
    classes = vision.from_folder(folder / "images", size=32, batch_size=8, valid=0.4).classes
    assert list(classes) == ["green", "red"], classes
    labels = np.array([name == "red" for name in names]).astype(int)
    data = vision.from_arrays(np.stack(pixels), labels, classes=["green", "red"], batch_size=8, valid=0.4)
    learn = vision.learner(data, "resnet18", pretrained=False, hidden=(8,), **OPTIONS)
    finish(learn, str(file), folder, lambda answer: answer.label)


def tables(folder: Path) -> None:
    """A frame of pandas, and the same as a parquet file."""
    frame = pd.DataFrame({"town": ["Aa", "Bo", "Cy"] * 30, "x": np.arange(90) / 90, "rich": ["yes", "no"] * 45})
    frame.to_parquet(folder / "table.parquet")
    data = tabular.from_file(folder / "table.parquet", target="rich", batch_size=16)
    learn = tabular.learner(data, layers=(8,), **OPTIONS)
    finish(learn, {"town": "Bo", "x": 0.5}, folder, lambda answer: answer.label)
    assert len(learn.predict_frame(frame.drop(columns="rich"))) == 90


def ratings(folder: Path) -> None:
    """A factorization, its answers and its recommendations."""
    rows = [(f"u{u}", i, 1 + (u * i) % 5) for u in range(12) for i in range(10)]
    data = collab.from_frame(pd.DataFrame(rows, columns=["user", "item", "rating"]), batch_size=16)
    learn = collab.learner(data, n_factors=4, y_range=(0, 5.5), **OPTIONS)
    finish(learn, ("u3", 4), folder, lambda answer: answer.value)
    assert len(learn.recommend("u3", 2, include_seen=True)) == 2


SMALL = {"emb_size": 8, "hidden_size": 12, "n_layers": 2}
TEXTS = ["alba met bruno and clara", "dario met elena and fabio"] * 30


def language(folder: Path) -> None:
    """A language model of words, and texts that it writes."""
    data = text.from_texts(TEXTS, batch_size=4, bptt=8, min_freq=1)
    learn = text.language_learner(data, config=SMALL, **OPTIONS)
    learn.fit_one_cycle(1, 1e-2)
    learn.save(folder / "saved")
    learn.load(folder / "saved")
    learn.save_encoder(folder / "encoder.safetensors")
    assert learn.predict("alba met", n_words=3, seed=0).startswith("alba met")


def texts(folder: Path) -> None:
    """A classifier of texts, whose batches are streamed."""
    data = text.from_texts(TEXTS, ["early", "late"] * 30, batch_size=4, min_freq=1)
    learn = text.classifier_learner(data, config=SMALL, hidden=(4,), bptt=8, max_len=16, **OPTIONS)
    finish(learn, TEXTS[0], folder, lambda answer: answer.label)


def finish(learn, item, folder: Path, value) -> None:
    """Fit one epoch; what is saved, loaded and exported answers `item` as the learner does."""
    learn.fit_one_cycle(1, 1e-2)
    before = value(learn.predict(item))
    learn.save(folder / "saved")
    learn.fit_one_cycle(1, 1e-2)
    learn.load(folder / "saved")
    assert value(learn.predict(item)) == before
    learn.export(folder / "model.jaxfast")
    exported = value(jaxfast.load_export(folder / "model.jaxfast").predict(item))
    assert exported == before or abs(exported - before) < 1e-5, (exported, before)


DOORS = {door.__name__: door for door in (modules, programs, images, tables, ratings, language, texts)}


def main(names: list[str]) -> None:
    for name in names:
        failed = None
        try:
            with tempfile.TemporaryDirectory() as folder:
                DOORS[name](Path(folder))
        except Exception:
            failed = traceback.format_exc()
        print(json.dumps([name, failed]), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:] or list(DOORS))
