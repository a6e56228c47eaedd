"""What a run leaves on disk: whole or refused, whatever happens to it, and written by one process at a time."""

import contextlib
import gc
import json
import os
import shutil
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from small import arrays, data, learner

from jaxfast import collab, tabular, training, vision
from jaxfast.training import checkpoint, checkpoints, writer


@pytest.fixture(autouse=True)
def quiet_reads(monkeypatch):
    """orbax leaves reads that failed to the garbage collector, which complains of each."""
    monkeypatch.setattr(sys, "unraisablehook", lambda *_: None)
    yield
    gc.collect()


def table(n=400, seed=0):
    rng = np.random.default_rng(seed)
    df = pd.DataFrame({"h": rng.normal(size=n), "age": rng.normal(size=n), "c": rng.choice(list("bcde"), n)})
    return df.assign(y=np.where((df.h > 0) ^ df.c.isin(["b", "c"]), "p", "q"))


def rows(df=None, folder=None, batch_size=32, **options):
    df = table() if df is None else df
    task = tabular.from_frame(df, target="y", batch_size=batch_size, **options)
    run = None if folder is None else training.Checkpoints(folder, every=6)
    return tabular.learner(task, layers=(4,), checkpoints=run, quiet=True, devices=jax.devices()[:1])


def ratings(users=40):
    rng = np.random.default_rng(0)
    df = pd.DataFrame(
        {
            "user": rng.integers(0, users, 600),
            "item": rng.integers(0, 50, 600),
            "rating": 1.0 + rng.integers(5, size=600),
        }
    )
    return df


