"""A few rows of text as a table, in a terminal and in a notebook."""

import html
from dataclasses import dataclass


@dataclass(frozen=True, repr=False)
class TextTable:
    """Rows of strings under `columns`; printing it draws lines around them, a notebook shows it as HTML."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def __repr__(self) -> str:
        from rich.console import Console
        from rich.table import Table

        table = Table(*self.columns, show_lines=True)
        for row in self.rows:
            table.add_row(*row)
        console = Console(width=120, color_system=None, markup=False, highlight=False, emoji=False)
        with console.capture() as text:
            console.print(table)
        return text.get().rstrip()

    def _repr_html_(self) -> str:
        line = lambda tag, cells: "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"
        return f"<table>{line('th', self.columns)}{''.join(line('td', row) for row in self.rows)}</table>"


def shortened(words: list[str], n: int) -> str:
    """The first `n` words in one line.

    >>> shortened(["one", "two", "three"], 2)
    'one two …'
    """
    return " ".join(word.replace("\n", "\\n") for word in words[:n]) + (" …" if len(words) > n else "")
