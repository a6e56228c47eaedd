"""Exports: the learner's predictions without its code, files that are not whole, and the command line."""

import contextlib
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
import types
import zipfile

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small import arrays, data, learner

import jaxfast
from jaxfast import collab, tabular, vision
from jaxfast import export as export_
from jaxfast.__main__ import main
from jaxfast.data.image_codec import ImageCodec
from jaxfast.losses import binary_cross_entropy, cross_entropy
from jaxfast.models import ClassifierHead, ImageClassifier, efficientnet_lite0

ENTRIES = ["export.json", "weights.safetensors", "program.jax"]
ALONE = os.environ | {"JAX_PLATFORMS": "cpu"}


def shaken(learn):
    """A learner with weights and statistics as far from the initial ones as training takes them, without the time."""
    rng = np.random.default_rng(0)
    shake = lambda x: jax.device_put(x * rng.uniform(0.5, 1.5, x.shape) + 0.1 * rng.random(x.shape), x.sharding)
    state = jax.tree.map(lambda x: shake(x).astype(x.dtype), learn.state.variables)
    params = state.pop("params")
    learn.state = learn.state.replace(params=params, model_state=state)
    return learn


@pytest.fixture(scope="module")
def learn():
    """A learner whose images are cut on the device, so that the program has to hold the cut."""
    return shaken(learner(data(size=16, presize=20)))


@pytest.fixture(scope="module")
def file(learn, tmp_path_factory):
    path = tmp_path_factory.mktemp("export") / "squares.jaxfast"
    learn.export(path)
    return path


@pytest.fixture(scope="module")
def export(file):
    return jaxfast.load_export(file)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A folder of three images, as the small task has them, each of another size."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, size in enumerate((20, 31, 48)):
        Image.fromarray(arrays(3, size)[0][i]).save(folder / f"[b]{i}.png")
    return folder


def items(learn, n):
    return [learn.data.valid[i] for i in range(n)]


def changed(file, path, **entries):
    """A copy of an export at `path` with other contents, or without an entry that is None."""
    with zipfile.ZipFile(file) as old, zipfile.ZipFile(path, "w") as new:
        for name in ENTRIES:
            content = entries.get(name.partition(".")[0], old.read(name))
            if content is not None:
                new.writestr(name, content)
    return path


def about_with(file, **values):
    with zipfile.ZipFile(file) as archive:
        return json.dumps(json.loads(archive.read("export.json")) | values).encode()


def test_predictions_are_the_learners(learn, export):
    expected = learn.get_preds()[0]
    valid = items(learn, 64)
    got = np.stack([answer.probabilities for answer in export.predict_batch(valid, batch_size=24)])
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)
    assert got.std(0).min() > 1e-3
    np.testing.assert_allclose(
        export({"image": np.stack([item["image"] for item in valid])}), expected, atol=1e-5, rtol=0
    )
    one, same = export.predict(valid[5]), learn.predict(valid[5])
    assert (one.label, one.index) == (same.label, same.index)
    np.testing.assert_allclose(one.probabilities, expected[5], atol=1e-5, rtol=0)
    assert export.predict_batch([]) == []


def test_items_of_every_kind(learn, export, pictures):
    path = pictures / "[b]1.png"
    with Image.open(path) as image:
        several = [path, str(path), path.read_bytes(), image.copy(), np.asarray(image)]
    expected = learn.predict(path).probabilities
    for answer in export.predict_batch(several):
        np.testing.assert_allclose(answer.probabilities, expected, atol=1e-5, rtol=0)
    assert len(export.predict_batch(arrays(5)[0])) == 5


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(learn, precision, tmp_path):
    half = learner(learn.data, precision=precision)
    half.state = half.state.replace(params=learn.state.params, model_state=learn.state.model_state)
    half.export(tmp_path / "half")
    export = jaxfast.load_export(tmp_path / "half")
    got = np.stack([answer.probabilities for answer in export.predict_batch(items(learn, 64))])
    assert got.dtype == np.float32
    # where a compiler rounds between fused operations is its own affair
    np.testing.assert_allclose(got, half.get_preds()[0], atol=5e-3, rtol=0)
    assert ("xbf16>" if precision == "bf16" else "xf16>") in export.program.mlir_module()


