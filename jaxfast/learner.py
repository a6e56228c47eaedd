"""The notebook face: a task, a training state, and the functions of the library under short names."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import numpy as np
import optax

from jaxfast import losses, optim, training
from jaxfast import metrics as metrics_
from jaxfast import precision as precision_
from jaxfast.data.prediction import Prediction
from jaxfast.export import save_export
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
from jaxfast.messages import check_answer, check_number, check_whole, first
from jaxfast.training import check, identity
from jaxfast.training.progress import bar

OPTIMIZERS = {"adamw": optim.hyper_adamw, "sgd": optim.hyper_sgd, "rmsprop": optim.hyper_rmsprop}

Recipes = Sequence[training.recipes.AfterEpoch]
Rates = float | slice | Sequence[float] | optax.Schedule


def _of_task(name: str, doc: str) -> property:
    """A property that is read from the learner's task and, assigned, replaces the task."""

    def replace(self: "Learner", value: Any) -> None:
        self._replace(**{name: value})

    return property(lambda self: getattr(self.task, name), replace, doc=doc)


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
    `keep_good`: a fit that meets a loss or update which is not finite goes back to its start, or to its last epoch
    whose validation loss was finite and at most ten times the best (False: it stays at the step before).
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
        keep_good: bool = True,
        devices: Sequence[jax.Device] | None = None,
        quiet: bool = False,
    ):
        check.check_settings(
            data, module, loss=loss, weight_decay=weight_decay, moms=moms, seed=seed, norm_groups=norm_groups,
            resident=resident, accumulate=accumulate,
        )  # fmt: skip
        mesh = data_mesh(devices)
        check_batch_size(data.batch_size, mesh)
        given, optimizer = optimizer, check.check_optimizer(optimizer, OPTIMIZERS)
        if isinstance(checkpoints, (str, Path)):
            checkpoints = training.Checkpoints(checkpoints)
        if checkpoints is not None and norm_groups is None:  # a run keeps its groups on other devices
            norm_groups = (checkpoints.about() or {}).get("norm_groups")
        self.checkpoints, self.quiet = checkpoints, quiet or jax.process_index() > 0
        self.keep_good = keep_good
        self.weight_decay, self.moms, self.train_norm = weight_decay, tuple(moms), train_norm
        self.groups, self.frozen_to = getattr(module, "groups", None), 0
        self.history, self.programs = training.History(), training.Programs()
        self._lock, self._fitting = threading.RLock(), None  # the thread of the fit that runs
        kind = precision_.resolve(precision, mesh.devices.flat[0])
        self.task = training.Task(
            data, precision_.cast_module(module, kind.dtype), loss, metrics_.resolve(metrics), optimizer, mesh, kind,
            norm_groups or mesh.size, resident, accumulate, shard, workers,
        )  # fmt: skip
        self._traced = check.check_task(self.task, variables)
        if not isinstance(given, str):
            self._check_optimizer(variables)

        example = self.task.example
        if data.prepare is not None:
            example = data.prepare(example)
        self.state = training.create_state(
            self.module,
            [np.asarray(example[name]) for name in data.inputs],
            self.optimizer,
            groups=self.groups,
            variables=variables,
            loss_scale=precision_.LossScale.create() if kind.loss_scale else None,
            seed=seed,
            mesh=mesh,
            shard=shard,
        )

    def _check_optimizer(self, variables: dict | None) -> None:
        """Raise ValueError for an own optimizer that does not take the model's groups."""
        data, module = self.data, self.module
        batch = self.task.example if data.prepare is None else jax.eval_shape(data.prepare, self.task.example)
        if variables is None:
            variables = jax.eval_shape(module.init, jax.random.key(0), *(batch[name] for name in data.inputs))
        part = training.trainable(variables["params"], self.groups, train_norm=self.train_norm)
        check.check_groups(self.optimizer, part, variables["params"])

    def __repr__(self) -> str:
        data, names = self.data, [str(name) for name in self.data.classes or ()]
        of = f" of {len(names)} classes ({first(names)})" if names else ""
        lines = [
            f"{type(self).__name__}: {self.summary().total}",
            f"{len(data.train):,} training and {len(data.valid):,} validation examples{of}",
        ]
        if self.history.losses:
            lines.append(f"{len(self.history)} epochs, {len(self.history.losses):,} steps")
        if self.history.epochs:
            newest = self.history.epochs[-1]
            values = {
                name: newest[name]
                for name in ("valid_loss", *(metric.name for metric in self.metrics))
                if name in newest
            }
            lines[-1] += ": " + ", ".join(f"{name} {value:.4f}" for name, value in values.items())
        return "\n  ".join(lines)

    # What is trained, and how

    data = _of_task("data", "The data. Other data of the same kind may be assigned; the state stays.")
    loss = _of_task("loss", "The loss, a function (outputs, target) -> (batch,). Another one may be assigned.")
    metrics = _of_task("metrics", "The metrics of validation. Names or functions may be assigned.")
    module = property(lambda self: self.task.module, doc="The Linen module, in the precision that it computes in.")
    optimizer = property(lambda self: self.task.optimizer, doc="The function (hypers, labels=) of its transformation.")
    mesh = property(lambda self: self.task.mesh, doc="The devices.")
    precision = property(lambda self: self.task.precision, doc="The type of the computation.")

    @property
    def state(self) -> training.TrainState:
        """The training state. Read outside a fit it is a value that stays; another thread gets a copy during a fit."""
        if self._fitting in (None, threading.get_ident()):
            return self._state
        with self._lock:
            return training.copy_state(self._state)

    @state.setter
    def state(self, state: training.TrainState) -> None:
        self._state = state

    @property
    def trainable(self) -> training.Trainable:
        """Which parameters train now, and the group of each."""
        return training.trainable(self.state.params, self.groups, freeze_to=self.frozen_to, train_norm=self.train_norm)

    @property
    def evaluator(self) -> training.Evaluator:
        """The model over data sets."""
        return training.Evaluator(self.task, self.programs)

    def _replace(self, **changes: Any) -> None:
        """Another task with the same state. Raises ValueError where it does not fit the model; nothing changes then."""
        if "metrics" in changes:
            changes["metrics"] = metrics_.resolve(changes["metrics"])
        task = self.task.replaced(**changes)
        check.check_settings(
            task.data, task.module, loss=task.loss, weight_decay=self.weight_decay, moms=self.moms, seed=0,
            norm_groups=task.norm_groups, resident=task.resident, accumulate=task.accumulate,
        )  # fmt: skip
        check_batch_size(task.data.batch_size, task.mesh)
        self._traced, self.task = check.check_task(task, self.state.variables), task

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
            self._restart_optimizer()

    def _restart_optimizer(self) -> None:
        new = training.fresh_opt_state(
            self.optimizer, self.trainable, self.state.params, mesh=self.mesh, shard=self.task.shard
        )
        self.state = self.state.replace(opt_state=new)

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
        self.data = self.data.resized(size, presize)

    # Training

    def lr_find(self, start: float = 1e-7, end: float = 10.0, steps: int = 100) -> training.LRFinder:
        """Try rates from `start` to `end` on a copy of the state; the learner stays as it is. See
        `training.lr_find`."""
        program = self.task.training_program(self.trainable, self.programs)
        with bar("lr_find", steps, quiet=self.quiet) as update:
            return training.lr_find(
                self.state,
                program.chunk,
                self.task.source,
                start=start,
                end=end,
                steps=steps,
                n_groups=self.trainable.n_groups,
                weight_decay=self.weight_decay,
                pace=program.pace,
                on_progress=update,
            )

    def fit(
        self,
        epochs: int,
        lr: Rates | Sequence[optax.Schedule] = 1e-3,
        *,
        momentum: float | optax.Schedule | None = None,
        weight_decay: float | None = None,
        after_epoch: Recipes = (),
    ) -> None:
        """Train at constant rates, or by schedules over all steps: one for all groups, or one for each.

        `momentum` may be a schedule too; by default it is the first of `moms`.
        """
        rates = check.check_schedules(lr, self.trainable.n_groups) or self._rates(lr)
        decay = self._decay(weight_decay, after_epoch)
        momentum = self.moms[0] if momentum is None else momentum
        if not callable(momentum):
            check_number("momentum", momentum, 0, 1)
        rows = training.hyper_rows(self._steps(epochs), rates, momentum, decay)
        self._fit(rows, epochs, after_epoch)

    def fit_one_cycle(
        self,
        epochs: int,
        lr: Rates = 1e-3,
        *,
        div: float = 25.0,
        div_final: float = 1e5,
        pct_start: float = 0.25,
        moms: Sequence[float] | None = None,
        part: tuple[int, int] | None = None,
        weight_decay: float | None = None,
        after_epoch: Recipes = (),
    ) -> None:
        """Train with one cycle of rate and momentum (Smith 2018; fastai's fit_one_cycle): `schedules.one_cycle`.

        `part=(start, end)` trains only those epochs of the cycle, counted from 0, `end` not included, so that a cycle
        goes on after something else has changed: `fit_one_cycle(9, lr, part=(0, 5))`, `resize(192)`,
        `fit_one_cycle(9, lr, part=(5, 9))`. ValueError for a part that is none.
        """
        shape = {"moms": moms or self.moms, "pct_start": pct_start, "div": div, "div_final": div_final}
        decay, rates = self._decay(weight_decay, after_epoch), self._rates(lr)
        rows = training.one_cycle_table(self._steps(epochs), rates, decay, **shape)
        start, end = check.check_part(part, epochs)
        each = self._steps(1)
        self._fit(training.cut(rows, start * each, end * each), end - start, after_epoch)

    def fit_flat_cos(
        self,
        epochs: int,
        lr: Rates = 1e-3,
        *,
        div_final: float = 1e5,
        pct_start: float = 0.75,
        weight_decay: float | None = None,
        after_epoch: Recipes = (),
    ) -> None:
        """Train at a flat rate, then a cosine down to lr / div_final (fastai's fit_flat_cos)."""
        shape = {"momentum": self.moms[0], "div_final": div_final, "pct_start": pct_start}
        decay, rates = self._decay(weight_decay, after_epoch), self._rates(lr)
        self._fit(training.flat_cosine_table(self._steps(epochs), rates, decay, **shape), epochs, after_epoch)

    def fit_sgdr(
        self,
        n_cycles: int,
        cycle_len: int,
        lr: Rates = 1e-3,
        *,
        cycle_mult: int = 2,
        weight_decay: float | None = None,
        after_epoch: Recipes = (),
    ) -> None:
        """Train with warm restarts (Loshchilov and Hutter 2017; fastai's fit_sgdr): cycles of cycle_len * cycle_mult**i
        epochs, each a cosine from the rate to 0."""
        shape = {"momentum": self.moms[0], "cycle_mult": cycle_mult}
        decay, rates, each = self._decay(weight_decay, after_epoch), self._rates(lr), self._steps(cycle_len)
        rows = training.sgdr_table(n_cycles, each, rates, decay, **shape)
        self._fit(rows, sum(cycle_len * cycle_mult**i for i in range(n_cycles)), after_epoch)

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
        keep_best: bool | str = False,
        after_epoch: Recipes = (),
    ) -> None:
        """Train the head with the body frozen, then everything with discriminative rates (fastai's fine_tune).

        A cycle of `freeze_epochs` at slice(lr) with pct_start .99; then lr is halved, and `epochs` at slice(lr /
        lr_mult, lr). With `keep_best` the parameters of the best epoch of both cycles are put back at the end, as the
        course does by hand with save and load: True watches valid_loss, or name a metric.
        """
        check.check_fine_tune(epochs, freeze_epochs, lr, lr_mult)
        monitor = keep_best if isinstance(keep_best, str) else "valid_loss"
        best = training.recipes.keep_best(monitor, reset_on_fit=False)  # of both cycles
        if keep_best:
            after_epoch = [*after_epoch, best]
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
        if keep_best and not self.quiet:
            print(f"kept epoch {best.epoch}: {best.monitor} {best.value:.4f}")

    def _steps(self, epochs: int) -> int:
        check_whole("epochs", epochs)
        return epochs * (len(self.data.train) // self.data.batch_size)

    def _rates(self, lr: Rates) -> tuple[float, ...]:
        check.check_rates(lr)
        return optim.discriminative(lr, self.trainable.n_groups)

    def _decay(self, given: float | None, after_epoch: Recipes) -> float:
        """The weight decay of a fit, what it is given being checked."""
        decay = self.weight_decay if given is None else given
        check.check_fit(after_epoch, (*self._traced.terms, *(metric.name for metric in self.metrics)), decay)
        return decay

    def _fit(self, rows: training.Rows, epochs: int, after_epoch: Recipes) -> None:
        check.check_metrics(self.metrics, self.data.valid, self._traced.outputs)
        program = self.task.training_program(self.trainable, self.programs)
        source = self.task.source
        with training.Interrupts(self._lock) as interrupts:
            self._fitting = threading.get_ident()
            try:
                training.fit_epochs(
                    self._state,
                    program.chunk,
                    source,
                    rows,
                    epochs,
                    validate=lambda variables: self.evaluator.validate(variables, self.task.held_out),
                    metrics=[metric.name for metric in self.metrics],
                    terms=self._traced.terms,
                    history=self.history,
                    after_epoch=after_epoch,
                    checkpoints=self.checkpoints,
                    about=self._about,
                    pace=program.pace,
                    publish=self._publish,
                    guard=interrupts.held,
                    keep_good=self.keep_good,
                    quiet=self.quiet,
                )
            finally:
                self._fitting = None

    def _publish(self, state: training.TrainState, history: training.History) -> None:
        self._state, self.history = state, history

    # Evaluation

    def validate(self, dataset=None) -> dict[str, float]:
        """The loss and the metrics on the validation set, or on `dataset`: {"loss": ..., "accuracy": ...}."""
        return self.evaluator.validate(self.state.variables, self.task.held_out if dataset is None else dataset)

    def get_preds(self, dataset=None) -> tuple[np.ndarray, np.ndarray]:
        """Predictions (probabilities where the loss takes logits) and targets of the validation set, or of
        `dataset`."""
        dataset = self.data.valid if dataset is None else dataset
        return self.evaluator.predictions(self.state.variables, dataset)[:2]

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
            return self.evaluator.crop_tta(self.state.variables, dataset, n=crops, zoom=zoom)
        return self.evaluator.tta(self.state.variables, dataset, self.state.key, n=n, beta=beta)

    def intervals(self, dataset=None, *, level: float = 0.95, n: int = 1000, seed: int = 0) -> dict[str, Interval]:
        """Every metric on the validation set, or on `dataset`, with its confidence interval."""
        dataset = self.data.valid if dataset is None else dataset
        check_level(level)
        outputs, targets, _ = self.evaluator.outputs(self.state.variables, dataset)
        interval = lambda metric: confidence_interval(metric, outputs, targets, level=level, n=n, seed=seed)
        return {metric.name: interval(metric) for metric in self.metrics}

    def predict(self, item) -> Prediction:
        """What the model says of one item: a path, a PIL image, an array, or an example such as `data.valid[3]`.

        Raises `NoAnswer` (a ValueError) if what the model computes is not finite.
        """
        outputs = np.asarray(self.evaluator.predict(self.state.variables, self._encode(item)))[0]
        check_answer(outputs)
        answer = self.data.decode(outputs)
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
        probabilities, targets, losses_ = self.evaluator.predictions(self.state.variables, dataset)
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
            self.trainable,
            everything,
            self.precision.dtype.name,
        )

    # Files

    def save(self, path: str | Path) -> None:
        """Write the whole state (parameters, statistics, optimizer, step, key) into the folder `path`."""
        training.save_state(path, self.state, self._about)

    def load(self, path: str | Path) -> None:
        """Take over the state saved at `path`: frozen groups, optimizer and step too.

        Raises ValueError, naming the difference, if it is of another model or of data with other columns, categories,
        users, items, words or classes.
        """
        about = training.read_about(path)
        found = identity.difference(about["data"]["codec"], self._about["data"]["codec"], identity.LEARNT)
        if found is not None:
            raise ValueError(f"{path} does not fit this data: {found}")
        before = self.frozen_to, self.train_norm, self.state
        try:
            self.train_norm, self.frozen_to = about["train_norm"], about["frozen_to"]
            self._restart_optimizer()
            self.state = training.load_state(path, self.state)
        except ValueError:
            self.frozen_to, self.train_norm, self.state = before
            raise
        self.task = self.task.replaced(norm_groups=about["norm_groups"])

    def export(self, path: str | Path) -> None:
        """Write the model as one file that `jaxfast.load_export` predicts with, without its code:
        `export.save_export`."""
        save_export(path, self.module, self.state.variables, self.data, self.loss)

    # What the methods above share

    @property
    def _about(self) -> dict:
        return {
            "frozen_to": self.frozen_to,
            "train_norm": self.train_norm,
            "norm_groups": self.task.norm_groups,
            "data": self.task.identity,
        }

    def _encode(self, item) -> dict[str, np.ndarray]:
        example = self.data.encode(item)
        return {name: np.asarray(value)[None] for name, value in example.items() if name != "target"}
