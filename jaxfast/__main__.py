"""`python -m jaxfast predict EXPORT FILES...`: what an exported model says of files, as a table or as JSON lines."""

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jaxfast.data.sources import image_files
from jaxfast.export import Export, load_export
from jaxfast.messages import NoAnswer, no_answers

Row = dict[str, Any]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its status: 0; 1 if a file cannot be read or a row has no answer; 2 if the export
    cannot be read."""
    parser = argparse.ArgumentParser(prog="python -m jaxfast", description="What an exported model says of files.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    predict = commands.add_parser(
        "predict",
        help="predict files with an exported model",
        description="Predict images, or every row of tables (.csv, .parquet), with what learn.export wrote.",
        epilog="exit status: 0; 1 if a file cannot be read (the others are predicted), or if the model's output for a "
        "row is not finite (its answer is null); 2 if the export cannot be read",
    )
    predict.add_argument("export", metavar="EXPORT", help="the file that learn.export wrote")
    predict.add_argument("files", metavar="FILES", nargs="+", help="files; a folder stands for the images in it")
    predict.add_argument("--top", type=_positive, metavar="K", help="the K likeliest classes (table: 1, JSON: all)")
    predict.add_argument("--json", action="store_true", help="print one JSON object per answer and line")
    predict.add_argument("--batch-size", type=_positive, default=64, metavar="N", help="how many go at once (64)")
    options = parser.parse_args(arguments)
    try:
        export = load_export(options.export)
    except (ValueError, OSError) as error:
        _complain(error)
        return 2
    return _predict(export, options)


def _predict(export: Export, options: argparse.Namespace) -> int:
    from rich.console import Console
    from rich.progress import Progress

    rows = (_images if export.codec.kind == "image" else _tables)(export, options)
    answers, failed, count, without, errors = [], False, 0, 0, Console(stderr=True)
    hidden = not errors.is_terminal or (options.json and sys.stdout.isatty())  # there the lines are the progress
    # redirect_stdout would send the answers to where the bar is
    with Progress(console=errors, transient=True, redirect_stdout=False, disable=hidden) as progress:
        for row in progress.track(rows, description="predicting"):
            if isinstance(row, Exception):
                failed = True
                _complain(row)
                continue
            count, without = count + 1, without + (row["answer"] is None)
            if options.json:
                # JSON has no NaN: a stricter reader would refuse the line
                print(json.dumps(_as_json(row, export, options.top), ensure_ascii=False, allow_nan=False), flush=True)
            else:
                answers.append(row)
    if answers:
        _print_table(answers, export, options.top or 1)
    if without:
        _complain(NoAnswer(no_answers(without, count)))
    return int(failed or without > 0)


def _images(export: Export, options: argparse.Namespace) -> Iterator[Row | Exception]:
    files = []
    for name in options.files:
        try:
            files += image_files(name) if Path(name).is_dir() else [Path(name)]
        except ValueError as error:
            yield error
    for file, answer in zip(files, export.predict_each(files, batch_size=options.batch_size), strict=True):
        yield answer if _failed(answer) else {"file": str(file), "answer": _or_none(answer)}


def _tables(export: Export, options: argparse.Namespace) -> Iterator[Row | Exception]:
    from jaxfast.data.frames import read_frame

    for name in options.files:
        try:
            table = read_frame(name)
            items = table if hasattr(export.codec, "encode_frame") else table.rows(named=True)
            answers = list(export.predict_each(items, batch_size=options.batch_size))
            for answer in answers:
                if _failed(answer):
                    raise answer
        except (ValueError, OSError) as error:
            yield error if name in str(error) else ValueError(f"{name}: {error}")
        else:
            yield from ({"file": name, "row": i, "answer": _or_none(answer)} for i, answer in enumerate(answers))


def _failed(answer: Any) -> bool:
    """Whether the item could not be read."""
    return isinstance(answer, Exception) and not isinstance(answer, NoAnswer)


def _or_none(answer: Any) -> Any:
    return None if isinstance(answer, NoAnswer) else answer


def _named(export: Export) -> bool:
    """Whether the answers are classes, with their probabilities."""
    codec = export.codec
    task = getattr(codec, "task", None) or getattr(getattr(codec, "target", None), "task", None)
    return export.classes is not None and task in (None, "single_label", "multi_label")


def _likeliest(answer: Any, export: Export, top: int | None) -> list[tuple[str, float]]:
    order = np.argsort(-answer.probabilities, kind="stable")[:top]
    return [(export.classes[i], float(answer.probabilities[i])) for i in order]


def _as_json(row: Row, export: Export, top: int | None) -> dict[str, Any]:
    answer = row.pop("answer")
    if answer is None:
        return row | dict.fromkeys(("label", "index", "probabilities") if _named(export) else ("value",))
    if not hasattr(answer, "index"):
        return row | {"value": np.asarray(answer.value).tolist()}
    index = np.asarray(answer.index).tolist()
    return row | {"label": answer.label, "index": index, "probabilities": dict(_likeliest(answer, export, top))}


def _print_table(rows: Sequence[Row], export: Export, top: int) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    named = _named(export)
    several = any(np.ndim(getattr(row["answer"], "index", 0)) > 0 for row in rows)  # any number of labels
    names = [name for name in rows[0] if name != "answer"]
    table = Table(show_edge=False)
    for name in [*names, *(["labels"] if several else []), *(["class", "probability"] if named else ["value"])]:
        table.add_column(name, justify="right" if name in ("row", "probability", "value") else "left", overflow="fold")
    for row in rows:
        answer = row["answer"]
        where = [Text(str(row[name])) for name in names]
        if answer is None:
            table.add_row(*where, *["null"] * (len(table.columns) - len(names)))
            continue
        where += [Text(answer.label)] if several else []
        if not named:
            label = getattr(answer, "label", None)  # of a mask: its classes and their shares
            table.add_row(*where, label or " ".join(f"{value:.6g}" for value in np.ravel(answer.value)))
            continue
        for i, (label, probability) in enumerate(_likeliest(answer, export, top)):
            table.add_row(*(where if i == 0 else [""] * len(where)), Text(label), f"{probability:.4f}")
    if not console.is_terminal:  # in a file or a pipe nothing is folded
        console.width = 10_000
    console.print(table)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text}: give a whole number from 1 on")
    return number


def _complain(error: Exception) -> None:
    print(" ".join(str(error).split()), file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
