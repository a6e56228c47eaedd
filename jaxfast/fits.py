"""How a learner trains: `lr_find`, and every schedule as a method."""

from collections.abc import Sequence

import optax

from jaxfast import optim, schedules, training
from jaxfast.messages import check_whole
from jaxfast.training import check
from jaxfast.training.progress import bar

Recipes = Sequence[training.recipes.AfterEpoch]
Rates = float | slice | Sequence[float] | optax.Schedule


class Fits:
    """The methods of `Learner` that train its state."""

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
        part: tuple[int, int] | None = None,
        weight_decay: float | None = None,
        after_epoch: Recipes = (),
    ) -> None:
        """Train with one cycle of rate and momentum (Smith 2018; fastai's fit_one_cycle): `schedules.one_cycle`.

        `part=(start, end)` trains only those epochs of the cycle, counted from 0, `end` not included, so that a cycle
        goes on after something else has changed: `fit_one_cycle(9, lr, part=(0, 5))`, `resize(192)`,
        `fit_one_cycle(9, lr, part=(5, 9))`. ValueError for a part that is none.
        """
        steps = self._steps(epochs)
        rates = [
            schedules.one_cycle(steps, rate, pct_start=pct_start, div=div, div_final=div_final)
            for rate in self._rates(lr)
        ]
        momentum = schedules.one_cycle_momentum(steps, moms or self.moms, pct_start=pct_start)
        self._fit(epochs, rates, momentum, weight_decay, after_epoch, part)

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
        keep_best: bool | str = False,
        after_epoch: Recipes = (),
    ) -> None:
        """Train the head with the body frozen, then everything with discriminative rates (fastai's fine_tune).

        A cycle of `freeze_epochs` at slice(lr) with pct_start .99; then lr is halved, and `epochs` at slice(lr /
        lr_mult, lr). With `keep_best` the parameters of the best epoch of both cycles are put back at the end, as the
        course does by hand with save and load: True watches valid_loss, or name a metric.
        """
        check.check_fine_tune(epochs, freeze_epochs, lr, lr_mult)
        best = training.recipes.keep_best(*([keep_best] if isinstance(keep_best, str) else []))
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
        return optim.discriminative(lr, self._part.n_groups)

    def _fit(self, epochs: int, rates, momentum, weight_decay: float | None, after_epoch: Recipes, part=None) -> None:
        decay = self.weight_decay if weight_decay is None else weight_decay
        names = [metric.name for metric in self._programs.metrics]
        check.check_fit(after_epoch, (*self._terms, *names), decay)
        start, end = check.check_part(part, epochs)
        rows = training.hyper_rows(self._steps(epochs), rates, momentum, decay)
        each = self._steps(1)
        states = training.fit_epochs(
            self.state,
            self._programs.chunk(self._part),
            self._feed,
            {name: values[start * each : end * each] for name, values in rows.items()},
            end - start,
            validate=lambda variables: self._programs.validate(variables, self._valid_data),
            metrics=names,
            terms=self._terms,
            history=self.history,
            after_epoch=after_epoch,
            checkpoints=self.checkpoints,
            about=self._about,
            pace=self._pace,
            quiet=self.quiet,
        )
        for state in states:
            self.state = state
