"""Texts on the host: tokens, vocabulary, cache, language-model streams, buckets, and both kinds of data in training."""

import hashlib
import itertools
import json
import lzma
import os
import subprocess
import sys
from collections import Counter

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_learner import compilations

from jaxfast import losses, optim, training
from jaxfast.data import loader
from jaxfast.data.text import (
    SPECIAL,
    Documents,
    LanguageDataset,
    TextCodec,
    TextTokenizer,
    corpus,
    documents,
    language_data,
    text_data,
    tokenize,
    train_tokenizer,
    word_tokenizer,
)
from jaxfast.data.text.buckets import bucket_lengths, bucket_order
from jaxfast.data.text.chunks import Chunks
from jaxfast.data.text.show import TextTable
from jaxfast.mesh import data_mesh, replicated

NAMES = "alba bruno clara dario elena fabio gina hugo".split()
KINDS = ["words", "bpe", "unigram"]


def reviews(n, seed=0):
    """`n` texts of 1 to 60 sentences out of few words."""
    rng = np.random.default_rng(seed)
    line = lambda: f"{rng.choice(NAMES).title()} isn't {rng.choice(NAMES)}, but it's {rng.integers(100)}!!!"
    return [" ".join(line() for _ in range(rng.geometric(0.1) % 60 + 1)) for _ in range(n)]


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request):
    return train_tokenizer(Chunks.of(reviews(50)), np.arange(50), tokens=request.param, max_vocab=120)


# Tokens


@pytest.mark.parametrize(
    "text, tokens",
    [
        ("it isn't John's, they'll", "it is n't xxmaj john 's , they 'll"),
        ("We CAN'T tell; I'm Gonna, cannot", "xxmaj we xxup ca n't tell ; xxmaj i 'm xxmaj gon na , can not"),
        ("3.5 stars, $1,250.50 at 10:30 a.m.", "3.5 stars , $ 1,250.50 at 10:30 a.m."),
        ("a well-known 9-year-old (80s)", "a well - known 9 - year - old ( 80s )"),
        ("U.S.A. e.g. o'clock R&B rock'n'roll", "xxup u.s.a. e.g. o'clock xxup r&b rock'n'roll"),
        ("great.The end... -- so", "great . the end … -- so"),
        ('"Hi" :) (see: here) [50%]', '" hi " :) ( see : here ) [ 50 % ]'),
        ("naïve café\u0301 漢字 😀!?", "naïve café\u0301 漢字 😀 ! ?"),
        ("one<br /><br />two \n three", "one \n\n two \n▁ three"),
        ("the 'em' boys' _x_ don’t", "the ' em ' boys ' _x_ do n’t"),
        ("xxmajor x▁y", "xxmajor x ▁ y"),
    ],
)
def test_words_are_cut_as_spacy_cuts_them(text, tokens):
    expected = ["xxbos", *tokens.split(" ")]
    made = train_tokenizer(Chunks.of([text]), np.arange(1), min_freq=1)
    assert [made.words[i] for i in made.encode([text])[0]] == expected


def test_the_vocabulary_is_ordered_by_frequency_and_then_by_text():
    texts = ["b b a a", "c c d", "a b xxmaj", "e f e E e"]
    words = lambda **options: train_tokenizer(Chunks.of(texts), np.arange(4), **options).words[len(SPECIAL) :]
    assert words(min_freq=1) == ("e", "a", "b", "c", "d", "f")
    assert words() == ("e", "a", "b")
    assert words(min_freq=2, max_vocab=len(SPECIAL) + 2) == ("e", "a")
    assert train_tokenizer(Chunks.of(texts), np.arange(4)).words[: len(SPECIAL)] == SPECIAL
    # of the training texts alone
    assert train_tokenizer(Chunks.of(texts), np.array([1, 2]), min_freq=2).words[len(SPECIAL) :] == ("c",)


def test_the_vocabulary_counts_every_token_of_the_texts():
    texts = reviews(40)
    everything = train_tokenizer(Chunks.of(texts), np.arange(40), min_freq=1)
    counts = Counter(everything.words[i] for text in texts for i in everything.encode([text])[0])
    for word in SPECIAL:
        del counts[word]
    expected = sorted((word for word, n in counts.items() if n >= 5), key=lambda word: (-counts[word], word))
    assert train_tokenizer(Chunks.of(texts), np.arange(40), min_freq=5).words == (*SPECIAL, *expected)


