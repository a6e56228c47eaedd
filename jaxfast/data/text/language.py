"""A language model's data: texts one after the other, cut into streams that are read side by side, in batches that
follow on each other."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Int, Key

from jaxfast.data.loader import Piece, epoch_order
from jaxfast.data.text.checks import check_count, check_texts, split_texts
from jaxfast.data.text.codec import TextCodec
from jaxfast.data.text.corpus import tokenize
from jaxfast.data.text.documents import Documents
from jaxfast.data.text.show import TextTable, shortened
from jaxfast.data.text.tokenizer import TextTokenizer
from jaxfast.mesh import local_rows, place, place_rows, replicated


@dataclass(frozen=True, eq=False)
class LanguageDataset:
    """Texts as rows of `bptt` tokens: row k * batch_size + s is the k-th of stream s, and goes on where the row
    batch_size before it ends.

    A row is {"text": int32 (bptt,), "target": int32 (bptt,), the tokens one further on, "reset": whether a stream
    begins}. With `full`, there are whole batches only (training); else only the last batch may lack streams, and less
    than one row of tokens is left out (validation). ValueError where the texts do not make one batch, or one row.
    """

    documents: Documents
    batch_size: int
    bptt: int
    full: bool

    def __post_init__(self):
        if not len(self):
            least = f"batch_size * bptt + 1 = {self.batch_size * self.bptt + 1}" if self.full else f"{self.bptt + 1}"
            what = "training" if self.full else "validation"
            raise ValueError(
                f"the {what} texts have {len(self.documents.ids)} tokens, but batch_size={self.batch_size} and "
                f"bptt={self.bptt} need {least}: give more text or smaller numbers"
            )

    def __len__(self) -> int:
        rows = max(len(self.documents.ids) - 1, 0) // self.bptt
        return rows // self.batch_size * self.batch_size if self.full else rows

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        if not 0 <= i < len(self):
            raise IndexError(f"there are {len(self)} rows, and no number {i}")
        return {name: values[0] for name, values in self.batch(np.array([i])).items()}

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows at `indices`, stacked."""
        within, stream = np.divmod(np.asarray(indices, int), self.batch_size)
        rows, longer = divmod(len(self), self.batch_size)
        first = (stream * rows + np.minimum(stream, longer) + within) * self.bptt
        tokens = self.documents.ids[first[:, None] + np.arange(self.bptt + 1)].astype(np.int32)
        return {"text": tokens[:, :-1], "target": tokens[:, 1:], "reset": within == 0}

    def shuffled(self, key: Key[Array, ""], epoch: int) -> "LanguageDataset":
        """The texts in the order of one epoch, by (key, epoch) alone."""
        documents = self.documents.take(epoch_order(key, epoch, len(self.documents)))
        return LanguageDataset(documents, self.batch_size, self.bptt, self.full)

    @property
    def nbytes(self) -> int:
        return len(self) * (8 * self.bptt + 1)

    def __repr__(self) -> str:
        return f"LanguageDataset: {self.documents}, in rows of {self.bptt}"


class LanguageEpoch(NamedTuple):
    """All rows of one epoch, and their numbers, which are their order."""

    rows: dict[str, Array] | dict[str, np.ndarray]
    order: Int[Array, " rows"] | Int[np.ndarray, " rows"]