def test_any_number_of_labels(tmp_path):
    images, labels = arrays(96)
    rows = np.eye(3)[labels] + np.eye(3)[(labels + labels % 2) % 3] > 0
    task = vision.from_arrays(images, rows.astype(int), classes=["red", "green", "blue"], batch_size=16)
    learn = shaken(learner(task, loss=binary_cross_entropy, metrics=["accuracy_multi"]))
    learn.export(tmp_path / "tags.jaxfast")
    export = jaxfast.load_export(tmp_path / "tags.jaxfast")
    assert export.about["activation"] == "sigmoid"
    for item, row in zip(items(learn, 8), learn.get_preds()[0], strict=False):
        answer = export.predict(item)
        np.testing.assert_allclose(answer.probabilities, row, atol=1e-5, rtol=0)
        assert answer.label == learn.predict(item).label
        assert answer.index.tolist() == np.flatnonzero(answer.probabilities > 0.5).tolist()


def test_one_program_for_every_platform(export):
    assert export.about["platforms"] == list(export.program.platforms) == ["cpu", "cuda", "tpu"]
    arguments = export.weights, {"image": np.zeros((7, 20, 20, 3), np.uint8)}
    for platform in ("cpu", "cuda", "tpu"):
        text = jax.jit(export.program.call).trace(*arguments).lower(lowering_platforms=(platform,)).as_text()
        assert "stablehlo.convolution" in text and "tensor<7x3xf32>" in text


def test_what_the_file_holds(file, export):
    with zipfile.ZipFile(file) as archive:
        assert archive.namelist() == ENTRIES
        about = json.loads(archive.read("export.json"))
        program = archive.read("program.jax")
    assert about == export.about
    assert export.classes == ("red", "green", "blue") and about["codec"]["classes"] == ["red", "green", "blue"]
    assert about["codec"]["size"] == [20, 20] and about["activation"] == "softmax"
    assert about["inputs"] == {"image": {"shape": ["batch", 20, 20, 3], "dtype": "uint8"}}
    assert about["outputs"] == {"shape": ["batch", 3], "dtype": "float32"}
    assert about["normalization"] == {"mean": [127.0] * 3, "std": [64.0] * 3}
    assert (about["jaxfast"], about["jax"]) == (jaxfast.__version__, jax.__version__)
    assert "params/body/stem/conv/kernel" in export.weights and "batch_stats/head/norm0/mean" in export.weights
    assert "ImageClassifier" in repr(export) and "red, green, blue" in repr(export)
    # the weights are arguments of the program, and it tells nothing of the machine that wrote it
    assert len(program) < 100_000
    assert os.path.dirname(jaxfast.__file__).encode() not in program
    assert os.path.dirname(jax.__file__).encode() not in program


def test_a_folder_is_an_export_too(learn, file, tmp_path):
    with zipfile.ZipFile(file) as archive:
        archive.extractall(tmp_path / "folder")
    item = learn.data.valid[0]
    expected = jaxfast.load_export(file).predict(item).probabilities
    np.testing.assert_array_equal(jaxfast.load_export(tmp_path / "folder").predict(item).probabilities, expected)
    shutil.copy(file, tmp_path / "folder" / "weights.safetensors")
    with pytest.raises(ValueError, match="weights.safetensors does not have its checksum"):
        jaxfast.load_export(tmp_path / "folder")