def test_texts_encode_alike_alone_and_together(tokenizer):
    texts = [*reviews(20, seed=1), "", "unseen wörds", b"bytes"]
    together = tokenizer.encode(texts)
    assert len(together) == len(texts) and together.ids.dtype == np.uint16
    for i, text in enumerate(texts):
        np.testing.assert_array_equal(together[i], tokenizer.encode([text])[0])
        assert together[i][0] == SPECIAL.index("xxbos")
    assert together.lengths[20] == 1
    assert tokenizer.words[: len(SPECIAL)] == SPECIAL and len(set(tokenizer.words)) == len(tokenizer)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.characters(), max_size=40) | st.binary(max_size=20), max_size=4))
def test_any_text_has_ids_and_a_text(tokenizer, texts):
    encoded = tokenizer.encode(texts)
    assert len(encoded) == len(texts)
    for ids in encoded:
        assert ids[0] == 2 and ids.max() < len(tokenizer)
        assert isinstance(tokenizer.decode(ids), str)


def test_decoding_gives_back_what_was_read(tokenizer):
    text = "Alba isn't bruno, but it's 17!!! CLARA"
    assert tokenizer.decode(tokenizer.encode([text])[0]).replace("xxunk", "17") in (text, text.replace("17", "1717"))


def test_decoding_a_model_that_repeats_itself(tokenizer):
    assert tokenizer.decode([2, 8, 7, 5, 8, 0, 3, 1, 6]).count("xxunk") == 1


@pytest.mark.parametrize("text", ["film is a film. " * 60_000, "ab'" * 300_000, "!?" * 300_000, "é漢" * 300_000])
def test_a_text_of_a_megabyte(tokenizer, text):
    ids = tokenizer.encode([text, "short"])
    assert len(ids) == 2 and ids.lengths[1] < 10
    assert tokenizer.decode(ids[0][:200])


def test_bytes_that_are_no_utf8_are_replaced():
    made = train_tokenizer(Chunks.of(["caf\ufffd café"]), np.arange(1), min_freq=1)
    np.testing.assert_array_equal(made.encode([b"caf\xe9 caf\xc3\xa9"]).ids, made.encode(["caf\ufffd café"]).ids)
    np.testing.assert_array_equal(made.encode(["caf\ud83d"]).ids, made.encode(["caf\ufffd"]).ids)


def test_the_same_ids_in_every_process():
    code = (
        "import hashlib, sys, numpy as np; sys.path.insert(0, 'tests')\n"
        "from test_text_data import KINDS, reviews; from jaxfast.data.text import tokenize\n"
        "for kind in KINDS:\n"
        "    made, ids = tokenize(reviews(60), np.arange(40), tokens=kind, max_vocab=150)\n"
        "    print(hashlib.sha256(made.state.encode() + ids.ids.tobytes()).hexdigest())"
    )
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    outputs = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": root},
            cwd=root, capture_output=True, text=True, check=True,
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    here = [tokenize(reviews(60), np.arange(40), tokens=kind, max_vocab=150) for kind in KINDS]
    digests = [hashlib.sha256(made.state.encode() + ids.ids.tobytes()).hexdigest() for made, ids in here]
    assert outputs[0].split() == outputs[1].split() == digests


def test_a_vocabulary_that_is_given():
    made = word_tokenizer(["film", "xxbos", "good"])
    assert made.words == (*SPECIAL, "film", "good")
    assert made.encode(["Good film, bad"])[0].tolist() == [2, 8, 10, 9, 0, 0]
    given, _ = tokenize(["Good film, bad"], vocab=["film", "good"])
    assert given == made
    with pytest.raises(ValueError, match="the vocabulary is 'film': give a list of words"):
        tokenize(["a film"], vocab="film")
    with pytest.raises(ValueError, match="the vocabulary holds film more than once: give each word once"):
        word_tokenizer(["film", "film"])


def test_a_missing_package_is_named_with_the_command(monkeypatch):
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(ImportError, match=r"texts need tokenizers: pip install 'jaxfast\[text\]'"):
        word_tokenizer(["film"])


def test_importing_leaves_tokenizers_out():
    code = "import sys, jaxfast, jaxfast.data.text; print('tokenizers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


# The token store


