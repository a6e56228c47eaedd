"""Which tokens a vocabulary holds: the frequent words, or pieces of words that are learnt from the texts."""

import json
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jaxfast.data.text.checks import check_count
from jaxfast.data.text.chunks import Chunks
from jaxfast.data.text.rules import SPECIAL, UNK
from jaxfast.data.text.tokenizer import WORDS, TextTokenizer, library
from jaxfast.messages import first, nearest

KINDS = ("words", "bpe", "unigram")

MAX_VOCAB = {"words": 60_000, "bpe": 30_000, "unigram": 30_000}
"""fastai's defaults, of `make_vocab` and `SentencePieceTokenizer`."""


def train_tokenizer(
    chunks: Chunks, rows: np.ndarray, *, tokens: str = "words", max_vocab: int | None = None, min_freq: int = 3
) -> TextTokenizer:
    """The tokenizer of the texts at `rows`.

    `tokens`: "words", those that occur `min_freq` times or more, the most frequent first and in alphabetical order
    where equally frequent; "bpe" (Sennrich et al. 2016; `min_freq` is that of a pair) or "unigram" (Kudo 2018), pieces
    of words. `max_vocab`: the most tokens, special ones included (default `MAX_VOCAB`); pieces of one character are
    kept even beyond it. ValueError for an unknown kind, and for a vocabulary that is too small.
    """
    if tokens not in KINDS:
        raise ValueError(f"tokens={tokens!r}: give one of {first(KINDS)}{nearest(tokens, KINDS)}")
    size = MAX_VOCAB[tokens] if max_vocab is None else max_vocab
    check_count(max_vocab=size, min_freq=min_freq)
    if size <= len(SPECIAL):
        raise ValueError(f"max_vocab={size}: the {len(SPECIAL)} special tokens are part of it, give more")
    counts = chunks.counts(rows)
    if tokens != "words":
        return _train_pieces(chunks.distinct, counts, tokens, size, min_freq)
    found, words = _splitter(), Counter()
    for i in np.flatnonzero(counts):
        for word, _ in found.pre_tokenize_str(chunks.distinct[i]):
            words[word] += int(counts[i])
    for word in SPECIAL:
        words.pop(word, None)
    ranked = sorted((-n, word) for word, n in words.items() if n >= min_freq)
    return word_tokenizer([word for _, word in ranked[: size - len(SPECIAL)]])


def word_tokenizer(words: Sequence[str]) -> TextTokenizer:
    """The tokenizer of a vocabulary that is given: `SPECIAL`, then those of `words` that are not special.

    ValueError for a word that appears twice.
    """
    if isinstance(words, str):
        raise ValueError(f"the vocabulary is {words!r}: give a list of words")
    ranked = [*SPECIAL, *(word for word in words if word not in SPECIAL)]
    twice = [word for word, n in Counter(ranked).items() if n > 1]
    if twice:
        raise ValueError(f"the vocabulary holds {first(twice)} more than once: give each word once")
    made = library().Tokenizer(library().models.WordLevel({word: i for i, word in enumerate(ranked)}, unk_token=UNK))
    made.pre_tokenizer = _splitter()
    return TextTokenizer.of(made)


def _splitter():
    return library().pre_tokenizers.Split(library().Regex(WORDS), "removed", invert=True)


def _train_pieces(distinct: Sequence[str], counts: np.ndarray, tokens: str, size: int, min_freq: int) -> TextTokenizer:
    lib = library()
    special = [lib.AddedToken(word, single_word=True, normalized=False) for word in SPECIAL]
    if tokens == "bpe":
        model = lib.models.BPE(unk_token=UNK)
        options = {"min_frequency": min_freq}
    else:
        model = lib.models.Unigram()
        options = {"unk_token": UNK}
    trainers = {"bpe": lib.trainers.BpeTrainer, "unigram": lib.trainers.UnigramTrainer}
    trainer = trainers[tokens](vocab_size=size, special_tokens=special, show_progress=False, **options)
    made = lib.Tokenizer(model)
    made.pre_tokenizer = lib.pre_tokenizers.Metaspace()
    # Every chunk as often as it occurs; the special ones are no text.
    rows = (i for i in np.flatnonzero(counts) if distinct[i] not in SPECIAL)
    made.train_from_iterator((" ".join([distinct[i]] * int(counts[i])) for i in rows), trainer)
    return TextTokenizer.of(made if tokens == "bpe" else _settled(made))


def _settled(unigram):
    """The same pieces in an order, and with scores, that do not differ from run to run.

    The trainer sums in the order of a hash table, and hands out the scores of characters that it has pruned, a little
    above the lowest one, in such an order.
    """
    state = json.loads(unigram.to_str())
    special, pieces = state["model"]["vocab"][: len(SPECIAL)], state["model"]["vocab"][len(SPECIAL) :]
    lowest = min((score for _, score in pieces), default=0.0)
    bound = lowest + 1e-4 * sum(len(piece) == 1 for piece, _ in pieces)
    scores = [(-round(lowest if len(piece) == 1 and score < bound else score, 6), piece) for piece, score in pieces]
    state["model"]["vocab"] = special + [[piece, -score] for score, piece in sorted(scores)]
    return library().Tokenizer.from_str(json.dumps(state))
