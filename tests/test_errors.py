"""What a newcomer does wrong, and what the library says: each row a wrong use and its whole message.

A message says in one line what was given, what is expected and what to do, and comes before anything compiles.
"""

import json
import re
import zipfile
from functools import partial
from types import SimpleNamespace

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pandas as pd
import pytest
import small
from PIL import Image

import jaxfast
from jaxfast import Learner, augment, collab, losses, metrics, mix, optim, schedules, tabular, vision
from jaxfast.training import LRFinder, recipes

IMAGES, LABELS = small.arrays(96, size=8)
ONE_HOT = np.eye(3)[LABELS]

TABLE = pd.DataFrame(
    {
        "age": np.linspace(20, 60, 64),
        "job": ["clerk", "nurse"] * 32,
        "pay": ["high", "low", "low", "high"] * 16,
        "price": np.linspace(1, 2, 64),
        "day": pd.date_range("2020-01-01", periods=64),
    }
)
RATINGS = pd.DataFrame({"user": np.arange(64) % 8, "item": list("abcd") * 16, "rating": np.arange(64) % 5 + 1.0})


class Pixels(nn.Module):
    """One output per pixel and class, where the task has one label per image."""

    @nn.compact
    def __call__(self, x, train=False):
        return nn.Dense(3)(x.astype(jnp.float32))


def write_folder(root, names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[i]).save(root / name)
    return root


def found():
    return LRFinder(np.ones(3), np.ones(3), np.ones(3), 3)


from_arrays = partial(vision.from_arrays, batch_size=8)
from_table = partial(tabular.from_frame, batch_size=8, target="pay", categorical=["job"], continuous=["age"])
from_ratings = partial(collab.from_frame, batch_size=8)
images = partial(small.data, n=96, batch_size=8, size=8)
single = partial(small.learner, devices=jax.devices()[:1])