def test_documents_keep_texts_apart(tmp_path):
    texts = [[2, 5, 7], [2], [], [2, 9]]
    store = Documents.of(texts, 10, np.array([1, 0, 1, 0]))
    assert [text.tolist() for text in store] == texts and store.lengths.tolist() == [3, 1, 0, 2]
    some = store.take(np.array([3, 0, 3]))
    assert [text.tolist() for text in some] == [texts[3], texts[0], texts[3]] and some.labels.tolist() == [0, 1, 0]
    assert [text.tolist() for text in store.last(2)] == [[5, 7], [2], [], [2, 9]]
    assert len(store.take(np.array([], int))) == 0
    store.save(tmp_path / "store.npz")
    again = Documents.load(tmp_path / "store.npz")
    for name in ("ids", "offsets", "labels"):
        np.testing.assert_array_equal(getattr(again, name), getattr(store, name))
    assert again.ids.dtype == np.uint16 and Documents.of(texts, 70_000).ids.dtype == np.int32
    with pytest.raises(IndexError, match="there are 4 texts, and no number 4"):
        store[4]


# The cache


@pytest.fixture
def counted(monkeypatch):
    """How often texts were taken apart."""
    calls, of = [], Chunks.of
    monkeypatch.setattr(corpus.Chunks, "of", classmethod(lambda cls, texts: calls.append(1) or of(texts)))
    return calls


def same(one, other):
    return one[0] == other[0] and all(np.array_equal(a, b) for a, b in zip(one[1], other[1], strict=True))


def test_the_cache_knows_texts_and_settings(tmp_path, counted):
    texts, cache = reviews(20), tmp_path / "cache"
    plain = tokenize(texts)
    made = tokenize(texts, cache=cache)
    assert len(counted) == 2 and same(plain, made)
    assert same(tokenize(texts, cache=cache), made) and len(counted) == 2
    assert made[0].encode(texts[:1]).ids.tolist() == made[1][0].tolist()
    others = [
        (texts[:-1], {}), (["".join(texts[:2]), *texts[2:]], {}), ([*texts[1:], texts[0]], {}),
        (texts, {"rows": np.arange(10)}), (texts, {"min_freq": 2}), (texts, {"max_vocab": 40}),
        (texts, {"tokens": "bpe", "max_vocab": 90}), (texts, {"vocab": word_tokenizer(NAMES)}),
    ]  # fmt: skip
    for i, (given_texts, options) in enumerate(others, 2):
        tokenize(given_texts, cache=cache, **options)
        assert len(list(cache.iterdir())) == i
    assert same(tokenize(texts, cache=cache), made)


