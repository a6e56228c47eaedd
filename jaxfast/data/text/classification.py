"""A text classifier's data: texts with labels, in batches of a few lengths."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jax.sharding import Mesh

from jaxfast.data.labels import label_classes
from jaxfast.data.prediction import Prediction
from jaxfast.data.text.buckets import BucketFeed, bucket_lengths
from jaxfast.data.text.checks import check_count, check_texts, split_texts
from jaxfast.data.text.codec import TextCodec, pad
from jaxfast.data.text.corpus import tokenize
from jaxfast.data.text.documents import Documents
from jaxfast.data.text.show import TextTable, shortened
from jaxfast.data.text.tokenizer import TextTokenizer
from jaxfast.messages import first


@dataclass(frozen=True, eq=False)
class TextDataset:
    """Texts with their labels: {"text": int32 (padded,), "length": int32 (), "target": int32 ()}.

    Padding stands after the text. `padded` (texts,): the length to which each is padded; `index` (texts,): their places
    among the texts that they come from.
    """

    documents: Documents
    padded: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.documents)

    @property
    def targets(self) -> np.ndarray:
        """The class numbers, (texts,)."""
        return self.documents.labels

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return {name: values[0] for name, values in self.batch(np.array([i])).items()}

    def batch(self, indices: np.ndarray, length: int | None = None) -> dict[str, np.ndarray]:
        """The texts at `indices`, stacked and padded to `length` (default: to the longest of their own)."""
        length = int(self.padded[indices].max()) if length is None else length
        texts = [self.documents[int(i)] for i in indices]
        return {
            "text": np.stack([pad(text, length) for text in texts]),
            "length": np.array([len(text) for text in texts], np.int32),
            "target": self.documents.labels[indices],
        }

    @property
    def nbytes(self) -> int:
        return int(self.padded.sum()) * 4 + 8 * len(self)

    def __repr__(self) -> str:
        return f"TextDataset: {self.documents}"


@dataclass(frozen=True, eq=False, repr=False)
class TextData:
    """Training and validation texts with all that a learner needs to know of them.

    Batches differ in length, so they stream (`resident=False`); validation texts are in descending order of length.
    """

    train: TextDataset
    valid: TextDataset
    codec: TextCodec
    batch_size: int
    seed: int
    inputs: tuple[str, ...] = ("text", "length")
    augment: None = None
    prepare: None = None

    @property
    def classes(self) -> tuple[str, ...]:
        return self.codec.classes

    @property
    def vocab(self) -> tuple[str, ...]:
        """The tokens in the order of their ids."""
        return self.codec.tokenizer.words

    def feed(self, mesh: Mesh, *, resident: bool = False) -> BucketFeed:
        """What a training run reads; ValueError for `resident`."""
        if resident:
            raise ValueError("texts of several lengths do not lie on the device as one array: give resident=False")
        return BucketFeed(self.train, self.batch_size, mesh)

    def encode(self, item: Any) -> dict[str, np.ndarray]:
        """`TextCodec.encode` of one text."""
        return self.codec.encode(item)

    def decode(self, outputs: np.ndarray) -> Prediction:
        """`TextCodec.decode` of one text's probabilities."""
        return self.codec.decode(outputs)

    def show_batch(self, n: int = 9, *, seed: int = 0) -> TextTable:
        """`n` training texts drawn with `seed`, and their labels."""
        rows = np.random.default_rng(seed).permutation(len(self.train))[:n]
        labels = self.train.documents.labels
        cells = ((self._line(self.train.documents[int(i)]), self.classes[labels[i]]) for i in rows)
        return TextTable(("text", "label"), tuple(cells))

    def show_results(self, examples: Sequence[dict], predictions: Sequence[Prediction]) -> TextTable:
        """Texts and labels beside predictions."""
        cells = (
            (
                self._line(example["text"][: int(example["length"])]),
                self.classes[int(example["target"])],
                f"{prediction.label} {prediction.probabilities.max():.2f}",
            )
            for example, prediction in zip(examples, predictions, strict=True)
        )
        return TextTable(("text", "label", "prediction"), tuple(cells))

    def _line(self, ids: np.ndarray) -> str:
        return shortened([self.vocab[i] for i in ids], 60)

    def __repr__(self) -> str:
        return (
            f"TextData: {len(self.train):,} training and {len(self.valid):,} validation texts, "
            f"{len(self.classes)} classes ({first(self.classes)})\n"
            f"  {len(self.vocab):,} in the vocabulary, batches of {self.batch_size}, "
            f"{first([str(length) for length in self.codec.lengths], 20)} tokens long"
        )


def text_data(
    texts: Sequence[str | bytes],
    labels: Sequence[Any],
    *,
    valid: float | Sequence[int] | Sequence[bool] = 0.2,
    batch_size: int = 64,
    seed: int = 42,
    classes: Sequence[Any] | None = None,
    buckets: int = 8,
    max_length: int | None = None,
    vocab: TextTokenizer | Sequence[str] | None = None,
    tokens: str = "words",
    max_vocab: int | None = None,
    min_freq: int = 3,
    cache: str | os.PathLike | None = None,
) -> TextData:
    """Texts to classify, each with one label: a name or a whole number.

    `valid`: a fraction of every class, row numbers or booleans. `classes`: the names of the labels in order (default:
    all that occur, sorted). `buckets`: how many lengths batches may have, and so how many programs a run compiles.
    `max_length`: texts of more tokens keep their last ones. `vocab` (a language model's `data.codec.tokenizer`),
    `tokens`, `max_vocab`, `min_freq`, `cache`: as in `language_data`. ValueError for texts and labels that are missing
    or do not match.
    """
    check_count(batch_size=batch_size, buckets=buckets, **({} if max_length is None else {"max_length": max_length}))
    texts = check_texts(texts)
    if len(labels) != len(texts):
        raise ValueError(f"there are {len(labels)} labels for {len(texts)} texts: give one each")
    if not texts:
        raise ValueError("there are no texts: give at least two")
    named = label_classes(labels, classes, source="the labels", where=lambda i: f"text {i}")
    train, held_out = split_texts(len(texts), valid, seed, named.targets)
    if batch_size > len(train):
        raise ValueError(
            f"batch_size={batch_size} is more than the {len(train)} training texts: give {len(train)} or less"
        )
    tokenizer, documents = tokenize(
        texts, train, vocab=vocab, tokens=tokens, max_vocab=max_vocab, min_freq=min_freq, cache=cache
    )
    documents = Documents(documents.ids, documents.offsets, named.targets)
    if max_length is not None:
        documents = documents.last(int(max_length))
    lengths = bucket_lengths(documents.lengths, int(buckets))
    padded = np.array(lengths)[np.searchsorted(lengths, documents.lengths)]
    held_out = held_out[np.argsort(-documents.lengths[held_out], kind="stable")]
    # In an order of falling lengths a batch of validation is as long as its first text.
    first_of_batch = held_out[np.arange(len(held_out)) // batch_size * batch_size]
    return TextData(
        TextDataset(documents.take(train), padded[train], train),
        TextDataset(documents.take(held_out), padded[first_of_batch], held_out),
        TextCodec(tokenizer, named.classes, lengths, max_length),
        int(batch_size),
        seed,
    )
