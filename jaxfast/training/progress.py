"""The live table of a fit: a row per epoch and a progress bar on a terminal or in a notebook, plain lines elsewhere."""

import contextlib
import html
import time
from collections.abc import Sequence


class Progress:
    """Shows a fit of `epochs` x `steps` steps; `names` are the columns between epoch and time.

    On a terminal or in a notebook the table grows above a progress bar; in a log each epoch is one line.
    """

    def __init__(self, names: Sequence[str], epochs: int, steps: int, *, quiet: bool = False):
        from rich.console import Console

        self.names, self.epochs, self.steps, self.quiet = tuple(names), epochs, steps, quiet
        self.console = Console(quiet=quiet)
        self.live = self.console.is_terminal
        self.output = _Output() if self.console.is_jupyter and not quiet else None
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
        elif self.output:
            self.output.show(*self._table())
        else:
            self._line(self._head)
        self.began = time.monotonic()
        return self

    def step(self, done: int, loss: float) -> None:
        """`done` steps of this epoch are done; the smoothed training loss is `loss`."""
        if self.output:
            left = (time.monotonic() - self.began) * (self.steps - done) / done
            note = f"epoch {self.epoch + 1}/{self.epochs}, {_clock(left)} left, loss {loss:.4f}"
            self.output.show(*self._table(_html_bar(done, self.steps, note)), soon=True)
        self.bar.update(self.task, completed=done, loss=f"loss {loss:.4f}")

    def end_epoch(self, values: dict[str, float], seconds: float) -> None:
        shown = [_number(values[name]) if name in values else "-" for name in self.names]
        self.rows.append([str(self.epoch), *shown, _clock(seconds)])
        self.epoch, self.began = self.epoch + 1, time.monotonic()
        if self.epoch < self.epochs:
            self.bar.reset(self.task, total=self.steps, epoch=self.epoch + 1, loss="")
        if self.live:
            self.view.update(self._render())
        elif self.output:
            self.output.show(*self._table())
        else:
            self._line(self.rows[-1])

    @property
    def _head(self) -> list[str]:
        return ["epoch", *self.names, "time"]

    def _table(self, below: str = "") -> tuple[str, str]:
        """The table as HTML, with `below` under it, and as plain text."""
        line = lambda tag, cells: "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
        table = line("th", self._head) + "".join(line("td", row) for row in self.rows)
        return f"<table>{table}</table>{below}", "\n".join(self._aligned(row) for row in (self._head, *self.rows))

    def _render(self):
        from rich.console import Group
        from rich.table import Table

        table = Table(show_edge=False)
        for name in self._head:
            table.add_column(name, justify="right")
        for row in self.rows:
            table.add_row(*row)
        return table if self.done else Group(table, self.bar)

    def _aligned(self, cells: Sequence[str]) -> str:
        widths = (5, *(max(10, len(name)) for name in self.names), 5)
        return "  ".join(cell.rjust(w) for cell, w in zip(cells, widths, strict=True))

    def _line(self, cells: Sequence[str]) -> None:
        self.console.print(self._aligned(cells), highlight=False)

    def __exit__(self, *error) -> None:
        self.done = True
        if self.live:
            self.view.update(self._render())
        elif self.output:
            self.output.show(*self._table())
        self._stack.close()


class _Output:
    """One output of a notebook cell, overwritten in place: what is saved is what was shown last.

    (rich's own live display needs ipywidgets in a notebook, and a saved widget is empty where no kernel runs.)
    """

    def __init__(self):
        from IPython.display import HTML, display

        self.handle, self.shown = display(HTML(""), display_id=True), float("-inf")

    def show(self, markup: str, text: str = "", *, soon: bool = False) -> None:
        """Show HTML, or `text` where there is none; with `soon` only if the last time was a quarter second ago."""
        now = time.monotonic()
        if not soon or now - self.shown > 0.25:
            self.handle.update({"text/html": markup, "text/plain": text}, raw=True)
            self.shown = now


def _html_bar(done: int, total: int, note: str) -> str:
    return f"<progress value='{done}' max='{total}'></progress> {done}/{total} {html.escape(note)}"


def _clock(seconds: float) -> str:
    return "{:02d}:{:02d}".format(*divmod(round(seconds), 60))


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
    if console.is_jupyter:
        output = _Output()
        try:
            yield lambda done: output.show(_html_bar(done, total, title), soon=True)
        finally:
            output.show("")
        return
    with Bar(console=console, transient=True) as view:
        task = view.add_task(title, total=total)
        yield lambda done: view.update(task, completed=done)