@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty", "other"])
def test_a_damaged_cache_is_made_again_and_says_so(tmp_path, damage):
    texts = reviews(10)
    made = tokenize(texts, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    content = bytearray(file.read_bytes())
    content[len(content) // 3] ^= 255
    if damage == "other":
        np.savez(file, ids=np.arange(3))
    else:
        file.write_bytes({"truncated": content[:-100], "flipped": content, "empty": b""}[damage])
    with pytest.warns(UserWarning, match=r"text-[0-9a-f]*\.npz is damaged \(.*made again"):
        again = tokenize(texts, cache=tmp_path)
    assert same(again, made) and same(tokenize(texts, cache=tmp_path), made)


def test_a_cache_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(file, **arrays):
        file.write(b"half of it")
        raise OSError("no space left on device")

    monkeypatch.setattr(documents.np, "savez", full)
    with pytest.raises(OSError, match="no space left"):
        tokenize(reviews(5), cache=tmp_path)
    assert list(tmp_path.iterdir()) == []


# Language models


def stream_of(lengths, batch_size, bptt, full=True):
    """A dataset over texts of these lengths whose tokens count from 0."""
    ends = np.cumsum(lengths)
    texts = [range(end - n, end) for n, end in zip(lengths, ends, strict=True)]
    return LanguageDataset(Documents.of(texts, 70_000), batch_size, bptt, full)


def test_rows_worked_by_hand():
    """13 tokens, 2 streams of 3: the streams are 0 to 5 and 6 to 11."""
    batch = stream_of([13], 2, 3).batch(np.arange(4))
    assert batch["text"].tolist() == [[0, 1, 2], [6, 7, 8], [3, 4, 5], [9, 10, 11]]
    assert batch["target"].tolist() == [[1, 2, 3], [7, 8, 9], [4, 5, 6], [10, 11, 12]]
    assert batch["reset"].tolist() == [True, True, False, False]
    assert {name: values.dtype for name, values in batch.items()} == {"text": "int32", "target": "int32", "reset": bool}
    # validation keeps the row that makes no full batch: streams 0 to 5 and 6 to 8
    rows = stream_of([11], 2, 3, full=False).batch(np.arange(3))["text"]
    assert rows.tolist() == [[0, 1, 2], [6, 7, 8], [3, 4, 5]]


@settings(max_examples=100, deadline=None)
@given(
    lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12),
    batch_size=st.integers(1, 4),
    bptt=st.integers(1, 7),
    full=st.booleans(),
)
def test_streams_cover_the_tokens_in_order(lengths, batch_size, bptt, full):
    total = sum(lengths)
    rows = (total - 1) // bptt
    rows = rows // batch_size * batch_size if full else rows
    if not rows:
        with pytest.raises(ValueError, match="texts have .* tokens, but batch_size"):
            stream_of(lengths, batch_size, bptt, full)
        return
    dataset = stream_of(lengths, batch_size, bptt, full)
    assert len(dataset) == rows
    batch = dataset.batch(np.arange(rows))
    np.testing.assert_array_equal(batch["target"], batch["text"] + 1)  # token i is followed by i + 1
    streams = [batch["text"][s::batch_size].reshape(-1) for s in range(batch_size)]
    np.testing.assert_array_equal(np.concatenate(streams), np.arange(rows * bptt))
    left = total - 1 - rows * bptt
    assert left < bptt * (batch_size if full else 1)
    assert dataset.nbytes == sum(values.nbytes for values in batch.values())


def test_epochs_shuffle_whole_texts():
    dataset = stream_of([5, 3, 9, 1, 12, 4, 8] * 3, 2, 4)
    key, seen = jax.random.key(1), []
    for epoch in range(3):
        shuffled = dataset.shuffled(key, epoch)
        assert len(shuffled) == len(dataset)
        tokens = shuffled.documents.ids.tolist()
        assert sorted(tokens) == list(range(126))
        breaks = sum(after != before + 1 for before, after in itertools.pairwise(tokens))
        assert 15 <= breaks <= 20  # between texts alone
        seen.append(tokens)
        assert dataset.shuffled(key, epoch).documents.ids.tolist() == tokens
    assert seen[0] != seen[1] != seen[2]
    assert dataset.shuffled(jax.random.key(2), 0).documents.ids.tolist() != seen[0]


@pytest.fixture(scope="module")
def language():
    return language_data(reviews(60), batch_size=8, bptt=5, valid=0.2)


def test_a_feed_gives_the_same_batches_either_way(language):
    mesh, key = data_mesh(), jax.random.key(0)
    resident, streamed = (language.feed(mesh, resident=flag) for flag in (True, False))
    steps = len(language.train) // 8
    assert resident.examples == streamed.examples == len(language.train)
    for epoch in (0, 3):
        one, other = resident.order(key, epoch), streamed.order(key, epoch)
        expected = language.train.shuffled(key, epoch)
        for start in (0, 1, steps - 1):
            a, b = resident.piece(one, start, 4), streamed.piece(other, start, 4)
            assert (a.n, b.n) == (min(4, steps - start), 1)
            index = np.asarray(a.order)[a.start * 8 : (a.start + 1) * 8]
            wanted = expected.batch(np.arange(start * 8, start * 8 + 8))
            for name in ("text", "target", "reset"):
                np.testing.assert_array_equal(np.asarray(a.data[name])[index], wanted[name])
                np.testing.assert_array_equal(b.data[name], wanted[name])


class Counting(nn.Module):
    """Predicts from the word before; carries how many tokens each stream has read since it began."""

    vocab: int

    @nn.compact
    def __call__(self, text, reset, train=False):
        read = self.variable("carry", "read", jnp.zeros, (text.shape[0],), jnp.int32)
        read.value = jnp.where(reset, 0, read.value) + text.shape[1]
        logits = nn.Embed(self.vocab, self.vocab, name="table")(text)
        return logits


def language_task(language):
    module = Counting(len(language.vocab))
    example = language.train.batch(np.arange(8))
    state = training.create_state(module, [example[name] for name in language.inputs], optim.hyper_adamw)
    step = training.make_step(
        module,
        losses.cross_entropy,
        optim.hyper_adamw,
        training.trainable(state.params),
        inputs=language.inputs,
    )
    return state, step


def train(state, chunk, feed, steps, pace=None):
    rows = training.hyper_rows(steps, [lambda i: 1e-2], lambda i: 0.9, lambda i: 0.0)
    state = jax.device_put(jax.tree.map(jnp.copy, state), replicated(feed.mesh))
    seen = []
    for piece in training.run(state, chunk, feed, rows, pace):
        state = piece.state
        seen.extend(piece.losses.tolist())
    return jax.device_get(state.replace(key=0)), seen


def test_a_language_model_trains_carries_and_resumes(language):
    """A run of one epoch and a half equals itself in two parts, bit for bit; the carry begins anew with the epoch."""
    mesh = data_mesh()
    state, step = language_task(language)
    chunk = training.make_chunk(step, 8, mesh, resident=True)
    feed = language.feed(mesh, resident=True)
    per_epoch = len(language.train) // 8
    steps = per_epoch + per_epoch // 2
    with compilations() as programs:
        whole, seen = train(state, chunk, feed, steps, training.Pace(1e9, 100))
    assert programs.count("jit(chunk)") == 1
    assert whole.model_state["carry"]["read"].tolist() == [(steps - per_epoch) * 5] * 8
    half, first = train(state, chunk, feed, per_epoch - 2, training.Pace(1e9, 7))
    assert half.model_state["carry"]["read"].tolist() == [(per_epoch - 2) * 5] * 8
    rest, second = train(half.replace(key=state.key), chunk, feed, steps - per_epoch + 2, training.Pace(1e9, 3))
    assert first + second == seen
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, rest, whole)))
    assert np.mean(seen[-5:]) < np.mean(seen[:5])

    streamed = training.make_chunk(step, 8, mesh, resident=False)
    _, batch_by_batch = train(state, streamed, language.feed(mesh, resident=False), 6)
    np.testing.assert_allclose(batch_by_batch, seen[:6], rtol=1e-6)


