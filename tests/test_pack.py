"""Packing images into shards: what is read back, going on after a kill, damage, and what is refused."""

import io
import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest
from PIL import Image

from jaxfast import vision
from jaxfast.data import pack as packing
from jaxfast.data.labels import Labels
from jaxfast.data.pack import main, pack
from jaxfast.data.packed import INDEX, read_index
from jaxfast.data.tfds_images import TfdsExamples

pytest.importorskip("array_record")

N = 23


def smooth(i, size=(40, 30)):
    """A picture that JPEG keeps: two colours that differ by picture, with a gradient between."""
    rng = np.random.default_rng(i)
    return Image.fromarray(rng.integers(0, 256, (2, 2, 3), dtype=np.uint8)).resize(size, Image.Resampling.BILINEAR)


def _write(root, names):
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        smooth(i).save(root / name)
    return root


@pytest.fixture
def folder(tmp_path):
    return _write(
        tmp_path / "pets", [f"{kind}/{i:02}.png" for kind in ("cat", "dog") for i in range(N // 2)] + ["dog/z.png"]
    )


def whole(data):
    parts = [part.batch(np.arange(len(part))) for part in (data.train, data.valid)]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def files(out):
    return {path.name: path.read_bytes() for path in out.iterdir()}


@pytest.mark.parametrize("resize", ["crop", "pad", "squish"])
def test_what_is_packed_is_what_the_folder_holds(folder, tmp_path, resize):
    index = pack(folder, tmp_path / "out", size=(16, 24), resize=resize, shard_size=5, quiet=True)
    assert index.whole and index.skipped == {} and len(index.shards) == 5
    packed = vision.from_packed(tmp_path / "out", batch_size=8, seed=3)
    plain = vision.from_folder(folder, batch_size=8, seed=3, size=(16, 24), resize=resize)
    assert packed.classes == plain.classes == ("cat", "dog") and packed.size == (16, 24)
    ours, theirs = whole(packed), whole(plain)  # the same split, the same order
    np.testing.assert_array_equal(ours["target"], theirs["target"])
    off = np.abs(ours["image"].astype(int) - theirs["image"])
    assert off.mean() < 2 and off.max() < 25
    named = vision.from_packed(tmp_path / "out", valid=["cat/03.png", "dog/z.png"], batch_size=8)
    assert len(named.valid) == 2
    np.testing.assert_array_equal(named.valid.targets, [0, 1])


def test_the_index_says_what_there_is(folder, tmp_path):
    out = tmp_path / "out"
    pack(folder, out, size=16, shard_size=8, quiet=True)
    head, *shards = [json.loads(line) for line in (out / INDEX).read_text().splitlines()]
    assert head.pop("source")
    assert head == {
        "pack": 1, "images": 23, "height": 16, "width": 16, "resize": "crop", "quality": 95, "shard_size": 8,
        "shards": 3, "classes": ["cat", "dog"], "task": "single_label",
    }  # fmt: skip
    assert [shard["file"] for shard in shards] == [f"shard-0000{i}-of-00003.array_record" for i in range(3)]
    assert [len(shard["labels"]) for shard in shards] == [8, 8, 7]
    assert shards[1]["labels"] == [0, 0, 0, 1, 1, 1, 1, 1] and shards[2]["names"][-1] == "dog/z.png"
    for shard in shards:
        done = subprocess.run(["sha256sum", out / shard["file"]], capture_output=True, text=True, check=True)
        assert done.stdout.split()[0] == shard["sha256"] and (out / shard["file"]).stat().st_size == shard["bytes"]
    assert {path.name for path in out.iterdir()} == {INDEX, *(shard["file"] for shard in shards)}


def test_folders_for_validation_stay_apart(tmp_path):
    names = [f"{part}/{kind}/{i}.png" for part in ("train", "valid") for kind in ("cat", "dog") for i in range(3)]
    pack(_write(tmp_path / "pets", names), tmp_path / "out", size=8, quiet=True)
    data = vision.from_packed(tmp_path / "out", valid="valid", batch_size=2)
    assert (len(data.train), len(data.valid)) == (6, 6)
    with pytest.raises(
        ValueError, match="has the folders train and valid, which valid=0.2 would mix: say valid='valid'$"
    ):
        vision.from_packed(tmp_path / "out", batch_size=2)


def test_sequences_of_any_labels(tmp_path):
    pictures = [np.full((9, 9, 3), 20 * i, np.uint8) for i in range(10)]
    pack([(x, "ab"[i % 2]) for i, x in enumerate(pictures)], tmp_path / "names", size=8, quiet=True)
    data = vision.from_packed(tmp_path / "names", valid=[9], batch_size=2)
    assert data.classes == ("a", "b")
    np.testing.assert_allclose(data.train.batch(np.arange(9))["image"][:, 4, 4, 0], 20 * np.arange(9), atol=2)
    with pytest.raises(ValueError, match="these images have no file names"):
        vision.from_packed(tmp_path / "names", valid=["x.png"], batch_size=2)

    pack([{"image": x, "label": i % 2} for i, x in enumerate(pictures)], tmp_path / "numbers", size=8,
         classes=["no", "yes"], quiet=True)  # fmt: skip
    assert vision.from_packed(tmp_path / "numbers", batch_size=2).classes == ("no", "yes")

    tags = [["red"], [], ["big", "red"], ["big"]] * 2
    pack(list(zip(pictures[:8], tags, strict=True)), tmp_path / "tags", size=8, shard_size=3, quiet=True)
    many = vision.from_packed(tmp_path / "tags", valid=[0], batch_size=2)
    assert many.task == "multi_label" and many.classes == ("big", "red")
    np.testing.assert_array_equal(many.train.targets[:3], [[0, 0], [1, 1], [1, 0]])


def test_grey_sizes_and_crops(folder, tmp_path):
    pack(folder, tmp_path / "out", size=16, quiet=True)
    data = vision.from_packed(tmp_path / "out", size=10, presize=12, channels=1, batch_size=8)
    assert data.train[0]["image"].shape == (12, 12, 1) and data.size == (10, 10)


def test_unreadable_images_are_skipped_and_listed(folder, tmp_path, capsys):
    (folder / "cat" / "bad.jpg").write_text("no image")
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "dog" / "half.jpg")
    content = (folder / "dog" / "half.jpg").read_bytes()
    (folder / "dog" / "half.jpg").write_bytes(content[: len(content) // 2])
    (folder / "dog" / "link.jpg").symlink_to(folder / "gone.jpg")
    out = tmp_path / "out"
    assert main([str(folder), str(out), "--size", "16", "--shard-size", "6"]) == 0
    printed = capsys.readouterr().out
    assert "23 images of 2 classes in 5 shards" in printed
    assert (
        "skipped 3 that cannot be read:\n  cat/bad.jpg: not an image file that Pillow knows\n  dog/half.jpg: "
        in printed
    )
    assert printed.endswith("dog/link.jpg: no such file\n")
    assert list(read_index(out).skipped) == ["cat/bad.jpg", "dog/half.jpg", "dog/link.jpg"]
    data = vision.from_packed(out, batch_size=8)
    assert len(data.train) + len(data.valid) == N
    whole(data)


def test_tfds_splits_become_folders(tmp_path, monkeypatch, capsys):
    def coded(i):
        file = io.BytesIO()
        smooth(i).save(file, "PNG")
        return file.getvalue()

    asked = []

    def read_tfds(name, data_dir, **options):
        asked.append((name, data_dir, options["split"], options["valid"]))
        labels = Labels(np.array([0, 1, 0, 1, 0, 1], np.int32), ("cat", "dog"), "single_label")
        return TfdsExamples([coded(i) for i in range(6)], labels, 4)

    monkeypatch.setattr(packing, "read_tfds", read_tfds)
    command = ["tfds:pets", str(tmp_path / "out"), "--size", "8", "--data-dir", "here", "--valid", "test"]
    assert main(command) == 0 and asked == [("pets", "here", "train", "test")]
    data = vision.from_packed(tmp_path / "out", valid="valid", batch_size=2)
    assert (len(data.train), len(data.valid)) == (4, 2)
    np.testing.assert_array_equal(data.valid.targets, [0, 1])
    assert main(command[:-2]) == 2 and "holds a pack of other images (6, these are 6)" in capsys.readouterr().err


class Killed(BaseException):
    """What no code catches, as no code catches a kill."""


@pytest.mark.parametrize("after", range(1, 9))
@pytest.mark.parametrize("where", ["a record", "the name", "the index", "half a line"])
def test_broken_off_anywhere_it_goes_on(folder, tmp_path, monkeypatch, where, after):
    """Broken off when a record is written, before and after a shard gets its name, and in the middle of a line."""
    pack(folder, tmp_path / "whole", size=16, shard_size=6, quiet=True)
    out, calls = tmp_path / "out", [0]

    def breaking(function, before=lambda *arguments: None):
        def wrapped(*arguments):
            calls[0] += 1
            if calls[0] == after:
                before(*arguments)
                raise Killed
            return function(*arguments)

        return wrapped

    def half_a_line(file, line):
        file.write(json.dumps(line).encode()[:-20])
        file.flush()

    with monkeypatch.context() as patch:
        if where == "a record":
            calls[0] = -3 * after  # spread over the shards
            patch.setattr(packing, "_jpeg", breaking(packing._jpeg))
        elif where == "the name":
            patch.setattr(os, "replace", breaking(os.replace))
        else:
            patch.setattr(
                packing, "_append", breaking(packing._append, half_a_line if "half" in where else lambda *_: None)
            )
        try:
            pack(folder, out, size=16, shard_size=6, quiet=True)
        except Killed:
            with pytest.raises((ValueError, FileNotFoundError), match="not finished|no pack in"):
                vision.from_packed(out, batch_size=8)
    kept = {path: path.stat().st_mtime_ns for path in out.glob("*.array_record")}
    finished = {out / shard.file for shard in (read_index(out) or ([], {}))[1].values()}
    pack(folder, out, size=16, shard_size=6, quiet=True)
    assert files(out) == files(tmp_path / "whole")
    assert finished <= kept.keys() and all(path.stat().st_mtime_ns == kept[path] for path in finished)


def test_a_killed_process_goes_on_with_the_same_command(tmp_path):
    program = textwrap.dedent("""
        import sys, time
        import numpy as np
        from jaxfast.data.pack import pack

        class Slow:
            def __len__(self):
                return 60

            def __getitem__(self, i):
                time.sleep(float(sys.argv[2]))
                return np.full((8, 8, 3), 4 * i, np.uint8), i % 2

        pack(Slow(), sys.argv[1], size=8, shard_size=4)
        """)
    run = lambda out, seconds: subprocess.Popen([sys.executable, "-c", program, str(out), seconds])
    out, deadline = tmp_path / "out", time.monotonic() + 120
    process = run(out, "0.05")
    while len(list(out.glob("*.array_record"))) < 3:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    finished = {shard.file: (out / shard.file).stat().st_mtime_ns for shard in read_index(out).shards.values()}
    assert 2 <= len(finished) < 15
    assert run(out, "0").wait(120) == 0
    assert all((out / name).stat().st_mtime_ns == then for name, then in finished.items())
    assert run(tmp_path / "whole", "0").wait(120) == 0
    assert files(out) == files(tmp_path / "whole")


def _cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def _scratch(path):
    """Other bytes in the middle of the records: the size is right, the content is not."""
    content = bytearray(path.read_bytes())
    place = content.index(b"\xff\xd8\xff", 70_000 if len(content) > 140_000 else 100)
    content[place + 200 : place + 230] = b"x" * 30
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage, error, message, at_once",
    [
        (
            _cut,
            ValueError,
            r"shard .*shard-00001-of-00004.array_record has \d+ bytes, it was \d+: copy it again, or",
            True,
        ),
        (lambda path: path.unlink(), FileNotFoundError, "shard .*shard-00001-of.* is missing: copy it again, or", True),
        (_scratch, ValueError, "shard .*shard-00001-of-00004.array_record is damaged: copy it again, or", False),
    ],
    ids=["cut", "gone", "scratched"],
)
def test_damaged_shards_are_named_and_renewed(folder, tmp_path, damage, error, message, at_once):
    out = tmp_path / "out"
    pack(folder, out, size=16, shard_size=6, quiet=True)
    right = files(out)
    damage(out / "shard-00001-of-00004.array_record")
    with pytest.raises(error, match=message):
        data = vision.from_packed(out, batch_size=8)
        assert not at_once
        whole(data)
    kept = (out / "shard-00002-of-00004.array_record").stat().st_mtime_ns
    pack(folder, out, size=16, shard_size=6, quiet=True)
    assert {name: content for name, content in files(out).items() if name != INDEX} == {
        name: content for name, content in right.items() if name != INDEX
    }
    assert (out / "shard-00002-of-00004.array_record").stat().st_mtime_ns == kept
    whole(vision.from_packed(out, batch_size=8))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"size": 20}, "holds a pack with height 16, not 20, with width 16, not 20: give another folder, or remove"),
        ({"resize": "pad"}, "holds a pack with resize crop, not pad"),
        ({"shard_size": 7}, "holds a pack with shard_size 6, not 7"),
        ({"classes": ["dog", "cat"]}, "holds a pack of other images"),
    ],
    ids=lambda value: None if isinstance(value, str) else next(iter(value)),
)
def test_a_folder_with_another_pack_is_refused(folder, tmp_path, change, message):
    out = tmp_path / "out"
    pack(folder, out, size=16, shard_size=6, quiet=True)
    before = files(out)
    with pytest.raises(ValueError, match=message):
        pack(folder, out, **{"size": 16, "shard_size": 6, "quiet": True} | change)
    smooth(0).save(folder / "cat" / "00.png", compress_level=0)  # another file of the same name
    with pytest.raises(ValueError, match=r"of other images \(23, these are 23\)"):
        pack(folder, out, size=16, shard_size=6, quiet=True)
    assert files(out) == before


