"""airbench beside ours: its files hold our pixels, its table is read, and one sentence says where it cannot run.

The package is not a dependency of the tests. Where it is installed, it trains on the CPU here.
"""

import importlib.util
import io
import json
import subprocess
import sys
import time
import types

import numpy as np
import pytest
from PIL import Image
from test_one_cycle import arrays

from experiments import airbench, cifar10

torch = pytest.importorskip("torch")

TABLE = """\
------------------------------------------------------------------------------------------------------
|  run     |  epoch  |  train_loss  |  train_acc  |  val_acc  |  tta_val_acc  |  total_time_seconds  |
------------------------------------------------------------------------------------------------------
|       0  |      0  |      2.3164  |     0.1016  |   0.1289  |               |             25.9961  |
|          |      1  |      2.3105  |     0.1123  |   0.1328  |               |             47.2158  |
|          |   eval  |      2.3105  |     0.1123  |   0.1330  |       0.1211  |             57.1628  |
------------------------------------------------------------------------------------------------------
"""  # as 0.1.8 prints it


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("cifar") / "cifar10.npz"
    np.savez(path, class_names=["red", "green", "blue"], **arrays("train", 1024, 0), **arrays("test", 64, 1))
    return path


@pytest.fixture(scope="module")
def folder(file, tmp_path_factory):
    folder = tmp_path_factory.mktemp("airbench")
    airbench.prepare(file, folder)
    return folder


@pytest.mark.parametrize("split", ["train", "test"])
def test_the_files_hold_the_pixels_in_the_loaders_layout(file, folder, split):
    # as airbench's loader reads them; weights_only is what torch.load defaults to
    content = torch.load(folder / "cifar10" / f"{split}.pt", map_location=torch.device("cpu"), weights_only=True)
    with np.load(file) as raw:
        stream, offsets, labels = (raw[f"{split}_{name}"] for name in ("jpeg", "offsets", "labels"))
    pixels = [np.asarray(Image.open(io.BytesIO(part.tobytes()))) for part in np.split(stream, offsets[1:-1])]
    assert (content["images"].dtype, content["labels"].dtype) == (torch.uint8, torch.int64)
    np.testing.assert_array_equal(content["images"].numpy(), np.stack(pixels))
    np.testing.assert_array_equal(content["labels"].numpy(), labels)
    assert content["classes"] == ["red", "green", "blue"]


def test_they_are_the_pixels_that_our_side_sees(file, folder):
    data = cifar10.cifar(cifar10.Config(images=1024, test_images=64, batch_size=32), file)
    for split, dataset in (("train", data.train), ("test", data.valid)):
        ours = data.prepare(dataset.batch(np.arange(64)))["image"]
        theirs = torch.load(folder / "cifar10" / f"{split}.pt", weights_only=True)["images"][:64]
        np.testing.assert_array_equal(ours, theirs.numpy())


def test_the_table_is_read_at_its_end():
    assert airbench.parse(TABLE) == {
        "accuracy": 0.133,
        "accuracy_tta": 0.1211,
        "seconds_training": 47.2158,
        "seconds": 57.1628,
    }


@pytest.mark.parametrize("printed", ["", "Downloading\n", "\n".join(TABLE.splitlines()[:5])])
def test_another_ending_is_an_error(printed):
    with pytest.raises(ValueError, match="not that of its final evaluation"):
        airbench.parse(printed)


def stand_in(calls, monkeypatch, folder):
    """A module of airbench's name: it notes its calls, and prints what the package prints."""

    def warmup94(**options):
        calls.append(("warmup", options, torch.initial_seed()))

    def train94(**options):
        assert (folder / "cifar10" / "train.pt").samefile("cifar10/train.pt")  # where the loader looks
        calls.append(("train", options, torch.initial_seed()))
        print(TABLE.replace("0.1330", f"0.13{len(calls)}0"), end="")

    monkeypatch.setitem(sys.modules, "airbench", types.SimpleNamespace(warmup94=warmup94, train94=train94))