@dataclass(frozen=True)
class LanguageFeed:
    """The batches of every epoch's own stream; `training.run` reads it as it reads `loader.Resident` and `Streamed`.

    With `resident`, an epoch's rows are put on the device at its beginning (60 MB for 7.5 million tokens), and many
    steps run in one dispatch; else batches are brought there one by one.
    """

    dataset: LanguageDataset
    mesh: Mesh
    resident: bool

    @property
    def batch_size(self) -> int:
        return self.dataset.batch_size

    @property
    def examples(self) -> int:
        return len(self.dataset)

    def order(self, key: Key[Array, ""], epoch: int) -> LanguageEpoch:
        """What `piece` reads an epoch by."""
        order = np.arange(self.examples, dtype=np.int32)
        epoch_rows = LanguageEpoch(self.dataset.shuffled(key, epoch).batch(order), order)
        return place(epoch_rows, replicated(self.mesh)) if self.resident else epoch_rows

    def piece(self, epoch: LanguageEpoch, start: int, limit: int) -> Piece:
        """At most `limit` batches from batch `start` of the epoch on; one of them unless `resident`."""
        if self.resident:
            return Piece(*epoch, start, min(limit, self.examples // self.batch_size - start))
        mine = local_rows(self.batch_size, self.mesh)
        first = start * self.batch_size
        rows = {name: values[first + mine.start : first + mine.stop] for name, values in epoch.rows.items()}
        return Piece(place_rows(rows, self.batch_size, self.mesh), epoch.order, 0, 1)


@dataclass(frozen=True, eq=False, repr=False)
class LanguageData:
    """Training and validation streams with all that a learner needs to know of them."""

    train: LanguageDataset
    valid: LanguageDataset
    codec: TextCodec
    batch_size: int
    bptt: int
    seed: int
    inputs: tuple[str, ...] = ("text", "reset")
    classes: None = None
    augment: None = None
    prepare: None = None

    @property
    def vocab(self) -> tuple[str, ...]:
        """The tokens in the order of their ids."""
        return self.codec.tokenizer.words

    def feed(self, mesh: Mesh, *, resident: bool) -> LanguageFeed:
        """What a training run reads."""
        return LanguageFeed(self.train, mesh, resident)

    def encode(self, item) -> dict[str, np.ndarray]:
        """`TextCodec.encode` of one text."""
        return self.codec.encode(item)

    def decode(self, outputs: np.ndarray) -> str:
        """`TextCodec.decode` of ids."""
        return self.codec.decode(outputs)

    def show_batch(self, n: int = 9) -> TextTable:
        """The first rows of `n` training streams, and what is to be predicted."""
        rows = self.train.batch(np.arange(min(n, self.batch_size)))
        line = lambda ids: shortened([self.vocab[i] for i in ids], 30)
        pairs = zip(rows["text"], rows["target"], strict=True)
        return TextTable(("text", "target"), tuple((line(text), line(target)) for text, target in pairs))

    def __repr__(self) -> str:
        return (
            f"LanguageData: {len(self.train.documents):,} training and {len(self.valid.documents):,} validation texts, "
            f"{len(self.train.documents.ids):,} and {len(self.valid.documents.ids):,} tokens\n"
            f"  {len(self.vocab):,} in the vocabulary, {self.batch_size} streams of {self.bptt} tokens"
        )


def language_data(
    texts: Sequence[str | bytes],
    *,
    valid: float | Sequence[int] | Sequence[bool] = 0.2,
    batch_size: int = 64,
    bptt: int = 72,
    seed: int = 42,
    vocab: TextTokenizer | Sequence[str] | None = None,
    tokens: str = "words",
    max_vocab: int | None = None,
    min_freq: int = 3,
    cache: str | os.PathLike | None = None,
) -> LanguageData:
    """Texts to predict the next token of.

    `valid`: a fraction, row numbers or booleans. `vocab`: a tokenizer, or its words, to use; by default one is learnt
    from the training texts: `tokens` "words", "bpe" or "unigram", `max_vocab` and `min_freq` as in `train_tokenizer`.
    `cache`: a folder that remembers the ids. ValueError for texts that are missing, empty or too few for one batch.
    """
    check_count(batch_size=batch_size, bptt=bptt)
    texts = check_texts(texts)
    train, held_out = split_texts(len(texts), valid, seed)
    tokenizer, documents = tokenize(
        texts, train, vocab=vocab, tokens=tokens, max_vocab=max_vocab, min_freq=min_freq, cache=cache
    )
    parts = [
        LanguageDataset(documents.take(rows), int(batch_size), int(bptt), full)
        for rows, full in ((train, True), (held_out, False))
    ]
    return LanguageData(*parts, codec=TextCodec(tokenizer), batch_size=int(batch_size), bptt=int(bptt), seed=seed)