@contextlib.contextmanager
def fallbacks():
    """The sentences about damaged checkpoints that are said in this block."""
    said = []
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        yield said
    said += [str(w.message) for w in seen if "going back to the checkpoint before it" in str(w.message)]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A folder with the checkpoints of steps 18 and 20, and the learner that wrote them."""
    folder = tmp_path_factory.mktemp("run")
    learn = rows(folder=folder)
    learn.checkpoints.keep_best = "accuracy"
    learn.fit_one_cycle(2, 1e-2)
    learn.checkpoints.close()
    assert learn.checkpoints.steps[-2:] == [18, 20]
    return folder, learn


def restored(folder, learn):
    """The step of the checkpoint that is read, or "silent" if it is not the newest and nothing is said."""
    with fallbacks() as said:
        found = training.Checkpoints(folder, keep_best="accuracy")
        about, (state, history, beside) = found.about(), found.restore(learn.state)
    step = int(state.step)
    assert len(history.losses) == step == beside["fit"]["steps"] - (20 - step)
    assert history.losses == learn.history.losses[:step] and len(history) == step // 10
    assert about["norm_groups"] == 1
    if step == 20:
        assert training.fingerprint(state) == training.fingerprint(learn.state)
    return step if step == 20 or any("/20" in sentence for sentence in said) else "silent"


def flip(content):
    """One bit, a third from the beginning."""
    at = len(content) // 3
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


DAMAGES = {
    "deleted": None,
    "emptied": lambda content: b"",
    "halved": lambda content: content[: len(content) // 2],
    "zeroed": lambda content: bytes(len(content)),
    "a bit": flip,
}


@pytest.mark.parametrize("how", DAMAGES)
def test_any_damage_of_any_file_is_seen(finished, tmp_path, how):
    folder, learn = finished
    steps = set()
    for name in sorted(path.relative_to(folder) for path in (folder / "20").rglob("*") if path.is_file()):
        copy = shutil.copytree(folder, tmp_path / "copy")
        content = (copy / name).read_bytes()
        if how == "deleted":
            (copy / name).unlink()
        elif content:
            (copy / name).write_bytes(DAMAGES[how](content))
        steps.add(restored(copy, learn))
        shutil.rmtree(copy)
    assert steps == {18, 20}  # some files are copies that nobody reads


def test_any_field_of_the_metadata_that_is_gone_is_seen(finished, tmp_path):
    folder, learn = finished
    path = Path("20", checkpoint.METADATA)
    whole = json.loads((folder / path).read_text())
    for name in [*whole["custom_metadata"], "fit/schedule", "data/split"]:
        copy, (first, *rest) = shutil.copytree(folder, tmp_path / "copy"), name.split("/")
        part = json.loads(json.dumps(whole))
        inner = part["custom_metadata"]
        for key in [first, *rest][:-1]:
            inner = inner[key]
        del inner[[first, *rest][-1]]
        (copy / path).write_text(json.dumps(part))
        assert restored(copy, learn) == 18, name
        shutil.rmtree(copy)


def test_an_empty_folder_of_the_newest_step_is_seen(finished, tmp_path):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    shutil.rmtree(copy / "20")
    (copy / "20").mkdir()
    assert restored(copy, finished[1]) == 18


def test_a_checkpoint_of_format_1_is_refused_in_one_line(tmp_path):
    learn = rows()
    learn.save(tmp_path / "saved")
    path = tmp_path / "saved" / checkpoint.METADATA
    old = json.loads(path.read_text())
    for name in ("seal", "format"):
        del old["custom_metadata"][name]
    path.write_text(json.dumps(old))
    with pytest.raises(ValueError, match="is a checkpoint of format 1, which this jaxfast does not read") as error:
        learn.load(tmp_path / "saved")
    assert "\n" not in str(error.value)


# Saving


def test_a_checkpoint_is_there_at_every_moment(tmp_path):
    path, learn, missing, over = tmp_path / "saved", rows(), [], threading.Event()
    learn.save(path)

    def watch():
        while not over.is_set():
            missing.extend([1] if not os.path.exists(path / checkpoint.METADATA) else [])

    watcher = threading.Thread(target=watch)
    watcher.start()
    for step in range(1, 6):
        learn.state = learn.state.replace(step=jax.numpy.int32(step))
        learn.save(path)
    over.set()
    watcher.join()
    learn.load(path)
    assert int(learn.state.step) == 5 and os.listdir(tmp_path) == ["saved"]
    if sys.platform == "linux":
        assert not missing


def test_without_an_exchange_of_names_the_new_one_takes_the_place(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "_exchange", lambda a, b: False)
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    checkpoint.replace_folder(tmp_path / "new", tmp_path / "old")
    assert os.listdir(tmp_path) == ["old"] and os.listdir(tmp_path / "old") == ["new"]


@pytest.fixture
def full_disk(tmp_path):
    """A file system of 600 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("a file system of its own cannot be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


def fill(folder, leave=0):
    """Fill the disk; returns the file that does."""
    path = folder / "filler"
    free = os.statvfs(folder)
    path.write_bytes(bytes(max(free.f_bavail * free.f_bsize - leave, 0)))
    return path


def test_a_full_disk_leaves_the_old_checkpoint(full_disk):
    learn = rows()
    learn.save(full_disk / "saved")
    filler = fill(full_disk, leave=8192)
    learn.state = learn.state.replace(step=jax.numpy.int32(7))
    with pytest.raises(OSError, match="saved cannot be written: the disk is full"):
        learn.save(full_disk / "saved")
    assert sorted(os.listdir(full_disk)) == ["filler", "saved"]
    other = rows()
    other.load(full_disk / "saved")
    assert int(other.state.step) == 0
    filler.unlink()
    learn.save(full_disk / "saved")
    other.load(full_disk / "saved")
    assert int(other.state.step) == 7


def test_a_disk_that_is_cleared_in_time_costs_nothing(full_disk, monkeypatch):
    learn, plain = rows(folder=full_disk / "run"), rows()
    filler, pauses = fill(full_disk, leave=16384), []

    def clear(seconds):
        pauses.append(seconds)
        if len(pauses) == 2:
            filler.unlink()

    monkeypatch.setattr(checkpoints.time, "sleep", clear)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        learn.fit_one_cycle(2, 1e-2)
    sentences = [str(warning.message) for warning in said if warning.category is RuntimeWarning]
    assert sentences[0].endswith("cannot be written: the disk is full; trying again in 1 s") and len(sentences) == 2
    plain.fit_one_cycle(2, 1e-2)
    assert pauses == [1.0, 5.0] and training.fingerprint(learn.state) == training.fingerprint(plain.state)
    assert (
        learn.checkpoints.steps[-1] == 20 and learn.checkpoints.restore(plain.state)[1].losses == plain.history.losses
    )


def test_a_disk_that_stays_full_ends_the_fit_with_a_good_state(full_disk, monkeypatch):
    learn = rows(folder=full_disk / "run")
    fill(full_disk, leave=16384)
    monkeypatch.setattr(checkpoints, "PAUSES", (0.0, 0.0))
    with warnings.catch_warnings(), pytest.raises(OSError, match=r"/run/\d+ cannot be written: the disk is full"):
        warnings.simplefilter("ignore", RuntimeWarning)
        learn.fit_one_cycle(2, 1e-2)
    steps = int(learn.state.step)
    assert len(learn.history.losses) == steps > 0 and np.isfinite(learn.validate()["loss"])


# One writer

HOLD = """
import sys, time
from jaxfast.training import writer
writer.LEASE_SECONDS = float(sys.argv[2])
held = writer.claim(sys.argv[1]) if sys.argv[3] == "lock" else writer._lease(sys.argv[1])
print("held", flush=True)
time.sleep(600)
"""


@contextlib.contextmanager
def holder(folder, kind, lease=3.0):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder), str(lease), kind], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_the_second_writer_is_told_who_the_first_is(tmp_path):
    with holder(tmp_path, "lock") as first:
        learn = rows(folder=tmp_path)  # looking is allowed
        with pytest.raises(ValueError, match=rf"is written by process {first.pid} on .*, since 20.*: end that run"):
            learn.fit_one_cycle(1, 1e-2)
        assert int(learn.state.step) == 0
        first.kill()
        first.wait()
        learn.fit_one_cycle(1, 1e-2)
    learn.checkpoints.close()