def test_language_data(language):
    assert language.inputs == ("text", "reset") and language.classes is None
    assert len(language.train.documents) == 48 and len(language.valid.documents) == 12
    assert not language.valid.full and language.train.full
    ids = language.encode("Alba isn't here")["text"]
    assert ids.dtype == np.int32 and language.decode(ids) == "Alba isn't xxunk"
    table = language.show_batch(3)
    assert len(table.rows) == 3 and table.rows[0][0].split()[1:] == table.rows[0][1].split()[:-1]
    assert "48 training and 12 validation texts" in repr(language)
    # validation words are no part of the vocabulary
    assert "zyx" not in language_data(["zyx " * 9, *reviews(9)], valid=[0], batch_size=1, bptt=2).vocab


# Classifiers


def brute_force(lengths, n, multiple):
    sizes = sorted({-(-length // multiple) * multiple for length in lengths})
    cost = lambda chosen: sum(min(size for size in chosen if size >= length) for length in lengths)
    options = [(*some, sizes[-1]) for k in range(min(n, len(sizes))) for some in itertools.combinations(sizes[:-1], k)]
    return min(cost(option) for option in options)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=25), st.integers(1, 4), st.sampled_from([1, 8]))
def test_bucket_lengths_pad_the_least(lengths, n, multiple):
    chosen = bucket_lengths(lengths, n, multiple)
    assert len(chosen) <= n and chosen[-1] >= max(lengths) and chosen[-1] - max(lengths) < multiple
    assert all(length % multiple == 0 for length in chosen) and list(chosen) == sorted(set(chosen))
    padded = np.array(chosen)[np.searchsorted(chosen, lengths)]
    assert padded.sum() == brute_force(lengths, n, multiple)


def test_bucket_lengths_of_many_sizes():
    chosen = bucket_lengths(np.arange(1, 40_000), 4)
    assert len(chosen) == 4 and chosen[-1] == 40_000


@settings(max_examples=60, deadline=None)
@given(
    padded=st.lists(st.sampled_from([8, 16, 40, 96]), min_size=4, max_size=60),
    batch_size=st.integers(1, 4),
    epoch=st.integers(0, 3),
)
def test_bucket_order_is_an_epoch(padded, batch_size, epoch):
    padded, key = np.array(padded), jax.random.key(0)
    order = bucket_order(key, epoch, padded, batch_size)
    n = len(padded) // batch_size
    assert len(order.lengths) == n and order.index.dtype == np.int32
    # the texts of an epoch are those of a plain order, each once
    plain = loader.epoch_order(key, epoch, len(padded))[: n * batch_size]
    assert sorted(order.index) == sorted(plain)
    batches = order.index.reshape(n, batch_size)
    np.testing.assert_array_equal(padded[batches].max(1), order.lengths)
    assert order.lengths[0] == order.lengths.max()
    # a batch mixes buckets only where the shorter one was left over: at most one per bucket
    mixed = sum(len(set(row)) > 1 for row in padded[batches].tolist())
    assert mixed <= len(set(padded.tolist()))
    again = bucket_order(key, epoch, padded, batch_size)
    np.testing.assert_array_equal(again.index, order.index)


def test_bucket_orders_differ_by_epoch_and_are_mixed():
    padded = np.repeat([8, 16, 24, 32], 100)
    orders = [bucket_order(jax.random.key(0), epoch, padded, 10) for epoch in range(2)]
    assert not np.array_equal(orders[0].index, orders[1].index)
    assert 20 < (np.diff(orders[0].lengths) != 0).sum()  # 39 neighbours, sorted they would differ 3 times


LABELS = ["pos", "neg", "neg"] * 30


@pytest.fixture(scope="module")
def classifier():
    return text_data(reviews(90), LABELS, batch_size=8, buckets=3, valid=0.3)


def test_texts_are_padded_after_their_end(classifier):
    example = classifier.train[4]
    assert set(example) == {"text", "length", "target"} and example["text"].dtype == np.int32
    text, length = example["text"], int(example["length"])
    np.testing.assert_array_equal(text[:length], classifier.train.documents[4])
    assert (text[length:] == 1).all() and len(text) in classifier.codec.lengths
    batch = classifier.train.batch(np.arange(9))
    assert batch["text"].shape == (9, classifier.train.padded[:9].max())
    assert batch["length"].tolist() == classifier.train.documents.lengths[:9].tolist()


def test_validation_covers_every_text_once(classifier):
    seen, shapes = [], set()
    for batch in loader.padded_batches(classifier.valid, 8, data_mesh()):
        text, length, mask = (np.asarray(batch[name]) for name in ("text", "length", "mask"))
        shapes.add(text.shape)
        seen += [tuple(row[:n]) for row, n in zip(text[mask], length[mask], strict=True)]
    assert len(shapes) <= len(classifier.codec.lengths)
    assert seen == [tuple(text) for text in classifier.valid.documents]
    lengths = classifier.valid.documents.lengths
    assert len(seen) == 27 and (np.diff(lengths) <= 0).all()
    # labels and places came along
    texts = reviews(90)
    for i in (0, 13, 26):
        place = classifier.valid.index[i]
        np.testing.assert_array_equal(
            classifier.valid.documents[i], classifier.codec.tokenizer.encode([texts[place]])[0]
        )
        assert classifier.classes[classifier.valid[i]["target"]] == LABELS[place]


class Pooling(nn.Module):
    """Mean of word vectors over the text, padding left out."""

    vocab: int

    @nn.compact
    def __call__(self, text, length, train=False):
        there = jnp.arange(text.shape[1]) < length[:, None]
        words = nn.Embed(self.vocab, 4, name="words")(text) * there[..., None]
        return nn.Dense(2, name="head")(words.sum(1) / length[:, None])


def test_a_classifier_compiles_one_program_per_length(classifier):
    mesh, module = data_mesh(jax.devices()[:1]), Pooling(len(classifier.vocab))
    example = classifier.train.batch(np.arange(1))
    state = training.create_state(module, [example[name] for name in classifier.inputs], optim.hyper_adamw)
    part = training.trainable(state.params)
    step = training.make_step(module, losses.cross_entropy, optim.hyper_adamw, part, inputs=classifier.inputs)
    chunk = training.make_chunk(step, 8, mesh, resident=False)
    feed = classifier.feed(mesh)
    per_epoch = feed.examples // 8
    assert per_epoch == len(classifier.train) // 8 == 7
    with compilations() as programs:
        whole, seen = train(state, chunk, feed, 2 * per_epoch, training.Pace(1e9, 50))
        half, first = train(state, chunk, feed, per_epoch + 2)
        rest, second = train(half.replace(key=state.key), chunk, feed, per_epoch - 2)
    assert 2 <= programs.count("jit(chunk)") <= len(classifier.codec.lengths) == 3
    assert first + second == seen
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, rest, whole)))

    # padding is masked: the loss of the first batch, computed text by text
    order = feed.order(state.key, 0)
    alone = []
    for i in order.index[:8]:
        ids = classifier.train.documents[int(i)].astype(np.int32)[None]
        logits = module.apply(state.variables, ids, np.array([ids.shape[1]]))
        alone.append(float(losses.cross_entropy(logits, classifier.train.documents.labels[[i]])[0]))
    assert seen[0] == pytest.approx(np.mean(alone), rel=1e-5)