def test_it_is_warmed_up_once_and_trains_with_every_seed(folder, monkeypatch, capsys):
    calls = []
    stand_in(calls, monkeypatch, folder)
    runs = airbench.measure(folder, 2, epochs=3)
    assert [name for name, *_ in calls] == ["warmup", "train", "train"]
    assert [seed for *_, seed in calls[1:]] == [0, 1] and all(options == {"epochs": 3} for _, options, _ in calls)
    assert [run["accuracy"] for run in runs] == [0.132, 0.133]
    assert capsys.readouterr().out.count("eval") == 2


@pytest.mark.parametrize(
    ("missing", "reply", "sentence"),
    [
        (["airbench", "torchvision"], None, "pip install torchvision airbench"),
        ([], (1, "", "Traceback\nRuntimeError: no nms\n"), "importing them fails: RuntimeError: no nms"),
        ([], (0, "False\n", ""), "needs a CUDA GPU"),
        ([], (0, "True\n", ""), None),
    ],
)
def test_where_it_cannot_run_a_sentence_says_so(missing, reply, sentence, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in missing else object())
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: types.SimpleNamespace(
        **dict(zip(("returncode", "stdout", "stderr"), reply or (), strict=False))
    ))  # fmt: skip
    found = airbench.refusal()
    assert found is None if sentence is None else sentence in found and "\n" not in found


PROCESSES = {
    "answers": "import json, sys; print('words', file=sys.stderr); print('more'); print(json.dumps(sys.argv[1:]))",
    "fails": "raise RuntimeError('out of memory')",
    "hangs": "import time; time.sleep(60)",
}


@pytest.mark.parametrize(
    ("process", "expected"),
    [
        ("answers", ["{path}", "--seeds", "3"]),
        ("fails", {"error": "airbench ended with status 1: RuntimeError: out of memory"}),
        ("hangs", {"error": "airbench did not end within 2 s"}),
    ],
)
def test_the_process_answers_or_an_error_says_why_not(process, expected, tmp_path, monkeypatch):
    (tmp_path / "its_side.py").write_text(PROCESSES[process])
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(airbench, "PATIENCE", 2 if process == "hangs" else 60)
    found = airbench.run(tmp_path / "cifar10.npz", 3, module="its_side")
    path = str((tmp_path / "cifar10.npz").resolve())
    assert found == ([path, *expected[1:]] if isinstance(expected, list) else expected)


@pytest.fixture
def on_cpu(monkeypatch):
    """The installed package computes on a CPU, in float32."""
    pytest.importorskip("airbench", reason="pip install airbench torchvision")
    from airbench import utils

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.time = time.perf_counter()

        def elapsed_time(self, other):
            return 1e3 * (other.time - self.time)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    monkeypatch.setattr(torch.nn.Module, "cuda", lambda self: self)
    monkeypatch.setattr(torch.nn.Module, "half", torch.nn.Module.float)
    monkeypatch.setattr(torch.Tensor, "half", torch.Tensor.float)
    *others, _ = utils.CifarLoader.__init__.__defaults__
    monkeypatch.setattr(utils.CifarLoader.__init__, "__defaults__", (*others, "cpu"))


@pytest.mark.slow
def test_the_package_trains_on_the_files(on_cpu, folder):
    from airbench import CifarLoader, make_net94

    small = {
        "make_net": lambda: make_net94(widths={"block1": 8, "block2": 8, "block3": 8}),
        "train_loader": CifarLoader(str(folder / "cifar10"), batch_size=128, aug={"translate": 2}, altflip=True),
    }
    (run,) = airbench.measure(folder, 1, epochs=3, **small)
    assert run["accuracy_tta"] > 0.6  # a channel's brightness tells the class; guessing is right in a third
    assert 0 < run["seconds_training"] < run["seconds"]
    result = airbench.summary([run, run])
    assert json.loads(json.dumps(result))["seconds"] == run["seconds"] and result["versions"]["airbench"]
