"""One self-contained HTML page of a run: its numbers, its table of epochs, its pictures."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # an experiment starts its process anew before it imports jax: not twice
    from jaxfast.training import History

_STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; margin: 1rem 0; } td, th { padding: .2rem .9rem; text-align: right; }
tr:nth-child(odd) td { background: #f4f6f8; } th { border-bottom: 2px solid #ccc; }
td:first-child, th:first-child { text-align: left; }
figure { display: inline-block; margin: .5rem; vertical-align: top; max-width: 100%; } img { max-width: 100%; }
figcaption { font-size: .85rem; color: #555; text-align: center; } pre { white-space: pre-wrap; color: #555; }
"""


def write_report(out: Path, result: Mapping, history: History, *, title: str, note: str) -> Path:
    """Write `out`/report.html from `result`, the epochs of `history` and every PNG in `out`, oldest first."""
    pictures = sorted(out.glob("*.png"), key=lambda path: path.stat().st_mtime_ns)
    columns = [name for name in (history.epochs[0] if history.epochs else ()) if name != "step"]
    page = [
        "<!doctype html><html lang='en'><head><meta charset='utf-8'>",
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        _table(("", ""), [(name, _shown(value)) for name, value in result.items()]),
        "<h2>Epochs</h2>",
        _table(columns, [[_shown(epoch[name]) for name in columns] for epoch in history.epochs]),
        "<h2>Pictures</h2>",
        *(_figure(path) for path in pictures),
        f"<h2>What this is</h2><pre>{html.escape(note.strip())}</pre>",
        "</body></html>",
    ]
    path = out / "report.html"
    path.write_text("\n".join(page), encoding="utf-8")
    return path


def _table(head, rows) -> str:
    line = lambda tag, cells: "<tr>" + "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in cells) + "</tr>"
    return "<table>" + line("th", head) + "".join(line("td", row) for row in rows) + "</table>"


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = html.escape(path.stem.replace("_", " "))
    return f"<figure><img alt='{name}' src='data:image/png;base64,{data}'><figcaption>{name}</figcaption></figure>"


def _shown(value) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {shown}" for name, shown in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)
