"""The notebook face: data, a model and a training state, and the functions of the library under short names."""

import dataclasses
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxfast import losses, optim, schedules, training
from jaxfast import metrics as metrics_
from jaxfast import precision as precision_
from jaxfast.data import loader
from jaxfast.data.prediction import Prediction
from jaxfast.export import save_export
from jaxfast.interpret import Interpretation, Interval, check_level, confidence_interval, grad_cam
from jaxfast.mesh import check_batch_size, data_mesh
from jaxfast.messages import check_whole, first
from jaxfast.training import check
from jaxfast.training.progress import bar

OPTIMIZERS = {"adamw": optim.hyper_adamw, "sgd": optim.hyper_sgd, "rmsprop": optim.hyper_rmsprop}

Recipes = Sequence[training.recipes.AfterEpoch]
Rates = float | slice | Sequence[float] | optax.Schedule


class Learner:
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
        self._programs = training.Programs(
            self.module,
            data,
            loss,
            metrics_.resolve(metrics),
            optimizer,
            self.mesh,
            norm_groups or self.mesh.size,
            loader.fits(data.train, data.valid) if resident == "auto" else bool(resident),
            accumulate,
            shard,
        )
        check.check_task(self._programs, variables)

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

    # Training

    def lr_find(self, start: float = 1e-7, end: float = 10.0, steps: int = 100) -> training.LRFinder:
        """Try rates from `start` to `end` on a copy of the state; the learner stays as it is. See
        `training.lr_find`."""
        with bar("lr_find", steps, quiet=self.quiet) as update:
            return training.lr_find(
                self.state,
                self._programs.chunk(self._part),
                self._feed,
                start=start,
                end=end,
                steps=steps,
                n_groups=self._part.n_groups,
                weight_decay=self.weight_decay,
                pace=self._pace,
                on_progress=update,
            )

    def fit(self, epochs: int, lr: Rates, *, weight_decay: float | None = None, after_epoch: Recipes = ()) -> None:
        """Train at a constant rate (or by a schedule over all steps, the same for every group) and the first
        momentum."""
        if callable(lr):
            rates = [lr] * self._part.n_groups
        else:
            rates = self._rates(lr)
        self._fit(epochs, rates, self.moms[0], weight_decay, after_epoch)

    def fit_one_cycle(
        self,
        epochs: int,
        lr: Rates,
        *,
        div: float = 25.0,
        div_final: float = 1e5,
        pct_start: float = 0.25,
        moms: Sequence[float] | None = None,
        weight_decay: float | None = None,
        after_epoch: Recipes = (),
    ) -> None:
        """Train with one cycle of rate and momentum (Smith 2018; fastai's fit_one_cycle): `schedules.one_cycle`."""
        steps = self._steps(epochs)
        rates = [
            schedules.one_cycle(steps, rate, pct_start=pct_start, div=div, div_final=div_final)
            for rate in self._rates(lr)
        ]
        momentum = schedules.one_cycle_momentum(steps, moms or self.moms, pct_start=pct_start)
        self._fit(epochs, rates, momentum, weight_decay, after_epoch)

    def fit_flat_cos(
        self,
        epochs: int,
        lr: Rates,
        *,
        div_final: float = 1e5,
        pct_start: float = 0.75,
        weight_decay: float | None = None,
        after_epoch: Recipes = (),
    ) -> None:
        """Train at a flat rate, then a cosine down to lr / div_final (fastai's fit_flat_cos)."""
        steps = self._steps(epochs)
        rates = [
            schedules.flat_cosine(steps, rate, div_final=div_final, pct_start=pct_start) for rate in self._rates(lr)
        ]
        self._fit(epochs, rates, self.moms[0], weight_decay, after_epoch)

    def fit_sgdr(
        self,
        n_cycles: int,
        cycle_len: int,
        lr: Rates,
        *,
        cycle_mult: int = 2,
        weight_decay: float | None = None,
        after_epoch: Recipes = (),
    ) -> None:
        """Train with warm restarts (Loshchilov and Hutter 2017; fastai's fit_sgdr): cycles of cycle_len * cycle_mult**i
        epochs, each a cosine from the rate to 0."""
        epochs = sum(cycle_len * cycle_mult**i for i in range(n_cycles))
        per_cycle = self._steps(cycle_len)
        rates = [schedules.sgdr(n_cycles, per_cycle, rate, cycle_mult=cycle_mult) for rate in self._rates(lr)]
        self._fit(epochs, rates, self.moms[0], weight_decay, after_epoch)

    def fine_tune(
        self,
        epochs: int,
        lr: float = 2e-3,
        *,
        freeze_epochs: int = 1,
        lr_mult: float = 100.0,
        pct_start: float = 0.3,
        div: float = 5.0,
        weight_decay: float | None = None,
        after_epoch: Recipes = (),
    ) -> None:
        """Train the head with the body frozen, then everything with discriminative rates (fastai's fine_tune).

        A cycle of `freeze_epochs` at slice(lr) with pct_start .99; then lr is halved, and `epochs` at slice(lr /
        lr_mult, lr).
        """
        check.check_fine_tune(epochs, freeze_epochs, lr, lr_mult)
        self.freeze()
        self.fit_one_cycle(freeze_epochs, slice(lr), pct_start=0.99, weight_decay=weight_decay, after_epoch=after_epoch)
        self.unfreeze()
        lr = lr / 2
        self.fit_one_cycle(
            epochs,
            slice(lr / lr_mult, lr),
            pct_start=pct_start,
            div=div,
            weight_decay=weight_decay,
            after_epoch=after_epoch,
        )

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

    # Evaluation

    def validate(self, dataset=None) -> dict[str, float]:
        """The loss and the metrics on the validation set, or on `dataset`: {"loss": ..., "accuracy": ...}."""
        return self._programs.validate(self.state.variables, self._valid_data if dataset is None else dataset)

    def get_preds(self, dataset=None) -> tuple[np.ndarray, np.ndarray]:
        """Predictions (probabilities where the loss takes logits) and targets of the validation set, or of
        `dataset`."""
        dataset = self.data.valid if dataset is None else dataset
        return self._programs.outputs(self.state.variables, dataset)[:2]

    def tta(self, dataset=None, *, n: int = 4, beta: float = 0.25) -> tuple[np.ndarray, np.ndarray]:
        """Predictions averaged over `n` augmented copies, moved to the plain ones by `beta`, and targets (fastai's
        tta).

        The data's own transforms, without MixUp and CutMix. ValueError for data without any, n < 1, beta outside 0..1.
        """
        dataset = self.data.valid if dataset is None else dataset
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
        return self.data.decode(np.asarray(outputs)[0])

    def interpret(self, dataset=None) -> Interpretation:
        """Losses and probabilities of every validation example: top losses, confusion matrix, most confused classes."""
        dataset = self.data.valid if dataset is None else dataset
        probabilities, targets, losses_ = self._programs.outputs(self.state.variables, dataset)
        return Interpretation(probabilities, targets, losses_, self.data.classes, dataset)

    def heatmap(self, item, *, layer: str | None = None, target: int | None = None):
        """Grad-CAM: where the evidence for class `target` (default: the predicted one) lies, at block `layer`
        (default: the last)."""
        if "image" not in self.data.inputs:
            raise ValueError(f"a heat map is of an image, this model sees {first(self.data.inputs)}")
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

    def _steps(self, epochs: int) -> int:
        check_whole("epochs", epochs)
        return epochs * (len(self.data.train) // self.data.batch_size)

    def _rates(self, lr: Rates) -> tuple[float, ...]:
        check.check_rates(lr)
        return optim.discriminative(lr, self._part.n_groups)

    def _fit(self, epochs: int, rates, momentum, weight_decay: float | None, after_epoch: Recipes) -> None:
        decay = self.weight_decay if weight_decay is None else weight_decay
        names = [metric.name for metric in self._programs.metrics]
        check.check_fit(after_epoch, names, decay)
        states = training.fit_epochs(
            self.state,
            self._programs.chunk(self._part),
            self._feed,
            training.hyper_rows(self._steps(epochs), rates, momentum, decay),
            epochs,
            validate=lambda variables: self._programs.validate(variables, self._valid_data),
            metrics=names,
            history=self.history,
            after_epoch=after_epoch,
            checkpoints=self.checkpoints,
            about=self._about,
            pace=self._pace,
            quiet=self.quiet,
        )
        for state in states:
            self.state = state