def test_objects_of_one_process_share_a_folder(tmp_path):
    first, second = training.Checkpoints(tmp_path), training.Checkpoints(tmp_path)
    first.claim()
    second.claim()
    first.close()


def test_a_lease_is_kept_while_its_holder_lives_and_ends_soon_after(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "LEASE_SECONDS", 3.0)
    with holder(tmp_path, "lease") as first:
        with pytest.raises(ValueError, match=f"is written by process {first.pid} on "):
            writer._lease(str(tmp_path))
        first.kill()
        first.wait()
        began = time.monotonic()
        release = writer._lease(str(tmp_path))
        assert time.monotonic() - began < 3.0 + 2.0
    release()
    assert not (tmp_path / writer.LEASE).exists()


def test_a_file_system_without_locks_has_a_lease(tmp_path, monkeypatch):
    import fcntl

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(writer, "LEASE_SECONDS", 0.3)
    held = writer.claim(str(tmp_path))
    assert (tmp_path / writer.LEASE).exists()
    held.release()
    assert not (tmp_path / writer.LEASE).exists()


def test_what_a_killed_writer_left_is_removed(tmp_path):
    left = tmp_path / "6.orbax-checkpoint-tmp"
    left.mkdir(parents=True)
    run = training.Checkpoints(tmp_path)
    assert left.exists() and run.steps == []
    run.claim()
    assert not left.exists()
    run.close()


# Which data, which schedule


@pytest.fixture(scope="module")
def halfway(tmp_path_factory):
    """A folder with a fit of tables that was interrupted in its second epoch."""
    folder = tmp_path_factory.mktemp("halfway")

    def stop(epoch, metrics, state):
        raise KeyboardInterrupt

    learn = rows(folder=folder)
    with pytest.raises(KeyboardInterrupt):
        learn.fit_one_cycle(2, 1e-2, after_epoch=[stop])
    learn.checkpoints.close()
    return folder