def test_a_classifier_takes_the_vocabulary_of_a_language_model(language, classifier):
    data = text_data(reviews(90), LABELS, batch_size=8, vocab=language.codec.tokenizer)
    assert data.vocab == language.vocab and data.vocab != classifier.vocab


def test_text_data(classifier):
    assert classifier.inputs == ("text", "length") and classifier.classes == ("neg", "pos")
    assert "63 training and 27 validation texts, 2 classes (neg, pos)" in repr(classifier)
    assert len(classifier.show_batch(4).rows) == 4
    answer = classifier.decode(np.array([0.25, 0.75]))
    assert (answer.label, answer.index) == ("pos", 1)
    table = classifier.show_results([classifier.valid[0]], [answer])
    assert table.rows[0][2] == "pos 0.75" and "xxpad" not in table.rows[0][0]
    # whole numbers are classes too, and names may be given
    assert text_data(reviews(6), [1, 5, 1, 5, 3, 3], batch_size=2, valid=[0]).classes == ("1", "3", "5")
    named = text_data(reviews(4), [0, 1, 1, 0], classes=["bad", "good"], batch_size=2, valid=[0])
    assert named.classes == ("bad", "good") and named.valid[0]["target"] == 0
    with pytest.raises(ValueError, match="texts of several lengths .* give resident=False"):
        classifier.feed(data_mesh(), resident=True)


