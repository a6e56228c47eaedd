"""A run that is killed, told to go, moved or damaged ends with the same numbers."""

import gc
import os
import random
import re
import shutil
import signal
import sys
import time
import warnings

import jax
import jobs
import numpy as np
import pytest
import small

from jaxfast import training
from jaxfast.training import checkpoint


def said(text, name):
    """What the job printed after `name`."""
    return [line.split()[1:] for line in text.splitlines() if line.split()[:1] == [name]][-1]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What an uninterrupted run prints."""
    return jobs.run("training", folder=str(tmp_path_factory.mktemp("whole")))[0]


def kill_until_done(folder, seed, kills, **options):
    """Kill the job `kills` times, each at a random moment after it said "ready", then let it end."""
    chance = random.Random(seed)
    for _ in range(kills):
        (process,) = jobs.start("training", folder=str(folder), pause=0.2, **options)
        for line in process.stdout:
            if line.startswith("ready"):
                break
        time.sleep(chance.uniform(0, 4))
        process.kill()
        process.communicate()
    return jobs.run("training", folder=str(folder), **options)[0]


@pytest.mark.parametrize("kills", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_killed_at_random_moments(tmp_path, whole, kills):
    text = kill_until_done(tmp_path / "run", seed=kills, kills=kills)
    assert said(text, "state") == said(whole, "state")
    assert said(text, "losses") == said(whole, "losses")
    assert said(text, "valid") == said(whole, "valid")


def told_to_go(folder, processes, devices):
    """Send SIGTERM to the last process after its first epoch; the exit codes and what was printed."""
    run = jobs.start("training", folder=str(folder), pause=0.5, every=1000, processes=processes, devices=devices)
    for line in run[-1].stdout:
        if line.startswith("epoch"):
            break
    os.kill(run[-1].pid, signal.SIGTERM)
    texts = [process.communicate(timeout=300)[0] for process in run]
    return [process.returncode for process in run], texts


def test_sigterm_saves_first(tmp_path, whole):
    codes, texts = told_to_go(tmp_path / "run", 1, 8)
    assert codes == [143], texts
    assert "the same command goes on from there" in texts[0]
    text = jobs.run("training", folder=str(tmp_path / "run"), every=1000)[0]
    assert "going on" not in text  # it is quiet
    assert said(text, "state") == said(whole, "state")


@pytest.mark.slow
def test_a_notice_to_one_process_stops_all_at_one_step(tmp_path):
    codes, texts = told_to_go(tmp_path / "run", 2, 4)
    assert codes == [143, 143], texts
    finished = jobs.run("training", folder=str(tmp_path / "run"), processes=2, devices=4)
    again = jobs.run("training", folder=str(tmp_path / "other"), processes=2, devices=4)
    assert said(finished[0], "state") == said(again[0], "state") == said(finished[1], "state")


@pytest.mark.slow
def test_a_checkpoint_goes_to_other_devices_and_processes(tmp_path, whole):
    codes, _ = told_to_go(tmp_path / "run", 1, 8)
    assert codes == [143]
    for processes, devices in ((1, 1), (1, 4), (2, 4)):
        folder = shutil.copytree(tmp_path / "run", tmp_path / f"{processes}x{devices}")
        texts = jobs.run("training", folder=str(folder), processes=processes, devices=devices)
        losses, expected = (np.array(said(text, "losses"), float) for text in (texts[0], whole))
        np.testing.assert_allclose(losses, expected, rtol=0.02)
        restored = training.Checkpoints(tmp_path / "run").steps[-1]
        assert losses[:restored].tolist() == expected[:restored].tolist()


# In one process


def run_of(folder, epochs=2, **options):
    learn = small.learner(checkpoints=training.Checkpoints(folder, every=3, **options))
    learn.fine_tune(epochs, 1e-2)
    return learn


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    return folder, run_of(folder, keep_last=3)


def test_a_finished_run_is_only_loaded(finished, tmp_path):
    folder, learn = finished
    copy = shutil.copytree(folder, tmp_path / "copy")
    again = run_of(copy, keep_last=3)
    assert training.fingerprint(again.state) == training.fingerprint(learn.state)
    assert again.history.epochs == learn.history.epochs
    assert np.array_equal(again.history.lrs, learn.history.lrs)


def damage(folder, step):
    """Turn one byte of the parameters over."""
    files = [path for path in (folder / str(step) / "state").rglob("*") if path.parent.name == "d"]
    path = max(files, key=lambda path: path.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 8] ^= 255  # the later half may be of nodes that were replaced
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["a byte", "half a file", "no metadata"])
def test_a_damaged_checkpoint_is_passed_over(finished, tmp_path, monkeypatch, how):
    # orbax leaves the reads that failed to the garbage collector, which complains of each
    monkeypatch.setattr(sys, "unraisablehook", lambda *_: None)
    folder, learn = finished
    copy = shutil.copytree(folder, tmp_path / "copy")
    newest = training.Checkpoints(copy).steps[-1]
    if how == "a byte":
        damage(copy, newest)
    elif how == "half a file":
        path = copy / str(newest) / "state" / "manifest.ocdbt"
        path.write_bytes(path.read_bytes()[:40])
    else:
        (copy / str(newest) / "_CHECKPOINT_METADATA").unlink()
    with warnings.catch_warnings(record=True) as seen:  # orbax's abandoned reads may warn too, at any moment
        warnings.simplefilter("always")
        again = run_of(copy, keep_last=3)
    ours = [str(warning.message) for warning in seen if warning.category is RuntimeWarning]
    assert any(re.search(f"{newest}.*going back to the checkpoint before it", message) for message in ours)
    assert training.fingerprint(again.state) == training.fingerprint(learn.state)
    assert again.history.losses == learn.history.losses
    gc.collect()


def test_the_best_epoch_is_kept(tmp_path):
    learn = small.learner(checkpoints=training.Checkpoints(tmp_path, keep_last=1, keep_best="valid_loss"))
    learn.fit(2, 1e-2)
    kept = learn.validate()
    learn.fit(2, 10.0)
    assert learn.validate()["loss"] > kept["loss"]
    best = min(learn.history.epochs, key=lambda epoch: epoch["valid_loss"])
    assert learn.checkpoints.steps == [best["step"], 32]
    learn.load(learn.checkpoints.best)
    assert learn.validate()["loss"] == pytest.approx(best["valid_loss"], rel=1e-5)


def test_recipes_remember_over_a_restart(tmp_path):
    def patience(folder, epochs):
        learn = small.learner(checkpoints=folder)
        learn.fit(epochs, 0.0, after_epoch=[training.recipes.early_stop(patience=2)])
        return learn

    assert len(patience(tmp_path / "a", 5).history) == 3
    stopped = patience(tmp_path / "a", 5)  # had it forgotten, it would train on
    assert len(stopped.history) == 3


@pytest.mark.parametrize(
    "wrong, message",
    [
        (
            lambda folder: run_of(folder, epochs=3),
            "a fit of 16 steps from step 8 on, this one has 24 from step 8",
        ),
        (lambda folder: small.learner(checkpoints=folder).fit(3, 1e-2), "holds a fit of 16 steps from step 8 on"),
        (lambda folder: training.Checkpoints(folder, every=0), "every=0 and keep_last=2 must be at least 1"),
        (
            lambda folder: small.learner(checkpoints=folder).fit(9, 1e-2, after_epoch=[training.recipes.keep_best()]),
            r"keep_best\(\) forgets at a restart",
        ),
        (
            lambda folder: small.learner(checkpoints=training.Checkpoints(f"{folder}-new", keep_best="f1")).fit(
                1, 1e-2
            ),
            "keep_best='f1' is not among the metrics train_loss, valid_loss, accuracy",
        ),
    ],
)
def test_what_does_not_go_together(finished, tmp_path, wrong, message):
    copy = shutil.copytree(finished[0], tmp_path / "copy")
    with pytest.raises(ValueError, match=message):
        wrong(copy)


def test_fingerprints_see_every_bit():
    state = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array([True, False]), "c": np.int32(3)}
    marks = {training.fingerprint(state)}
    for change in (
        {"a": state["a"][::-1]},
        {"a": state["a"] + np.float32(1e-7)},
        {"b": ~state["b"]},
        {"c": np.int32(4)},
    ):
        marks.add(training.fingerprint(state | change))
    assert len(marks) == 5


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "uint8", "int32", "bool", "uint32"])
def test_fingerprints_of_arrays_on_many_processes(dtype):
    """The compiled sum, which such arrays need, is the host's."""
    values = np.random.default_rng(0).normal(size=(33, 5)) * 100
    values = jax.numpy.asarray(values).astype(dtype)
    assert int(checkpoint._spread_sum(values)) == checkpoint._host_sum(np.asarray(values)) % 2**32