def renamed(df):
    return df.assign(y=df.y.replace({"p": "z"}))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda folder: rows(renamed(table()), folder).fit_one_cycle(2, 1e-2), "the classes were p, q and are q, z"),
        (lambda folder: rows(table()[["age", "h", "c", "y"]], folder).fit_one_cycle(2, 1e-2),
         "the continuous columns were h, age and are age, h now"),
        (lambda folder: rows(table().replace({"c": {"e": "a"}}), folder).fit_one_cycle(2, 1e-2),
         "the values of column 'c' were b, c, d, e and are a, b, c, d now"),
        (lambda folder: rows(table(seed=1), folder).fit_one_cycle(2, 1e-2), "the median of column 'h' was"),
        (lambda folder: rows(folder=folder, seed=1).fit_one_cycle(2, 1e-2), "(median of column|training examples)"),
        (lambda folder: rows(folder=folder, batch_size=16).fit_one_cycle(1, 1e-2), "batch_size was 32 and is 16 now"),
        (lambda folder: rows(folder=folder).fit_one_cycle(2, 2e-2),
         "another schedule: the learning rates are at most 0.01 then, 0.02 now"),
        (lambda folder: rows(folder=folder).fit(2, 1e-2), "the learning rates are of another form"),
        (lambda folder: rows(folder=folder).fit_one_cycle(2, 1e-2, moms=(0.9, 0.8, 0.9)), "the momentum is at most"),
        (lambda folder: rows(folder=folder).fit_one_cycle(2, 1e-2, weight_decay=0.1), "the weight decay is at most"),
        (lambda folder: rows(folder=folder).fit_one_cycle(3, 1e-2), "a fit of 20 steps from step 0 on"),
    ],
)  # fmt: skip
def test_a_run_resumes_only_what_it_began(halfway, tmp_path, change, message):
    copy = shutil.copytree(halfway, tmp_path / "copy")
    with pytest.raises(ValueError, match=message):
        change(copy)
    assert training.Checkpoints(copy).steps == training.Checkpoints(halfway).steps


def test_the_same_run_resumes(halfway, tmp_path):
    copy, plain = shutil.copytree(halfway, tmp_path / "copy"), rows()
    again = rows(folder=copy)
    again.fit_one_cycle(2, 1e-2)
    plain.fit_one_cycle(2, 1e-2)
    assert training.fingerprint(again.state) == training.fingerprint(plain.state)


def test_another_split_of_images_is_named_but_not_another_size_or_place(tmp_path):
    def fit(folder, seed=42, **options):
        images, labels = arrays(160)
        task = vision.from_arrays(
            images, labels, classes=["r", "g", "b"], batch_size=32, augment=False, seed=seed, **options.pop("data", {})
        )
        learn = learner(task, checkpoints=training.Checkpoints(folder, every=2), **options)

        def stop(epoch, metrics, state):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            learn.fit(2, 1e-3, after_epoch=[stop])
        learn.checkpoints.close()

    fit(tmp_path / "run")
    with pytest.raises(ValueError, match=r"the training examples are others \(another seed"):
        fit(shutil.copytree(tmp_path / "run", tmp_path / "seed"), seed=1)
    fit(shutil.copytree(tmp_path / "run", tmp_path / "size"), data={"size": 12})
    fit(shutil.copytree(tmp_path / "run", tmp_path / "streamed"), resident=False)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: rows(table()[["age", "h", "c", "y"]]), "the continuous columns were h, age and are age, h now"),
        (
            lambda: rows(table().replace({"c": {"e": "a"}})),
            "the values of column 'c' were b, c, d, e and are a, b, c, d",
        ),
        (lambda: rows(renamed(table())), "the classes were p, q and are q, z now"),
    ],
)
def test_weights_are_loaded_only_for_the_same_columns_and_classes(tmp_path, other, message):
    rows().save(tmp_path / "saved")
    with pytest.raises(ValueError, match=message):
        other().load(tmp_path / "saved")
    rows(table(seed=1)).load(tmp_path / "saved")  # other rows of the same kind


def test_weights_are_loaded_only_for_the_same_users(tmp_path):
    rate = lambda df: collab.learner(collab.from_frame(df, valid=np.arange(100)), n_factors=4, quiet=True)
    rate(ratings()).save(tmp_path / "saved")
    with pytest.raises(ValueError, match="does not fit this data: the users were 0, 1, 2"):
        rate(ratings().replace({"user": {0: 99}})).load(tmp_path / "saved")
    rate(ratings()).load(tmp_path / "saved")


@pytest.mark.parametrize("frozen", [True, False])
def test_a_state_with_other_trained_norms_is_loaded_whole(tmp_path, frozen):
    saved, other = learner(data(n=96), train_norm=frozen), learner(data(n=96), train_norm=not frozen)
    saved.freeze_to(1)
    other.freeze_to(1)
    saved.save(tmp_path / "saved")
    other.load(tmp_path / "saved")
    assert other.train_norm is frozen and training.fingerprint(other.state) == training.fingerprint(saved.state)