def test_long_texts_keep_their_end():
    data = text_data(reviews(30), LABELS[:30], batch_size=4, max_length=20)
    whole = text_data(reviews(30), LABELS[:30], batch_size=4)
    assert max(data.codec.lengths) == 24 and data.train.documents.lengths.max() == 20
    for cut, full in zip(data.train.documents, whole.train.documents, strict=True):
        np.testing.assert_array_equal(cut, full[-20:])
    longest = data.encode(reviews(30)[int(whole.train.index[whole.train.documents.lengths.argmax()])])
    assert longest["length"] == 20 and longest["text"].shape == (24,)


# The codec


@pytest.mark.parametrize("kind", KINDS)
def test_the_codec_travels_as_json(kind):
    made = train_tokenizer(Chunks.of(reviews(20)), np.arange(20), tokens=kind, max_vocab=100)
    text = "Alba isn't unseen!!!"
    for codec in (TextCodec(made, ("a", "b"), (8, 24, 56), 40), TextCodec(made)):
        again = TextCodec.from_json(json.loads(json.dumps(codec.to_json())))
        assert again == codec and again.to_json() == codec.to_json()
        for name, value in codec.encode(text).items():
            np.testing.assert_array_equal(again.encode(text)[name], value)
    assert TextTokenizer.from_json(made.to_json()).encode([text]).ids.tolist() == made.encode([text]).ids.tolist()


def test_the_codec_pads_to_a_length_that_is_there():
    codec = TextCodec(word_tokenizer(["a"]), ("no", "yes"), (4, 10))
    shapes = [codec.encode("a " * n)["text"].shape[0] for n in (0, 3, 4, 9, 10, 19, 20)]
    # xxbos comes first, and repetitions are tokens: a a a is xxwrep 3 a
    assert [codec.padded_length(n) for n in (1, 4, 5, 10, 11, 21)] == [4, 4, 10, 10, 20, 30]
    assert shapes == [4] * 7
    example = codec.encode("b a")
    assert example["text"].tolist() == [2, 0, 9, 1] and example["length"] == 3
    again = codec.encode(example | {"target": 1})
    assert set(again) == {"text", "length"} and again["text"].tolist() == [2, 0, 9, 1]
    assert codec.encode(b"b a")["text"].tolist() == [2, 0, 9, 1]