@pytest.fixture(scope="module")
def c(tmp_path_factory):
    """Things that are right, made before anything goes wrong."""
    root = tmp_path_factory.mktemp("errors")
    pets = write_folder(root / "pets", [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(6)])
    write_folder(root / "cats", ["cat/0.png", "cat/1.png"])
    write_folder(root / "loose", ["0.png"])
    write_folder(root / "split", ["train/cat/0.png", "train/dog/1.png", "test/cat/2.png", "test/dog/3.png"])
    (root / "broken" / "cat").mkdir(parents=True)
    (root / "broken" / "dog").mkdir()
    for kind in ("cat", "dog"):
        for i in range(4):
            (root / "broken" / kind / f"{i}.jpg").write_bytes(b"no image")
    (root / "notes.txt").write_text("some text")
    (root / "papers").mkdir()
    (root / "papers" / "notes.txt").write_text("some text")
    for name, about in (("newer", {"format": "jaxfast-export", "version": 99, "jaxfast": "9.0"}), ("foreign", {})):
        with zipfile.ZipFile(root / f"{name}.jaxfast", "w") as archive:
            archive.writestr("export.json", json.dumps(about))
    content = (root / "newer.jaxfast").read_bytes()
    (root / "cut.jaxfast").write_bytes(content[: len(content) // 2])
    (root / "cut.safetensors").write_bytes(b"\x40\0\0\0\0\0\0\0{")
    frame = pd.DataFrame({"path": [f"{kind}/{i}.png" for kind in ("cat", "dog") for i in range(6)]})
    frame = frame.assign(label=["cat"] * 6 + ["dog"] * 6, age=np.linspace(0, 1, 12), is_valid=[True, False] * 6)
    jax.random.key(0)  # the small program that makes a key is not what is meant by compiling
    learn = single(images())
    learn.save(root / "saved")
    table = tabular.learner(from_table(TABLE), quiet=True)
    ratings = collab.learner(from_ratings(RATINGS), n_factors=2, quiet=True)
    return SimpleNamespace(
        root=root,
        folder=partial(vision.from_folder, pets, size=8, batch_size=4),
        frame=frame,
        from_frame=partial(vision.from_frame, root=pets, size=8, batch_size=4),
        learn=learn,
        other=single(from_arrays(IMAGES, LABELS, classes=["a", "b", "c"])),
        table=table,
        ratings=ratings,
        vision=partial(vision.learner, images(), "resnet18", pretrained=False, quiet=True),
    )


# Each row: what is wrong, how it is written, what the library says ("<reason>" stands for another library's words),
# and as which error where that is no ValueError.
# fmt: off
WRONG_USES = [
    # folders, sizes, shares
    ("no folder", lambda c: vision.from_folder(c.root / "dogs"),
     "there is no folder {root}/dogs: give the folder that holds the images", FileNotFoundError),
    ("a file for a folder", lambda c: vision.from_folder(c.root / "notes.txt"),
     "{root}/notes.txt is a file: give the folder that holds the images (unpack an archive first)"),
    ("a folder without images", lambda c: vision.from_folder(c.root / "papers"),
     "no images in {root}/papers or its folders: looked for .jpg, .jpeg, .png, .gif, .bmp, .webp, .tif, .tiff, "
     ".ppm, .pgm, .jp2, .avif, found 1 other files"),
    ("one class only", lambda c: vision.from_folder(c.root / "cats"),
     "the class folders of {root}/cats hold one class only, 'cat': training needs at least two"),
    ("train and test folders mixed", lambda c: vision.from_folder(c.root / "split"),
     "{root}/split has the folders train and test, which valid=0.2 would mix: say valid='test', or give "
     "{root}/split/train"),
    ("unreadable images", lambda c: vision.from_folder(c.root / "broken", size=8, batch_size=2).train.batch([0]),
     "cannot read 1 of the 1 images of a batch: {root}/broken/cat/0.jpg (not an image file that Pillow knows); "
     "remove them, or pass on_error=\"skip\""),
    ("a percentage for a share", lambda c: c.folder(valid=20),
     "valid=20: give a fraction such as 0.2, an index array, a folder name or a list of file names"),
    ("a share above one", lambda c: c.folder(valid=1.2), "valid=1.2: a fraction lies between 0 and 1, such as 0.2"),
    ("an unknown validation folder", lambda c: c.folder(valid="val"),
     "valid='val': no image lies below that folder; the folders are cat, dog"),
    ("a negative seed", lambda c: c.folder(seed=-1), "seed=-1: give a whole number from 0 on"),
    ("size as text", lambda c: c.folder(size="224"),
     "size='224': give a side in pixels such as 224, or (height, width)"),
    ("presize below size", lambda c: c.folder(presize=4),
     "presize=4 is smaller than size=8: give at least the size, or leave it out"),
    ("no batch", lambda c: c.folder(batch_size=0), "batch_size=0: give a whole number from 1 on"),
    ("a batch larger than the data", lambda c: c.folder(batch_size=64),
     "batch_size=64 is more than the 10 training images: give batch_size=10 or less"),
    ("an unknown resize", lambda c: c.folder(resize="croop"),
     "resize='croop' is unknown: give one of crop, pad, squish; did you mean 'crop'?"),
    ("augment by name", lambda c: c.folder(augment="flip"),
     "augment='flip': give True, False or a function (key, batch) -> batch"),
    ("classes that leave one out", lambda c: c.folder(classes=["cat", "bird"]),
     "the label of dog/0.png is 'dog', but the classes are cat, bird"),
    # arrays and their labels
    ("floats from 0 to 1", lambda c: from_arrays(IMAGES / 255, LABELS),
     "images holds float64, but images are uint8 in 0..255: give (images * 255).round().astype('uint8')"),
    ("channels first", lambda c: from_arrays(IMAGES.transpose(0, 3, 1, 2), LABELS),
     "images have the shape (96, 3, 8, 8): give images.transpose(0, 2, 3, 1)"),
    ("paths for pixels", lambda c: from_arrays(["a.png", "b.png"], [0, 1]),
     "images is no array of pixels: give paths to from_frame, or (image, label) to from_source"),
    ("images of several sizes", lambda c: from_arrays([IMAGES[0], IMAGES[1][:4]], [0, 1]),
     "the images differ in shape: give from_source a list of (image, label) instead"),
    ("fewer labels than images", lambda c: from_arrays(IMAGES, LABELS[:5]),
     "96 images, but 5 labels: give one label for each image"),
    ("no labels", lambda c: from_arrays(IMAGES, None), "labels is None: give one label for each of the 96 images"),
    ("labels that count from one", lambda c: from_arrays(IMAGES, LABELS + 1),
     "labels go up to 3, but none is 0: count from 0 without gaps, or give classes="),
    ("a label out of range", lambda c: from_arrays(IMAGES, LABELS, classes=["red", "green"]),
     "the label of image 2 is 2, but labels count from 0 to 1, for 2 classes: correct it, or give classes="),
    ("missing labels", lambda c: from_arrays(IMAGES, np.where(np.arange(96) < 2, np.nan, LABELS)),
     "the label is missing in image 0, image 1: fill it in or drop it"),
    ("labels as a column", lambda c: from_arrays(IMAGES, LABELS[:, None]),
     "labels of shape (96, 1): give whole numbers (n,) or rows of zeros and ones (n, classes)"),
    # frames and sources
    ("a mistyped column", lambda c: c.from_frame(c.frame, label="lable"),
     "no column 'lable': the columns are path, label, age, is_valid; did you mean 'label'?"),
    ("numbers for names", lambda c: c.from_frame(c.frame, label="age"),
     "the label of row 1 (cat/1.png) is 0.09090909090909091: classes are names or whole numbers; "
     "numbers are predicted by from_arrays and from_frame with task='regression'"),
    ("columns the wrong way round", lambda c: c.from_frame(c.frame, image="label", label="path"),
     "12 of 12 files are not there, such as {root}/pets/cat (row 0): column 'label' holds paths below "
     "root='{root}/pets'", FileNotFoundError),
    ("a path for a frame", lambda c: c.from_frame("labels.csv"),
     "a str is no data frame: give one, such as pandas.read_csv(...) makes"),
    ("a column of booleans by name", lambda c: c.from_frame(c.frame, valid="is_valid"),
     "valid='is_valid' is a column, and text names a folder here: give valid=df['is_valid']"),
    ("no len", lambda c: vision.from_source(iter(range(3))),
     "a source needs len() and [i], a range_iterator lacks them: give a list, for one"),
    ("a data set that is not prepared", lambda c: vision.from_tfds("cifar11", data_dir=c.root / "none"),
     "no data set cifar11 in {root}/none: prepare it with python -m jaxfast.data.tfds_prepare cifar11 --data-dir "
     "{root}/none", FileNotFoundError),
    # a learner: names, weights, settings
    ("an unknown architecture", lambda c: vision.learner(images(), "resnet81"),
     "unknown architecture 'resnet81': give one of " + ", ".join(vision.ARCHITECTURES) + "; did you mean 'resnet18'?"),
    ("a frame for data", lambda c: vision.learner(c.frame, "resnet18"),
     "data is a DataFrame: give what vision.from_folder or another vision.from_... makes"),
    ("a table for images", lambda c: vision.learner(c.table.data, "resnet18", pretrained=False),
     "data is a TableData: give what vision.from_folder or another vision.from_... makes"),
    ("no weight file", lambda c: vision.learner(images(), "resnet18", pretrained="w.pth"),
     "no weight file 'w.pth' for resnet18: give the path of a .pth, .pt or .safetensors file, a repository of "
     "the Hugging Face hub such as 'timm/resnet50.a1_in1k', True for the architecture's documented weights, or "
     "False for random ones", FileNotFoundError),
    ("a truncated weight file", lambda c: vision.learner(images(), "resnet18", pretrained=c.root / "cut.safetensors"),
     "'{root}/cut.safetensors' is damaged or cut short (<reason>): fetch it again"),
    ("something else for weights", lambda c: vision.learner(images(), "resnet18", pretrained=c.root / "notes.txt"),
     "'{root}/notes.txt' is not a weight file: expected torch's format or safetensors, found b'some text'"),
    ("a dropout above one", lambda c: c.vision(dropout=50), "dropout=50: give a number from 0 to below 1"),
    ("a width for a list of widths", lambda c: c.vision(hidden=512),
     "hidden=512: give the widths of the head's layers, such as (512,)"),
    ("a mistyped metric", lambda c: c.vision(metrics=["acuracy"]),
     "unknown metric 'acuracy': give one of accuracy, error_rate, top_5_accuracy, balanced_accuracy, matthews, "
     "perplexity, f1, f1_macro, f1_micro, precision, precision_macro, precision_micro, recall, recall_macro, "
     "recall_micro, f2, f2_macro, f2_micro, f2_samples, accuracy_multi, roc_auc, average_precision, "
     "pixel_accuracy, dice, mean_iou, mse, rmse, mae, r2; did you mean 'accuracy'?"),
    ("a metric that is not made", lambda c: c.vision(metrics=[metrics.top_k]),
     "top_k makes a metric: give top_k(...) or a name"),
    # shapes that do not fit, found by tracing one batch
    ("more classes than there are", lambda c: single(images(), metrics=["top_5_accuracy"]),
     "top_5_accuracy needs at least 5 classes, the model has 3: use accuracy"),
    ("a metric of numbers", lambda c: single(images(), metrics=["rmse"]),
     "metric 'rmse' compares numbers one by one: the outputs have the shape (8, 3), the targets (8,)"),
    ("a metric of multi-hot rows", lambda c: single(images(), metrics=["accuracy_multi"]),
     "metric 'accuracy_multi' takes multi-hot rows as long as the outputs: the outputs have the shape (8, 3), "
     "the targets (8,); for labels use accuracy"),
    ("a metric of a whole batch", lambda c: single(images(), metrics=[lambda outputs, target: outputs.mean()]),
     "metric '<lambda>' gave an array of shape () for a batch of 8: return one value per example"),
    ("a mistyped optimizer", lambda c: c.vision(optimizer="adam"),
     "unknown optimizer 'adam': give one of adamw, sgd, rmsprop; did you mean 'adamw'?"),
    ("an optax optimizer", lambda c: c.vision(optimizer=optax.adam(1e-3)),
     "the optimizer is made already and holds its rate: give its factory, such as optimizer=optax.lion, and the rates "
     "to fit, or a direction without a rate, optimizer=optim.per_group(optax.scale_by_lion())"),
    ("an unknown precision", lambda c: c.vision(precision="fp8"),
     "unknown precision 'fp8': give one of auto, fp32, bf16, fp16"),
    ("a negative decay", lambda c: c.vision(weight_decay=-0.1), "weight_decay=-0.1: give a number from 0 on"),
    ("one momentum", lambda c: c.vision(moms=0.9),
     "moms must be three momenta (start, at the peak of the rate, end), got 1"),
    ("a batch that devices do not divide", lambda c: small.learner(images(batch_size=12)),
     "batch_size 12 does not split over 8 devices: use a multiple of 8"),
    ("a batch that groups do not divide", lambda c: c.vision(norm_groups=3),
     "batch_size 8 does not split into norm_groups=3 groups of batch statistics: use a multiple of 3"),
    ("a loss by name", lambda c: single(images(), loss="mse"),
     "loss='mse' is no function: give one of jaxfast.losses, such as losses.mse"),
    ("a loss of multi-hot rows for labels", lambda c: single(images(), loss=losses.binary_cross_entropy),
     "binary_cross_entropy of outputs (8, 3) takes targets (8, 3), these are int32 (8,): give another loss, or a "
     "model with other outputs"),
    ("a loss of labels for multi-hot rows", lambda c: single(from_arrays(IMAGES, ONE_HOT)),
     "cross_entropy takes one label per example, this data is multi_label: give losses.binary_cross_entropy"),
    ("a loss of numbers for labels", lambda c: single(images(), loss=losses.mse),
     "mse of outputs (8, 3) takes targets (8, 3), these are int32 (8,): give another loss, or a model with other "
     "outputs"),
    ("a mean for a loss", lambda c: single(images(), loss=lambda o, t: losses.cross_entropy(o, t).mean()),
     "the loss <lambda> gives an array of shape () for a batch of 8: return one value per example, without a "
     "mean over the batch"),
    ("a loss that fails", lambda c: single(images(), loss=lambda outputs, target: outputs - target),
     "the loss <lambda> fails on outputs float32 (8, 3) and targets int32 (8,): <reason>"),
    ("a smoothing above one", lambda c: single(images(), loss=partial(losses.cross_entropy, label_smoothing=10)),
     "label_smoothing=10: give a share from 0 to below 1"),
    ("too few outputs", lambda c: Learner(images(), small.module(2), loss=losses.cross_entropy),
     "the model has 2 outputs, the data needs 3: make the model with 3"),
    ("an output per pixel", lambda c: Learner(images(), Pixels(), loss=losses.cross_entropy),
     "cross_entropy of outputs (8, 8, 8, 3) takes targets (8, 8, 8), these are int32 (8,): give another loss, or "
     "a model with other outputs"),
    ("outputs for every pixel", lambda c: Learner(images(), nn.Dense(3), loss=losses.cross_entropy),
     "cross_entropy of outputs (8, 8, 8, 3) takes targets (8, 8, 8), these are int32 (8,): give another loss, or a "
     "model with other outputs"),
    ("a class for a module", lambda c: Learner(images(), Pixels, loss=losses.cross_entropy),
     "the module Pixels is no Linen module: give one, such as ImageClassifier(...)"),
    ("parameters for variables", lambda c: single(images(), variables=c.learn.state.params),
     "variables has the entries body, head: give {'params': ..., ...}"),
    ("variables of another model", lambda c: single(images(), variables={"params": {"body": {}}}),
     "the model ImageClassifier fails on image uint8 (8, 8, 8, 3): <reason>"),
    ("MixUp without classes", lambda c: single(images(augment=mix.mixup())),
     "MixUp turns labels into distributions over classes: say how many classes there are"),
    ("MixUp by nought", lambda c: mix.mixup(3, alpha=0), "alpha is 0: give a number above 0 (MixUp .4, CutMix 1)"),
    ("an augmentation that forgets labels",
     lambda c: single(images(augment=lambda key, batch: {"image": batch["image"]})),
     "augment leaves out target: return all entries, such as {**batch, 'image': ...}"),
    ("a flip above one", lambda c: augment.image_augment(flip=2), "flip is 2: give a number from 0 to 1"),
    # a fit: epochs, rates, recipes
    ("no epochs", lambda c: c.learn.fit(0, 1e-3), "epochs=0: give a whole number from 1 on"),
    ("half an epoch", lambda c: c.learn.fit_one_cycle(0.5, 1e-3), "epochs=0.5: give a whole number from 1 on"),
    ("a negative rate", lambda c: c.learn.fit(1, -1e-3), "a learning rate must be finite and not negative, got -0.001"),
    ("a rate that is no number", lambda c: c.learn.fit(1, float("nan")),
     "a learning rate must be finite and not negative, got nan"),
    ("a rate as text", lambda c: c.learn.fit_one_cycle(1, "1e-3"),
     "lr must be a number, a slice or a sequence of numbers and None, got '1e-3'"),
    ("a slice upside down", lambda c: c.learn.fit_one_cycle(1, slice(1e-2, 1e-4)),
     "slice(first, last) gives the last layers the highest rate, got slice(0.01, 0.0001, None): turn it round"),
    ("a slice from nothing", lambda c: c.learn.fit_one_cycle(1, slice(0, 1e-3)),
     "slice(first, last) is geometric and takes two positive rates, got slice(0, 0.001, None)"),
    ("two rates for three groups", lambda c: c.learn.fit_one_cycle(1, [1e-4, 1e-3]),
     "got 2 rates for 3 parameter groups: give one rate per group, a number or a slice"),
    ("the whole search for a rate", lambda c: c.learn.fit_one_cycle(1, found()),
     "lr is all that lr_find found: give one of its suggestions, such as found.valley"),
    ("a schedule for a rate", lambda c: c.learn.fit_one_cycle(1, schedules.one_cycle(8, 1e-3)),
     "lr is a schedule, which only fit takes: give a number, a slice, or one rate per group"),
    ("a slice to fine-tune", lambda c: c.learn.fine_tune(1, slice(1e-3)),
     "lr=slice(None, 0.001, None): give a number from 0 on"),
    ("no epochs after the frozen one", lambda c: c.learn.fine_tune(0), "epochs=0: give a whole number from 1 on"),
    ("a percentage of the cycle", lambda c: c.learn.fit_one_cycle(1, 1e-3, pct_start=25),
     "pct_start must be at least 0 and at most 1, got 25"),
    ("two momenta", lambda c: c.learn.fit_one_cycle(1, 1e-3, moms=(0.95, 0.85)),
     "moms must be three momenta (start, at the peak of the rate, end), got 2"),
    ("a decay that is no number", lambda c: c.learn.fit(1, 1e-3, weight_decay=float("nan")),
     "weight_decay=nan: give a number from 0 on"),
    ("a recipe without a list", lambda c: c.learn.fit(1, 1e-3, after_epoch=recipes.early_stop()),
     "after_epoch is an early_stop: give a list, such as after_epoch=[early_stop()]"),
    ("a recipe that is not made", lambda c: c.learn.fit(1, 1e-3, after_epoch=[recipes.keep_best]),
     "keep_best makes a recipe: give keep_best(...)"),
    ("a recipe of an unknown metric", lambda c: c.learn.fit(1, 1e-3, after_epoch=[recipes.early_stop("val_loss")]),
     "no metric 'val_loss' to watch: there are train_loss, valid_loss, accuracy; did you mean 'valid_loss'?"),
    ("no patience", lambda c: recipes.early_stop(patience=0), "patience=0: give a whole number from 1 on"),
    # groups, searches, schedules
    ("a group that is not there", lambda c: c.learn.freeze_to(3),
     "freeze_to(3) names none of the model's 3 parameter groups: use -3..2"),
    ("a group by name", lambda c: c.learn.freeze_to("head"),
     "freeze_to('head') names none of the model's 3 parameter groups: use -3..2"),
    ("nothing to freeze", lambda c: c.table.freeze(),
     "TabularNet has one parameter group, so nothing can be frozen: give the module a `groups` attribute with "
     "path prefixes"),
    ("a search downwards", lambda c: c.learn.lr_find(1.0, 1e-3),
     "lr_find goes from start to end with 0 < start < end, got 1 and 0.001"),
    ("an unknown kind of schedule", lambda c: schedules.lr_range(10, kind="log"),
     "kind must be 'exponential' or 'linear', got 'log'"),
    ("a group of one string", lambda c: optim.label_by_prefix(["body", "head"]),
     "group 0 is a string: give a sequence of prefixes, such as ('body',)"),
    # predicting and evaluating
    ("a missing photograph", lambda c: c.learn.predict("rose.jpg"),
     "cannot read image rose.jpg: no such file", FileNotFoundError),
    ("a folder for a photograph", lambda c: c.learn.predict(c.root),
     "cannot read image {root}: it is a folder, give one of its files"),
    ("text for a photograph", lambda c: c.learn.predict(c.root / "notes.txt"),
     "cannot read image {root}/notes.txt: not an image file that Pillow knows"),
    ("an image of floats", lambda c: c.learn.predict(IMAGES[0] / 255),
     "the image holds float64, but images are uint8 in 0..255: give (images * 255).round().astype('uint8')"),
    ("a batch for an image", lambda c: c.learn.predict(IMAGES[:2]),
     "an image of shape (2, 8, 8, 3): give (height, width) or (height, width, 1, 3 or 4)"),
    ("data for a data set", lambda c: c.learn.validate(c.learn.data),
     "an ImageData is no data set: give its .valid or .train"),
    ("no copies to average", lambda c: c.learn.tta(n=0),
     "n is 0: average over at least 1 augmented prediction, a whole number"),
    ("nothing random to average", lambda c: c.table.tta(),
     "the data has no random transforms to average over: make it with augment=True"),
    ("a percentage of confidence", lambda c: c.learn.intervals(level=95),
     "level is 95: give a chance between 0 and 1, such as .95"),
    ("a mistyped layer", lambda c: c.learn.heatmap(IMAGES[0], layer="layr1_0"),
     "the module has no layer 'layr1_0': did you mean 'layer1_0'?"),
    ("a class that is not there", lambda c: c.learn.heatmap(IMAGES[0], target=7),
     "target is 7: give a class from 0 to 2"),
    # files
    ("no checkpoint", lambda c: c.learn.load(c.root / "none"),
     "no checkpoint at {root}/none: give the folder that learn.save wrote", FileNotFoundError),
    ("something else for a checkpoint", lambda c: c.learn.load(c.root / "notes.txt"),
     "{root}/notes.txt is not a checkpoint, or its writing was cut off: load another"),
    ("a checkpoint of other classes", lambda c: c.other.load(c.root / "saved"),
     "{root}/saved does not fit this data: the classes were red, green, blue and are a, b, c now"),
    ("saving over a folder of photographs", lambda c: c.learn.save(c.root / "pets"),
     "{root}/pets holds something else than a checkpoint, which saving would remove: name another", FileExistsError),
    ("saving over a file", lambda c: c.learn.save(c.root / "notes.txt"),
     "{root}/notes.txt holds something else than a checkpoint, which saving would remove: name another",
     FileExistsError),
    ("a text file for an export", lambda c: jaxfast.load_export(c.root / "notes.txt"),
     "{root}/notes.txt is not a jaxfast export: give what learn.export wrote (learn.load reads checkpoints)"),
    ("another zip for an export", lambda c: jaxfast.load_export(c.root / "foreign.jaxfast"),
     "{root}/foreign.jaxfast is not a jaxfast export: give what learn.export wrote (learn.load reads checkpoints)"),
    ("a truncated export", lambda c: jaxfast.load_export(c.root / "cut.jaxfast"),
     "{root}/cut.jaxfast is cut off or damaged (<reason>): copy it again, or export again"),
    ("a newer export", lambda c: jaxfast.load_export(c.root / "newer.jaxfast"),
     "{root}/newer.jaxfast is an export of format 99, written by jaxfast 9.0: jaxfast 0.1.0 reads format 1; "
     "upgrade it with pip install --upgrade jaxfast"),
    ("a checkpoint for an export", lambda c: jaxfast.load_export(c.root / "saved"),
     "{root}/saved is not a jaxfast export: give what learn.export wrote (learn.load reads checkpoints)"),
    # tables and ratings
    ("a mistyped target", lambda c: from_table(TABLE, target="payy"),
     "target= 'payy' not in the table, whose columns are age, job, pay, price, day; did you mean 'pay'?"),
    ("a target with gaps", lambda c: from_table(TABLE.assign(price=[np.nan, *TABLE["price"][1:]]), target="price"),
     "the target 'price' is empty in 1 rows, such as row 0: drop them or fill them in"),
    ("the target as an input", lambda c: from_table(TABLE, categorical=["pay"]),
     "categorical= holds the target 'pay': a model must not see what it predicts"),
    ("a name for a list of names", lambda c: from_table(TABLE, categorical="job"),
     "categorical='job': give a list of columns, categorical=['job']"),
    ("text among numbers", lambda c: from_table(TABLE, continuous=["job"], categorical=[]),
     "column 'job' holds text, such as 'clerk', where numbers are expected: convert it, or name it in "
     "categorical="),
    ("dates as they are", lambda c: tabular.from_frame(TABLE, target="pay", batch_size=8),
     "column 'day' holds dates: take it apart with add_datepart(df, 'day'), or drop it"),
    ("a logarithm of classes", lambda c: from_table(TABLE, log=True),
     "log= and standardize= are for targets that are numbers, pay is single_label"),
    ("a list for a table", lambda c: from_table([1, 2, 3]),
     "a list is not a table: give a data frame (pandas, polars, pyarrow ...) or a dict of columns"),
    ("a layer of no width", lambda c: tabular.learner(c.table.data, layers=[0]),
     "layers=[0]: give the widths of the layers, such as (200, 100)"),
    ("a range for classes", lambda c: tabular.learner(c.table.data, y_range=(0, 1)),
     "y_range bounds numbers, the target pay is single_label: leave it out"),
    ("a row without a column", lambda c: c.table.predict({"age": 30}),
     "the model was trained with 'job' not in the table, whose columns are age"),
    ("ratings for a table", lambda c: tabular.learner(c.ratings.data),
     "data is a RatingsData: give what tabular.from_frame or tabular.from_file makes"),
    ("a mistyped item column", lambda c: from_ratings(RATINGS, item="itme"),
     "item= 'itme' not in the table, whose columns are user, item, rating; did you mean 'item'?"),
    ("ratings outside the range", lambda c: collab.learner(c.ratings.data, y_range=(1, 4)),
     "y_range=(1, 4) must hold the ratings, 1 to 5"),
    ("layers without a network", lambda c: collab.learner(c.ratings.data, layers=[10]),
     "layers and dropout belong to the network: give use_nn=True as well"),
    ("a user of another type", lambda c: c.ratings.predict(("anna", "a")),
     "user is 'anna' of type str: the training rows have whole numbers there"),
    ("an unknown item", lambda c: c.ratings.nearest_items("z"), "item 'z' is not among the 4 of the training rows"),
]
# fmt: on


compilations = []
jax.monitoring.register_event_duration_secs_listener(
    lambda event, seconds, **_: compilations.append(event) if "backend_compile" in event else None
)


def test_a_compilation_is_noticed():
    compilations.clear()
    jax.jit(lambda x: x * len(compilations) + 3)(jnp.arange(5))
    assert compilations


@pytest.mark.parametrize("row", WRONG_USES, ids=lambda row: row[0])
def test_wrong_use(c, row):
    _, wrong, message, *error = row
    compilations.clear()
    with pytest.raises(error[0] if error else ValueError) as caught:
        wrong(c)
    text = str(caught.value)
    pattern = re.escape(message.replace("{root}", str(c.root))).replace("<reason>", ".{3,160}")
    assert re.fullmatch(pattern, text), text
    is_list = text.count(", ") > 15
    assert "\n" not in text and (is_list or len(text.replace(str(c.root), "")) <= 300)
    assert not compilations


def test_nothing_was_written_over(c):
    assert (c.root / "notes.txt").read_text() == "some text"
    assert len(list((c.root / "pets").rglob("*.png"))) == 12