def test_what_cannot_be_packed_is_said_in_a_line(folder, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("do not touch")
    (tmp_path / "file").write_text("")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / INDEX).write_text('{"some": "other"}\n')
    table = [
        (["no/folder", "out"], "there is no folder no/folder"),
        ([folder, tmp_path / "full"], "full holds thesis.txt and no pack: give an empty folder or a new one"),
        ([folder, tmp_path / "file"], "file is a file: give a folder to write to"),
        ([folder, tmp_path / "odd"], "is damaged, or no index of a pack"),
        ([folder, tmp_path / "out", "--size", "0"], "size=0: give a whole number from 2 on"),
        ([folder, tmp_path / "out", "--shard-size", "0"], "shard_size=0: give a whole number from 1 on"),
    ]
    for arguments, message in table:
        assert main([str(argument) for argument in arguments]) == 2
        printed = capsys.readouterr()
        assert message in printed.err and printed.err.count("\n") == 1 and printed.out == ""
    for options, message in (
        ({"resize": "corp"}, "did you mean 'crop'"),
        ({"size": (1, 2, 3)}, r"size=\(1, 2, 3\): give"),
    ):
        with pytest.raises(ValueError, match=message):
            pack(folder, tmp_path / "out", **options)
    with pytest.raises(ValueError, match="a source needs len"):
        pack(iter([]), tmp_path / "out")
    assert not (tmp_path / "out").exists() and [*(tmp_path / "full").iterdir()] == [tmp_path / "full" / "thesis.txt"]


def test_a_pack_of_nothing(tmp_path):
    for kind in ("cat", "dog"):
        (tmp_path / "pets" / kind).mkdir(parents=True)
        (tmp_path / "pets" / kind / "0.png").write_text("no image")
    assert len(pack(tmp_path / "pets", tmp_path / "out", quiet=True).skipped) == 2
    with pytest.raises(ValueError, match="holds no image, 2 could not be read"):
        vision.from_packed(tmp_path / "out")
    with pytest.raises(FileNotFoundError, match="no pack in .*nowhere: it has no index.jsonl; make one with python -m"):
        vision.from_packed(tmp_path / "nowhere")