def test_tables_show_text_as_it_is():
    table = TextTable(("text", "label"), (("<b>[red]& :smile:", "a"),))
    assert "<b>[red]& :smile:" in repr(table) and "label" in repr(table)
    assert "<td>&lt;b&gt;[red]&amp; :smile:</td><td>a</td>" in table._repr_html_()


# Bad input

TEXTS = reviews(10)


@pytest.mark.parametrize(
    "given, options, message",
    [
        ([], {}, "valid=0.2|there are no texts|0 example"),
        (["", " ", "\n"], {"valid": [0]}, "all 2 texts to learn from are empty: give some with words in them"),
        ("one text", {}, "texts is one str: give a list of texts"),
        ([*TEXTS, None], {}, r"text 10 is missing \(None\): drop that row or give an empty text"),
        ([float("nan"), *TEXTS], {}, r"text 0 is missing \(nan\)"),
        ([*TEXTS, 5], {}, "text 10 is 5 of type int: give str or bytes"),
        (TEXTS, {"batch_size": 0}, "batch_size=0: give a whole number from 1 on"),
        (TEXTS, {"batch_size": True}, "batch_size=True"),
        (TEXTS, {"bptt": 2.5}, "bptt=2.5: give a whole number from 1 on"),
        (TEXTS, {"valid": "test"}, "valid='test': texts have no names, give a fraction such as 0.2, row numbers"),
        (TEXTS, {"valid": ["a", "b"]}, "texts have no names"),
        (TEXTS, {"valid": [12]}, "valid holds the index 12, but the 10 examples count from 0 to 9"),
        (TEXTS, {"tokens": "word"}, "tokens='word': give one of words, bpe, unigram; did you mean 'words'"),
        (TEXTS, {"max_vocab": 9}, "max_vocab=9: the 9 special tokens are part of it, give more"),
        (TEXTS, {"min_freq": 0}, "min_freq=0: give a whole number from 1 on"),
        (
            TEXTS,
            {"batch_size": 400, "bptt": 70},
            r"the training texts have \d+ tokens, but batch_size=400 and bptt=70 need batch_size \* bptt \+ 1 = 28001",
        ),
        (["a few words here"] * 9 + [""], {"valid": [9]}, "the validation texts have 1 tokens, .* need 4: give more"),
    ],
)
def test_bad_language_data(given, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        language_data(given, **({"batch_size": 2, "bptt": 3} | options))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "texts, labels, options, message",
    [
        (TEXTS, LABELS[:9], {}, "there are 9 labels for 10 texts: give one each"),
        ([], [], {}, "there are no texts: give at least two"),
        (TEXTS, ["a"] * 10, {}, "the labels hold one class only, 'a': training needs at least two"),
        (TEXTS, [*LABELS[:9], None], {}, "the label is missing in text 9: fill it in or drop it"),
        (TEXTS, LABELS[:10], {"classes": ["pos", "negative"]}, "the label of text 1 is 'neg', but the classes are pos"),
        (TEXTS, LABELS[:10], {"batch_size": 9}, "batch_size=9 is more than the 8 training texts: give 8 or less"),
        (TEXTS, LABELS[:10], {"buckets": 0}, "buckets=0: give a whole number from 1 on"),
        (TEXTS, LABELS[:10], {"max_length": 0}, "max_length=0: give a whole number from 1 on"),
        (TEXTS, LABELS[:10], {"valid": "val"}, "valid='val': texts have no names"),
        ([None, *TEXTS[1:]], LABELS[:10], {}, "text 0 is missing"),
    ],
)
def test_bad_text_data(texts, labels, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        text_data(texts, labels, **({"batch_size": 2} | options))
    assert "\n" not in str(caught.value)


# Real text


def test_film_reviews(outside_data):
    with lzma.open(outside_data("imdb.jsonl.xz"), "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in itertools.islice(file, 400)]
    texts = [text for _, _, _, text in rows]
    made, ids = tokenize(texts, np.arange(300))
    assert 2500 < len(made) < 3500
    training_part, rest = ids.take(np.arange(300)).ids, ids.take(np.arange(300, 400)).ids
    assert (training_part == 0).mean() < 0.09 and 0.1 < (rest == 0).mean() < 0.2
    read = made.decode(ids[0])
    known = [word for word in texts[0].split() if word in read.split()]
    assert len(known) > 0.7 * len(texts[0].split())
