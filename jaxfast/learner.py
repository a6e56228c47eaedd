"""The notebook face: data, a model and a training state, and the functions of the library under short names."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np

from jaxfast import losses, optim, training
from jaxfast import metrics as metrics_
from jaxfast import precision as precision_
from jaxfast.data import loader
from jaxfast.data.prediction import Prediction
from jaxfast.export import save_export
from jaxfast.fits import Fits
from jaxfast.interpret import (
    INTERPRETATIONS,
    Interpretation,
    Interval,
    LabelInterpretation,
    SegmentationInterpretation,
    check_level,
    confidence_interval,
    grad_cam,
)
from jaxfast.mesh import check_batch_size, data_mesh
from jaxfast.messages import first
from jaxfast.training import check

OPTIMIZERS = {"adamw": optim.hyper_adamw, "sgd": optim.hyper_sgd, "rmsprop": optim.hyper_rmsprop}


class Learner(Fits):
    """Trains `module` on `data`: holds a state and calls the functions of `jaxfast.training`.

    `data`: an object with train, valid, batch_size, inputs, classes, augment, prepare and encode, such as
    `vision.from_folder` gives. `loss`: a function (outputs, target) -> (batch,). `metrics`: names from
    `jaxfast.metrics.METRICS` or functions (outputs, target) -> one value per example. `optimizer`: "adamw", "sgd",
    "rmsprop", or a function (hypers, labels=) -> GradientTransformation. `moms`: momentum at the ends and the middle
    of a cycle. `precision`: "auto", "fp32", "bf16", "fp16". `variables`: replaces the module's own initial variables
    (pretrained weights). `train_norm`: norm layers of frozen groups train, as in fastai. `norm_groups`: groups of
    batch statistics (default: as many as devices). `resident`: keep the data on the device ("auto": where it fits).
    `workers`: processes that read training data which does not lie there (0: threads of this one).
    `accumulate`: compute a batch in so many parts. `shard`: split parameters and optimizer state over the devices.
    `checkpoints`: a folder or `training.Checkpoints`; every fit saves there and goes on from there after a restart.
    ValueError for a batch size that devices or groups do not divide, for unknown names, and where data, module, loss
    and metrics do not fit together (`training.check`).
    """

    def __init__(
        self,
        data,
        module: nn.Module,
        *,
        loss: losses.Loss,
        metrics: Sequence[str | Callable] = (),
        optimizer: str | Callable = "adamw",
        weight_decay: float = 0.01,
        moms: Sequence[float] = (0.95, 0.85, 0.95),
        precision: str = "auto",
        seed: int = 0,
        variables: dict | None = None,
        train_norm: bool = True,
        norm_groups: int | None = None,
        resident: bool | str = "auto",
        workers: int = 0,
        accumulate: int = 1,
        shard: bool = False,
        checkpoints: str | Path | training.Checkpoints | None = None,
        devices: Sequence[jax.Device] | None = None,
        quiet: bool = False,
    ):
        check.check_settings(
            data, module, loss=loss, weight_decay=weight_decay, moms=moms, seed=seed, norm_groups=norm_groups,
            resident=resident, accumulate=accumulate,
        )  # fmt: skip
        self.mesh = data_mesh(devices)
        check_batch_size(data.batch_size, self.mesh)
        optimizer = check.check_optimizer(optimizer, OPTIMIZERS)
        if isinstance(checkpoints, (str, Path)):
            checkpoints = training.Checkpoints(checkpoints)
        if checkpoints is not None and norm_groups is None:  # a run keeps its groups on other devices
            norm_groups = (checkpoints.about() or {}).get("norm_groups")
        self.workers, self.data, self.optimizer, self.quiet = workers, data, optimizer, quiet or jax.process_index() > 0
        self.checkpoints = checkpoints
        self.weight_decay, self.moms, self.train_norm = weight_decay, tuple(moms), train_norm
        self.precision = precision_.resolve(precision, self.mesh.devices.flat[0])
        self.module = precision_.cast_module(module, self.precision.dtype)
        self.groups = getattr(module, "groups", None)
        self.frozen_to = 0
        self.history = training.History()
        self._pace = training.Pace()
        self._resident, self._sizes = resident, {}
        self._programs = training.Programs(
            self.module,
            data,
            loss,
            metrics_.resolve(metrics),
            optimizer,
            self.mesh,
            norm_groups or self.mesh.size,
            _lies_on_device(data, resident),
            accumulate,
            shard,
        )
        self._terms = check.check_task(self._programs, variables)

        example = data.train.batch(np.arange(1))
        if data.prepare is not None:
            example = data.prepare(example)
        self.state = training.create_state(
            self.module,
            [np.asarray(example[name]) for name in data.inputs],
            self.optimizer,
            groups=self.groups,
            variables=variables,
            loss_scale=precision_.LossScale.create() if self.precision.loss_scale else None,
            seed=seed,
            mesh=self.mesh,
            shard=shard,
        )

    # Which parameters train, and on which size

    def freeze_to(self, n: int) -> None:
        """Freeze the parameter groups before group `n` (negative: counted from the end). A change of the trained
        parameters starts a fresh optimizer state, as in fastai. ValueError when the model has no such group."""
        if self.groups is None and n:
            raise ValueError(
                f"{type(self.module).__name__} has one parameter group, so nothing can be frozen: "
                "give the module a `groups` attribute with path prefixes"
            )
        part = training.trainable(self.state.params, self.groups, freeze_to=n, train_norm=self.train_norm)
        frozen_to = n % part.n_groups
        if frozen_to != self.frozen_to:
            self.frozen_to = frozen_to
            opt_state = training.fresh_opt_state(
                self.optimizer, part, self.state.params, mesh=self.mesh, shard=self._programs.shard
            )
            self.state = self.state.replace(opt_state=opt_state)

    def freeze(self) -> None:
        """Train the last group only (and the norm layers of the others, with `train_norm`)."""
        self.freeze_to(-1)

    def unfreeze(self) -> None:
        """Train everything."""
        self.freeze_to(0)

    def resize(self, size: int | tuple[int, int], *, presize: int | tuple[int, int] | None = None) -> None:
        """Go on with the same weights on images of another size (progressive resizing, as the course does).

        `size` and `presize` as in `vision.from_folder`; the images are read anew, the split stays. Each size compiles
        its programs once, also when the learner comes back to it. ValueError for data without sizes, and for a
        `presize` below the size.
        """
        if not hasattr(self.data, "resized"):
            raise ValueError(f"{type(self.data).__name__} has no size: only images can be resized")
        data = self.data.resized(size, presize)
        key = data.size, data.train.size
        self._sizes[self.data.size, self.data.train.size] = self._programs, self._pace
        programs, pace = self._sizes.get(key, (None, training.Pace()))
        if programs is None:
            resident = _lies_on_device(data, self._resident)
            programs = dataclasses.replace(self._programs, data=data, resident=resident, _chunks={})
            self._terms = check.check_task(programs, self.state.variables)
        self.data, self._programs, self._pace = programs.data, programs, pace
        for name in ("_feed", "_valid_data"):  # the images of the size before leave the device
            self.__dict__.pop(name, None)

    # Evaluation

    def validate(self, dataset=None) -> dict[str, float]:
        """The loss and the metrics on the validation set, or on `dataset`: {"loss": ..., "accuracy": ...}."""
        return self._programs.validate(self.state.variables, self._valid_data if dataset is None else dataset)

    def get_preds(self, dataset=None) -> tuple[np.ndarray, np.ndarray]:
        """Predictions (probabilities where the loss takes logits) and targets of the validation set, or of
        `dataset`."""
        dataset = self.data.valid if dataset is None else dataset
        return self._programs.outputs(self.state.variables, dataset)[:2]

    def tta(
        self, dataset=None, *, n: int = 4, beta: float = 0.25, crops: int | None = None, zoom: float = 1.0
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predictions averaged over `n` augmented copies, moved to the plain ones by `beta`, and targets (fastai's
        tta).

        The data's own transforms, without MixUp and CutMix. ValueError for data without any, n < 1, beta outside 0..1.
        With `crops` instead the mean over 5 crops of the stored images, which a presize makes larger than what the
        model sees: the centre and the corners; or over 10, their mirror images too. `zoom` enlarges images first
        (`training.tta.corner_crops`).
        """
        dataset = self.data.valid if dataset is None else dataset
        if crops is not None:
            return self._programs.crop_tta(self.state.variables, dataset, n=crops, zoom=zoom)
        return self._programs.tta(self.state.variables, dataset, self.state.key, n=n, beta=beta)

    def intervals(self, dataset=None, *, level: float = 0.95, n: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """Every metric on the validation set, or on `dataset`, with its confidence interval."""
        dataset = self.data.valid if dataset is None else dataset
        check_level(level)
        rows = self._programs.raw_outputs(self.state.variables, dataset)
        return {m.name: confidence_interval(m, *rows, level=level, n=n, seed=seed) for m in self._programs.metrics}

    def predict(self, item) -> Prediction:
        """What the model says of one item: a path, a PIL image, an array, or an example such as `data.valid[3]`."""
        outputs = self._programs.predict(self.state.variables, self._encode(item))
        answer = self.data.decode(np.asarray(outputs)[0])
        return answer.of(item) if hasattr(answer, "of") else answer

    def interpret(self, dataset=None) -> Interpretation | LabelInterpretation | SegmentationInterpretation:
        """Losses and predictions of every validation example: top losses, confusion matrix, most confused classes; of
        any number of labels each, thresholds and a report for each label; of masks, every class's overlap.

        ValueError for a task without classes.
        """
        task = getattr(self.data, "task", "single_label")
        if task not in INTERPRETATIONS:
            raise ValueError(f"an interpretation is of classes, this data is for {task}: see show_results or get_preds")
        dataset = self.data.valid if dataset is None else dataset
        probabilities, targets, losses_ = self._programs.outputs(self.state.variables, dataset)
        return INTERPRETATIONS[task](probabilities, targets, losses_, self.data.classes, dataset)

    def heatmap(self, item, *, layer: str | None = None, target: int | None = None):
        """Grad-CAM: where the evidence for class `target` (default: the predicted one) lies, at block `layer`
        (default: the last)."""
        if "image" not in self.data.inputs:
            raise ValueError(f"a heat map is of an image, this model sees {first(self.data.inputs)}")
        if not hasattr(self.module, "from_features"):
            name = type(self.module).__name__
            raise ValueError(f"a heat map needs a model with `features` and `from_features`, {name} has none")
        image = self._encode(item)["image"][0]
        return grad_cam(self.module, self.state.variables, image, classes=self.data.classes, layer=layer, target=target)

    def show_batch(self, n: int = 9):
        """A figure of `n` training items as the model sees them."""
        return self.data.show_batch(n)

    def show_results(self, n: int = 9, seed: int = 0):
        """A figure of `n` validation items drawn with `seed`: predicted and true label."""
        index = np.random.default_rng(seed).permutation(len(self.data.valid))[:n]
        examples = [self.data.valid[int(i)] for i in index]
        return self.data.show_results(examples, [self.predict(example) for example in examples])

    def summary(self) -> training.Summary:
        """The parameter groups: their layers, how many parameters they have, and whether they train."""
        everything = training.trainable(self.state.params, self.groups).labels
        return training.summarize(
            type(self.module).__name__,
            self.state.params,
            self.groups,
            self._part,
            everything,
            self.precision.dtype.name,
        )

    # Files

    def save(self, path: str | Path) -> None:
        """Write the whole state (parameters, statistics, optimizer, step, key) into the folder `path`."""
        training.save_state(path, self.state, self._about)

    def load(self, path: str | Path) -> None:
        """Take over the state saved at `path`: frozen groups, optimizer and step too. ValueError where it does not
        fit."""
        about = training.read_about(path)
        classes = [str(name) for name in self.data.classes or ()]
        if about.get("classes") != classes:
            there = first(about.get("classes") or ["none"])
            raise ValueError(f"{path} was trained on the classes {there}, the data has {first(classes or ['none'])}")
        before = self.frozen_to, self.train_norm, self.state
        try:
            self.train_norm = about["train_norm"]
            self.freeze_to(about["frozen_to"])
            self.state = training.load_state(path, self.state)
        except ValueError:
            self.frozen_to, self.train_norm, self.state = before
            raise
        self._programs = dataclasses.replace(self._programs, norm_groups=about["norm_groups"], _chunks={})
        self._sizes = {}

    def export(self, path: str | Path) -> None:
        """Write the model as one file that `jaxfast.load_export` predicts with, without its code:
        `export.save_export`."""
        save_export(path, self.module, self.state.variables, self.data, self._programs.loss)

    # What the methods above share

    @property
    def _about(self) -> dict:
        return {
            "frozen_to": self.frozen_to,
            "train_norm": self.train_norm,
            "norm_groups": self._programs.norm_groups,
            "classes": [str(name) for name in self.data.classes or ()],
        }

    @property
    def _part(self) -> training.Trainable:
        return training.trainable(self.state.params, self.groups, freeze_to=self.frozen_to, train_norm=self.train_norm)

    @cached_property
    def _feed(self) -> loader.Resident | loader.Streamed:
        if hasattr(self.data, "feed"):
            return self.data.feed(self.mesh, resident=self._programs.resident)
        if self._programs.resident:
            return loader.Resident.put(self.data.train, self.data.batch_size, self.mesh)
        return loader.Streamed(self.data.train, self.data.batch_size, self.mesh, self.workers)

    @cached_property
    def _valid_data(self):
        if self._programs.resident:
            return loader.padded(self.data.valid, self.data.batch_size, self.mesh)
        return self.data.valid

    def _encode(self, item) -> dict[str, np.ndarray]:
        example = self.data.encode(item)
        return {name: np.asarray(value)[None] for name, value in example.items() if name != "target"}


def _lies_on_device(data, resident: bool | str) -> bool:
    return loader.fits(data.train, data.valid) if resident == "auto" else bool(resident)
