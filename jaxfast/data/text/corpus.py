"""Texts to a tokenizer and their ids, remembered on disk under the hash of what they are made from."""

import hashlib
import json
import os
import warnings
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from jaxfast.data.text.checks import check_texts
from jaxfast.data.text.chunks import Chunks
from jaxfast.data.text.documents import Documents, save_arrays
from jaxfast.data.text.tokenizer import TextTokenizer, library
from jaxfast.data.text.vocabulary import train_tokenizer, word_tokenizer

VERSION = 1
"""Of the rules and of the cutting into words: a change of what they give needs another number."""


def tokenize(
    texts: Sequence[str | bytes],
    rows: np.ndarray | None = None,
    *,
    vocab: TextTokenizer | Sequence[str] | None = None,
    tokens: str = "words",
    max_vocab: int | None = None,
    min_freq: int = 3,
    cache: str | os.PathLike | None = None,
) -> tuple[TextTokenizer, Documents]:
    """The tokenizer that is learnt from the texts at `rows` (None: all), and the ids of all texts.

    `tokens`, `max_vocab`, `min_freq`: as in `train_tokenizer`. `vocab`: a tokenizer, or its words, to use instead of
    what they would give. `cache`: a folder that remembers the results of the same texts and settings; a file in it
    that cannot be read is made again, with a warning. ValueError for no texts, texts that are all empty, and what
    `check_texts` finds.
    """
    strings = check_texts(texts)
    if not strings:
        raise ValueError("there are no texts: give at least one")
    rows = np.arange(len(strings)) if rows is None else np.asarray(rows, int)
    if not any(strings[i].strip() for i in rows):
        raise ValueError(f"all {len(rows)} texts to learn from are empty: give some with words in them")

    if vocab is not None and not isinstance(vocab, TextTokenizer):
        vocab = word_tokenizer(vocab)

    def make() -> tuple[TextTokenizer, Documents]:
        chunks = Chunks.of(strings)
        options = {"tokens": tokens, "max_vocab": max_vocab, "min_freq": min_freq}
        made = train_tokenizer(chunks, rows, **options) if vocab is None else vocab
        return made, made.encode_chunks(chunks)

    if cache is None:
        return make()
    settings = [tokens, max_vocab, min_freq, rows.tolist()] if vocab is None else [vocab.state]
    about = json.dumps([VERSION, library().__version__, *settings])
    path = Path(cache) / f"text-{_digest([about, *strings])}.npz"
    if path.exists():
        try:
            return _read(path)
        except (OSError, EOFError, KeyError, ValueError, zipfile.BadZipFile) as error:
            warnings.warn(f"{path} is damaged ({error}): made again", stacklevel=2)
    made, documents = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    state = np.frombuffer(made.state.encode(), np.uint8)
    save_arrays(path, ids=documents.ids, offsets=documents.offsets, tokenizer=state)
    return made, documents


def _read(path: Path) -> tuple[TextTokenizer, Documents]:
    with open(path, "rb") as file, np.load(file, allow_pickle=False) as arrays:
        return TextTokenizer(arrays["tokenizer"].tobytes().decode()), Documents(arrays["ids"], arrays["offsets"])


def _digest(strings: Iterable[str]) -> str:
    """The hash of strings and of where one ends and the next begins."""
    found = hashlib.sha256()
    for string in strings:
        encoded = string.encode()
        found.update(len(encoded).to_bytes(8))
        found.update(encoded)
    return found.hexdigest()
