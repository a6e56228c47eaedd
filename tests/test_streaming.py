"""The stream of batches: the same bits from any step, by threads and by processes, and what is read ahead."""

import gc
import multiprocessing
import os
import subprocess
import sys
import textwrap
import threading
import time

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small import learner

from jaxfast import vision
from jaxfast.data import ImageDataset, dataset, loader
from jaxfast.data.pack import pack
from jaxfast.mesh import data_mesh

N, BATCH = 100, 40  # two batches an epoch, and 20 images left over
KEY = jax.random.key(3)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A hundred JPEGs of noise, large enough to be decoded at half their size."""
    root, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    for i in range(N):
        path = root / "ab"[i % 2] / f"{i:03}.jpg"
        path.parent.mkdir(exist_ok=True)
        pixels = rng.integers(0, 256, (5, 6, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((70 + i % 3, 60)).save(path)
    return root


@pytest.fixture(scope="module")
def train(folder):
    data = vision.from_folder(folder, size=14, batch_size=BATCH, valid=[0, 1])
    whole = ImageDataset(data.train.items, np.arange(N), np.arange(N, dtype=np.int32), (14, 14))
    assert whole[0]["image"].std() > 20
    return whole


def expected(data, step):
    epoch, within = divmod(step, len(data) // BATCH)
    return data.batch(loader.epoch_order(KEY, epoch, len(data))[within * BATCH : (within + 1) * BATCH])


def read(feed, step):
    epoch, within = divmod(step, feed.examples // BATCH)
    piece = feed.piece(feed.order(KEY, epoch), within, 9)
    assert (piece.start, piece.n) == (0, 1)
    return jax.device_get(piece.data)


def check(feed, steps):
    for step in steps:
        batch, right = read(feed, step), expected(feed.dataset, step)
        assert batch.keys() == right.keys()
        for name in right:
            assert batch[name].tobytes() == right[name].tobytes(), (step, name)


def _until(condition):
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_any_step_across_epochs_and_back_is_the_same_bits(train):
    feed = loader.Streamed(train, BATCH, data_mesh())
    for steps in (range(7), (6, 7, 8), (3, 4), (4,), range(1000, 1003)):
        check(feed, steps)
    other = jax.random.key(4)
    batch = jax.device_get(feed.piece(feed.order(other, 1), 0, 1).data)
    np.testing.assert_array_equal(batch["target"], loader.epoch_order(other, 1, N)[:BATCH])


def test_resident_and_streamed_pixels_are_the_same(train):
    resident, streamed = loader.Resident.put(train, BATCH, data_mesh()), loader.Streamed(train, BATCH, data_mesh())
    order = np.asarray(resident.order(KEY, 1))[:BATCH]
    assert np.asarray(resident.data["image"])[order].tobytes() == read(streamed, 2)["image"].tobytes()


@pytest.fixture(scope="module")
def packed(folder, tmp_path_factory):
    pytest.importorskip("array_record")
    out = tmp_path_factory.mktemp("packed") / "out"
    pack(folder, out, size=16, shard_size=30, quiet=True)
    return vision.from_packed(out, size=14, batch_size=BATCH, valid=0.05).train


def test_worker_processes_give_the_same_bits(train, monkeypatch):
    monkeypatch.setattr(jax.sharding.Mesh, "__reduce__", None)  # nothing of jax travels to a worker
    feed = loader.Streamed(train, BATCH, data_mesh(), workers=2)
    check(feed, range(3, 8))
    assert len(multiprocessing.active_children()) == 2
    feed.close()
    _until(lambda: not multiprocessing.active_children())
    # as after a restart in the middle of an epoch, with another number of workers
    check(loader.Streamed(train, BATCH, data_mesh(), workers=1), range(5, 8))


def test_a_worker_opens_the_shards_of_a_pack_by_itself(packed):
    check(loader.Streamed(packed, BATCH, data_mesh()), range(2))  # the files are open here, too
    check(loader.Streamed(packed, BATCH, data_mesh(), workers=1), range(1, 4))


def test_a_script_streams_with_workers(tmp_path):
    """Outside of pytest and of absl's own programs, and it ends by itself without closing anything."""
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
            import jax, numpy as np
            from jaxfast.data import ImageDataset, loader
            from jaxfast.mesh import data_mesh

            def main():
                images = np.arange(20 * 12, dtype=np.uint8).reshape(20, 2, 6)
                data = ImageDataset(images, np.arange(20), np.arange(20, dtype=np.int32), (2, 2))
                feed = loader.Streamed(data, 8, data_mesh(), workers=1)
                key = jax.random.key(0)
                targets = [np.asarray(feed.piece(feed.order(key, 0), i, 1).data["target"]) for i in range(2)]
                print(np.array_equal(np.concatenate(targets), loader.epoch_order(key, 0, 20)[:16]))

            if __name__ == "__main__":
                main()
            """)
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, timeout=240, env=environment
    )
    assert (done.stdout, done.stderr, done.returncode) == ("True\n", "", 0)


class Counted:
    """A data set of numbers that notes which were read."""

    def __init__(self, n):
        self.n, self.seen, self.lock = n, [], threading.Lock()

    def __len__(self):
        return self.n

    def batch(self, index):
        with self.lock:
            self.seen.extend(index.tolist())
        return {"target": np.asarray(index)}


def test_two_batches_are_on_the_device_before_they_are_asked_for(monkeypatch):
    placed, place_rows = [], loader.place_rows

    def place(batch, *where):
        placed.append(batch["target"])
        return place_rows(batch, *where)

    monkeypatch.setattr(loader, "place_rows", place)
    data = Counted(64 * 50)
    feed = loader.Streamed(data, 64, data_mesh())
    feed.piece(feed.order(KEY, 0), 0, 1)
    _until(lambda: len(placed) >= 3)
    order = loader.epoch_order(KEY, 0, len(data))
    for i in range(3):
        np.testing.assert_array_equal(placed[i], order[i * 64 : (i + 1) * 64])
    time.sleep(0.3)
    # The one that was taken, two that wait, one in the hand of the thread; on the host two more and what is being read.
    assert len(placed) <= 4
    assert len(data.seen) <= (4 + 2 + 2) * 64
    for i in range(1, 5):
        feed.piece(feed.order(KEY, 0), i, 1)
        _until(lambda i=i: len(placed) >= i + 3)


def test_an_unreadable_image_is_named_when_its_batch_comes_and_again(folder, tmp_path):
    files = [*vision.from_folder(folder, size=14, batch_size=8).train.items]
    order = loader.epoch_order(KEY, 0, N)
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(b"no image")
    files[order[BATCH + 5]] = bad  # in batch 1
    feed = loader.Streamed(
        ImageDataset(files, np.arange(N), np.arange(N, dtype=np.int32), (14, 14)), BATCH, data_mesh()
    )
    check(feed, [0])
    for _ in range(2):
        with pytest.raises(ValueError, match="cannot read 1 of the .*bad.jpg .*on_error=.skip.$"):
            read(feed, 1)
    Image.new("RGB", (20, 20)).save(bad)
    check(feed, [1, 0])


def test_a_worker_names_an_unreadable_image_too(tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no image")
    data = ImageDataset([tmp_path / "bad.jpg"] * 8, np.arange(8), np.arange(8), (4, 4))
    feed = loader.Streamed(data, 8, data_mesh(), workers=1)
    with pytest.raises(ValueError, match="cannot read 1 of the .*bad.jpg .*on_error=.skip.$"):
        feed.piece(feed.order(KEY, 0), 0, 1)


def test_an_interrupt_loses_no_batch(train):
    feed = loader.Streamed(train, BATCH, data_mesh())
    check(feed, [0])

    class Interrupted:
        def __init__(self, batches):
            self.batches = batches

        def __next__(self):
            next(self.batches)
            raise KeyboardInterrupt

    feed._batches = Interrupted(feed._batches)
    with pytest.raises(KeyboardInterrupt):
        read(feed, 1)
    check(feed, [1, 2])


def _streaming_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("grain")]


@pytest.mark.parametrize("how", ["close", "forget"])
def test_nothing_runs_on_when_a_stream_is_closed_or_gone(train, how):
    gc.collect()
    before = set(_streaming_threads())  # those of other tests may still be on their way out
    feed = loader.Streamed(train, BATCH, data_mesh())
    check(feed, [0])
    own = set(_streaming_threads()) - before
    assert own
    if how == "close":
        feed.close()
        feed.close()
    else:
        del feed
        gc.collect()
    _until(lambda: not own & set(_streaming_threads()))


@settings(max_examples=100, deadline=None)
@given(
    n=st.integers(1, 60), batch=st.integers(1, 60), cuts=st.tuples(st.integers(0, 60), st.integers(0, 60)),
    size=st.integers(1, 20), step=st.integers(0, 30),
)  # fmt: skip
def test_the_parts_of_a_batch_make_the_rows_of_a_process(n, batch, cuts, size, step):
    n = max(n, batch)
    start, stop = sorted(min(cut, batch) for cut in cuts)
    if start == stop:
        start, stop = 0, batch
    load = loader._Load(Counted(n), batch, slice(start, stop), loader._seeds(KEY), size)
    parts = [load(step * load.parts + part)["target"] for part in range(load.parts)]
    assert max(map(len, parts)) <= size
    epoch, within = divmod(step, n // batch)
    order = loader.epoch_order(KEY, epoch, n)
    np.testing.assert_array_equal(np.concatenate(parts), order[within * batch :][start:stop])


def test_images_are_decoded_by_one_pool_of_threads():
    class Watched:
        """Images that note how many of them are read at once."""

        now = most = 0
        lock = threading.Lock()

        def __getitem__(self, i):
            with self.lock:
                self.now += 1
                self.most = max(self.most, self.now)
            time.sleep(0.002)
            with self.lock:
                self.now -= 1
            return np.full((4, 4), i % 256, np.uint8)

    items = Watched()
    data = ImageDataset(items, np.arange(400), np.arange(400, dtype=np.int32), (4, 4))
    check(loader.Streamed(data, BATCH, data_mesh()), range(12))
    assert 1 <= items.most <= min(32, os.cpu_count())


def test_a_worker_of_a_data_loader_decodes_by_itself(monkeypatch, train):
    right = train.batch(np.arange(3))
    assert dataset._decoders() is dataset._decoders() is not None
    daemon = type("Process", (), {"daemon": True})
    monkeypatch.setattr(multiprocessing, "current_process", daemon)
    monkeypatch.setattr(dataset, "_decoders", dataset._decoders.__wrapped__)
    assert dataset._decoders() is None
    np.testing.assert_array_equal(train.batch(np.arange(3))["image"], right["image"])


def test_the_learner_passes_workers_on():
    learn = learner(resident=False, workers=3)
    assert learn.task.source.workers == 3
    with pytest.raises(ValueError, match="workers=-1: give a whole number from 0 on"):
        loader.Streamed(learn.data.train, 8, learn.mesh, workers=-1)