def test_predicts_without_flax_and_pickle(learn, file, pictures):
    path = pictures / "[b]0.png"
    code = f"""
import pickle, sys
def refuse(*args, **kwargs): raise AssertionError("unpickled")
pickle.load = pickle.loads = pickle.Unpickler = refuse
import jaxfast
answer = jaxfast.load_export({str(file)!r}).predict({str(path)!r})
print(answer.label, *answer.probabilities)
names = ["flax", "optax", "orbax", "grain", "matplotlib", "pandas"]
names += [f"jaxfast.{{name}}" for name in ("models", "learner", "training", "losses", "vision")]
print(*[name for name in names if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ALONE)
    assert done.returncode == 0, done.stderr
    answer, imported = done.stdout.splitlines()
    expected = learn.predict(path)
    assert answer.split()[0] == expected.label and imported == ""
    np.testing.assert_allclose([float(p) for p in answer.split()[1:]], expected.probabilities, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda file, path: path, "there is no export at"),
        (lambda file, path: path.write_bytes(b""), "is not a jaxfast export: give what learn.export wrote"),
        (lambda file, path: path.write_text("hello"), "is not a jaxfast export"),
        (lambda file, path: path.mkdir(), "is not a jaxfast export"),
        (lambda file, path: zipfile.ZipFile(path, "w").writestr("a.txt", "b"), "is not a jaxfast export"),
        (lambda file, path: changed(file, path, export=None), "is not a jaxfast export"),
        (lambda file, path: changed(file, path, export=b'{"format": "x"}'), "is not a jaxfast export"),
        (lambda file, path: changed(file, path, export=b"[1]"), "is not a jaxfast export"),
        (lambda file, path: changed(file, path, export=b"{"), "export.json is no JSON"),
        (lambda file, path: changed(file, path, weights=None), "weights.safetensors does not have its checksum"),
        (lambda file, path: changed(file, path, weights=b"0" * 99), "weights.safetensors does not have its checksum"),
        (lambda file, path: changed(file, path, program=b""), "program.jax does not have its checksum"),
        (
            lambda file, path: changed(file, path, export=about_with(file, version=2, jaxfast="9.9")),
            r"is an export of format 2, written by jaxfast 9.9: .* reads format 1; upgrade",
        ),
        (
            lambda file, path: changed(file, path, export=about_with(file, kind="smell")),
            "items of the kind 'smell', this jaxfast .* knows image, table, ratings",
        ),
        (lambda file, path: changed(file, path, export=about_with(file, codec={})), "its codec cannot be read"),
    ],
)
def test_what_is_not_a_whole_export(file, tmp_path, make, message):
    path = tmp_path / "other.jaxfast"
    make(file, path)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        jaxfast.load_export(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


def test_a_program_of_a_newer_jax(file, export, tmp_path):
    newer = dataclasses.replace(export.program, calling_convention_version=99).serialize()
    sums = {"weights.safetensors": json.loads(about_with(file))["sha256"]["weights.safetensors"]}
    for content in (newer, b"x" * 99):
        sums["program.jax"] = hashlib.sha256(content).hexdigest()
        about = about_with(file, sha256=sums, jax="0.99")
        path = changed(file, tmp_path / "newer", export=about, program=content)
        with pytest.raises(ValueError, match="was written by jax 0.99, which jax .* cannot read") as error:
            jaxfast.load_export(path)
        assert "\n" not in str(error.value)


@settings(max_examples=40, deadline=None)
@given(part=st.floats(0, 1, exclude_max=True))
def test_a_file_that_is_cut_off(file, part, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "cut.jaxfast"
    content = file.read_bytes()
    path.write_bytes(content[: int(part * len(content))])
    with pytest.raises(ValueError, match="is cut off or damaged|is not a jaxfast export"):
        jaxfast.load_export(path)


def test_writing_is_whole_or_not_at_all(learn, tmp_path, monkeypatch):
    path = tmp_path / "deep" / "model.jaxfast"
    learn.export(path)
    before = path.read_bytes()

    def full(*args):
        raise OSError("No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(zipfile.ZipFile, "writestr", full)
        with pytest.raises(OSError, match="No space left"):
            learn.export(path)
    assert path.read_bytes() == before and os.listdir(path.parent) == ["model.jaxfast"]
    path.write_text("something else")
    learn.export(path)
    assert jaxfast.load_export(path).classes == ("red", "green", "blue")
    assert os.listdir(path.parent) == ["model.jaxfast"]
    assert path.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_exporting_names_what_does_not_fit(learn, tmp_path):
    with pytest.raises(ValueError, match=r"it is a folder: give a file such as .*model\.jaxfast"):
        learn.export(tmp_path)
    with pytest.raises(ValueError, match="give a path on this machine"):
        learn.export("gs://bucket/model.jaxfast")
    bare = types.SimpleNamespace(codec=None)
    with pytest.raises(ValueError, match="SimpleNamespace cannot be exported: .* kind None, known are image, table"):
        export_.save_export(tmp_path / "x", learn.module, learn.state.variables, bare, cross_entropy)


@pytest.mark.parametrize(
    "batch, message",
    [
        ({"images": 1}, "the batch has no entry 'image', only images: the model takes image"),
        ({"image": np.zeros((1, 4, 4, 3), np.uint8)}, r"has the shape \(1, 4, 4, 3\): give \(batch, 20, 20, 3\)"),
        ({"image": np.zeros((0, 20, 20, 3), np.uint8)}, r"has the shape \(0, 20, 20, 3\)"),
        ({"image": np.zeros((1, 20, 20, 3))}, "holds float64: give uint8"),
    ],
)
def test_a_batch_that_does_not_fit(export, batch, message):
    with pytest.raises(ValueError, match=message):
        export(batch)


def test_items_that_cannot_be_read(export, pictures, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"nothing")
    several = [pictures / "[b]0.png", tmp_path / "broken.png", pictures / "[b]2.png", tmp_path / "gone.png"]
    first, broken, third, gone = export.predict_each(several, batch_size=2)
    assert "broken.png" in str(broken) and isinstance(gone, FileNotFoundError)
    assert first.label == export.predict(several[0]).label and third.label == export.predict(several[2]).label
    with pytest.raises(ValueError, match="broken.png"):
        export.predict_batch(several)
    with pytest.raises(ValueError, match="'a.png' is one item: give a list of them"):
        export.predict_batch("a.png")


@given(
    size=st.tuples(st.integers(2, 999), st.integers(2, 999)),
    resize=st.sampled_from(["crop", "pad", "squish"]),
    channels=st.sampled_from([1, 3]),
    classes=st.lists(st.text(), min_size=2, unique=True).map(tuple),
    task=st.sampled_from(["single_label", "multi_label"]),
)
def test_the_codec_goes_through_json(size, resize, channels, classes, task):
    codec = ImageCodec(size, resize, channels, classes, task)
    assert ImageCodec.from_json(json.loads(json.dumps(codec.to_json()))) == codec


def test_rows_of_tables_and_ratings(tmp_path, capsys):
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "user": rng.integers(0, 9, 64),
            "item": rng.choice(list("abcd"), 64),
            "size": rng.normal(size=64),
            "kind": rng.choice(["x", "y"], 64),
            "rating": rng.integers(1, 6, 64).astype(float),
        }
    )
    frame.to_csv(tmp_path / "rows.csv", index=False)
    table = tabular.from_frame(frame, target="kind", categorical=["item"], continuous=["size"], batch_size=16)
    ratings = collab.from_frame(frame, batch_size=16)
    for learn, inputs in (
        (tabular.learner(table, layers=(4,), quiet=True), ["categories", "numbers"]),
        (collab.learner(ratings, n_factors=2, quiet=True), ["user", "item"]),
    ):
        learn.export(tmp_path / "model.jaxfast")
        export = jaxfast.load_export(tmp_path / "model.jaxfast")
        assert list(export.about["inputs"]) == inputs and export.codec == learn.data.codec
        answers, expected = export.predict_batch(items(learn, len(learn.data.valid))), learn.get_preds()[0]
        got = [getattr(answer, "probabilities", None) if export.classes else answer.value for answer in answers]
        np.testing.assert_allclose(got, expected.reshape(np.shape(got)), atol=1e-5, rtol=0)
        status, out, errors = run(
            capsys, tmp_path / "model.jaxfast", tmp_path / "rows.csv", tmp_path / "no.csv", "--json"
        )
        assert status == 1 and errors == [f"there is no file {tmp_path / 'no.csv'}"]
        lines = [json.loads(line) for line in out.splitlines()]
        assert [line["row"] for line in lines] == list(range(64))
        row = learn.predict(frame.iloc[7].to_dict())
        assert lines[7]["label"] == row.label if export.classes else lines[7]["value"] == pytest.approx(row.value)


@pytest.mark.slow
def test_lite0(tmp_path):
    task = data(size=32)
    body = efficientnet_lite0()
    module = ImageClassifier(body, ClassifierHead(3), mean=(127.0,) * 3, std=(128.0,) * 3)
    learn = jaxfast.Learner(task, module, loss=cross_entropy, quiet=True)
    learn.export(tmp_path / "lite0.jaxfast")
    export = jaxfast.load_export(tmp_path / "lite0.jaxfast")
    got = np.stack([answer.probabilities for answer in export.predict_batch(items(learn, 64))])
    np.testing.assert_allclose(got, learn.get_preds()[0], atol=1e-5, rtol=0)


# The command line


def run(capsys, *arguments):
    """(exit status, standard output, lines of the error output) of the command line, run here."""
    status = main(["predict", *map(str, arguments)])
    out, error = capsys.readouterr()
    return status, out, error.splitlines()


def test_command_line_as_a_process(learn, file, pictures, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"nothing")
    command = [
        sys.executable,
        "-m",
        "jaxfast",
        "predict",
        file,
        tmp_path / "broken.jpg",
        pictures,
        "--json",
        "--top",
        "2",
    ]
    done = subprocess.run(command, capture_output=True, text=True, env=ALONE)
    assert done.returncode == 1
    assert done.stderr == f"cannot read image {tmp_path / 'broken.jpg'}: not an image file that Pillow knows\n"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines] == [str(pictures / f"[b]{i}.png") for i in range(3)]
    for line in lines:
        expected = learn.predict(line["file"])
        assert (line["label"], line["index"]) == (expected.label, expected.index)
        assert list(line["probabilities"].values()) == pytest.approx(np.sort(expected.probabilities)[:0:-1], abs=1e-5)
        assert next(iter(line["probabilities"])) == expected.label


@pytest.mark.skipif(sys.platform == "win32", reason="no pseudo-terminals")
def test_progress_goes_to_the_terminal_and_answers_to_the_output(file, pictures):
    ours, theirs = os.openpty()
    command = [sys.executable, "-m", "jaxfast", "predict", file, pictures, pictures / "gone.png", "--json"]
    environment = ALONE | {"TERM": "xterm", "COLUMNS": "300"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment) as process:
        os.close(theirs)
        shown = b""
        with contextlib.suppress(OSError):  # Linux ends a pseudo-terminal with an error
            while part := os.read(ours, 4096):
                shown += part
        answers = [json.loads(line)["file"] for line in process.stdout]
    os.close(ours)
    assert process.returncode == 1
    assert answers == [str(picture) for picture in sorted(pictures.iterdir())]
    assert b"predicting" in shown and b"no such file" in shown


def test_command_line_table(learn, file, pictures, capsys):
    status, out, errors = run(capsys, file, pictures / "[b]0.png", pictures / "[b]1.png", "--top", 3)
    assert (status, errors) == (0, [])
    expected = learn.predict(pictures / "[b]0.png")
    header, _, *rows = [line.split() for line in out.replace("│", " ").replace("┃", " ").splitlines()]
    assert header == ["file", "class", "probability"] and len(rows) == 6
    assert rows[0] == [str(pictures / "[b]0.png"), expected.label, f"{expected.probabilities.max():.4f}"]
    assert {row[-2] for row in rows[:3]} == {"red", "green", "blue"}
    assert float(rows[0][-1]) >= float(rows[1][-1]) >= float(rows[2][-1])
    status, out, _ = run(capsys, file, pictures)
    assert len(out.splitlines()) == 2 + 3


def test_command_line_errors(file, pictures, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    gone = tmp_path / "gone.png"
    status, out, errors = run(capsys, file, gone, tmp_path / "empty", "--json")
    assert (status, out, len(errors)) == (1, "", 2)
    assert "empty" in errors[0] and errors[1] == f"cannot read image {gone}: no such file"
    status, out, errors = run(capsys, tmp_path / "none.jaxfast", pictures)
    assert (status, out, errors) == (2, "", [f"there is no export at {tmp_path / 'none.jaxfast'}"])
    status, out, errors = run(capsys, pictures / "[b]0.png", pictures)
    assert status == 2 and "is not a jaxfast export" in errors[0]
    with pytest.raises(SystemExit) as stopped:
        run(capsys, file, pictures, "--top", 0)
    assert stopped.value.code == 2 and "give a whole number from 1 on" in capsys.readouterr().err
