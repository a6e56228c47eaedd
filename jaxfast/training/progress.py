"""The live table of a fit: a row per epoch and a progress bar on a terminal or in a notebook, plain lines elsewhere."""

import contextlib
import time
from collections.abc import Sequence


class Progress:
    """Shows a fit of `epochs` x `steps` steps; `names` are the columns between epoch and time.

    On a terminal or in a notebook the table grows under a progress bar; in a log each epoch is one line.
    """

    def __init__(self, names: Sequence[str], epochs: int, steps: int, *, quiet: bool = False):
        from rich.console import Console

        self.names, self.epochs, self.steps, self.quiet = tuple(names), epochs, steps, quiet
        self.console = Console(quiet=quiet)
        self.live = self.console.is_terminal or self.console.is_jupyter
        self.rows: list[list[str]] = []
        self.epoch, self.done = 0, False
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> "Progress":
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self.bar = Bar(
            TextColumn("epoch {task.fields[epoch]}/" + str(self.epochs)),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=self.console,
        )
        self.task = self.bar.add_task("", total=self.steps, epoch=1, loss="")
        if self.live:
            self.view = self._stack.enter_context(
                Live(self._render(), console=self.console, refresh_per_second=4, transient=False)
            )
        else:
            self._line(["epoch", *self.names, "time"])
        return self

    def step(self, done: int, loss: float) -> None:
        """`done` steps of this epoch are done; the smoothed training loss is `loss`."""
        self.bar.update(self.task, completed=done, loss=f"loss {loss:.4f}")

    def end_epoch(self, values: dict[str, float], seconds: float) -> None:
        shown = [_number(values[name]) if name in values else "-" for name in self.names]
        self.rows.append([str(self.epoch), *shown, time.strftime("%M:%S", time.gmtime(seconds))])
        self.epoch += 1
        if self.epoch < self.epochs:
            self.bar.reset(self.task, total=self.steps, epoch=self.epoch + 1, loss="")
        if self.live:
            self.view.update(self._render())
        else:
            self._line(self.rows[-1])

    def _render(self):
        from rich.console import Group
        from rich.table import Table

        table = Table(show_edge=False)
        for name in ("epoch", *self.names, "time"):
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(*row)
        return table if self.done else Group(table, self.bar)

    def _line(self, cells: Sequence[str]) -> None:
        widths = (5, *(max(10, len(name)) for name in self.names), 5)
        self.console.print("  ".join(cell.rjust(w) for cell, w in zip(cells, widths, strict=True)), highlight=False)

    def __exit__(self, *error) -> None:
        self.done = True
        if self.live:
            self.view.update(self._render())
        self._stack.close()


def _number(value: float) -> str:
    return f"{value:.4f}" if abs(value) < 1e4 else f"{value:.4g}"


@contextlib.contextmanager
def bar(title: str, total: int, *, quiet: bool = False):
    """A progress bar that vanishes at the end, where there is a terminal or a notebook; gives `update(done)`."""
    from rich.console import Console
    from rich.progress import Progress as Bar

    console = Console()
    if quiet or not (console.is_terminal or console.is_jupyter):
        yield lambda done: None
        return
    with Bar(console=console, transient=True) as view:
        task = view.add_task(title, total=total)
        yield lambda done: view.update(task, completed=done)
