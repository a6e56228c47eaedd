"""What a network for texts has to beat: an interpolated Kneser-Ney trigram, and TF-IDF under logistic regression."""

import math
from collections.abc import Sequence

import numpy as np


class KneserNey:
    """Interpolated Kneser-Ney of order 3 (Chen and Goodman 1999, section 3) with one discount for each order.

    `ids`: the training tokens in one row, texts one after the other; `vocab_size`: how many tokens there are, each of
    which has a chance. The discount is n1 / (n1 + 2 n2), by the n-grams that occur once and twice (Ney et al. 1994).
    """

    def __init__(self, ids: np.ndarray, vocab_size: int):
        ids, self.size = np.asarray(ids, np.int64), vocab_size
        trigrams, counts = np.unique(self._codes(ids[:-2], ids[1:-1], ids[2:]), return_counts=True)
        self.levels = [self._level(trigrams, counts)]
        # Below the highest order an n-gram counts as often as there are different tokens before it.
        bigrams, followed = np.unique(trigrams % vocab_size**2, return_counts=True)
        self.levels.append(self._level(bigrams, followed))
        words, followed = np.unique(bigrams % vocab_size, return_counts=True)
        counts = np.zeros(vocab_size)
        counts[words] = followed
        discount = _discount(followed)
        spare = discount * len(words) / followed.sum()
        self.unigram = np.maximum(counts - discount, 0) / followed.sum() + spare / vocab_size

    def probabilities(self, ids: np.ndarray) -> np.ndarray:
        """The chance of each of `ids` from the third on, given the two before it."""
        ids = np.asarray(ids, np.int64)
        chance = self.unigram[ids[2:]]
        bigrams, trigrams = ids[1:-1] * self.size + ids[2:], self._codes(ids[:-2], ids[1:-1], ids[2:])
        for (grams, discounted, contexts, totals, spare), codes in zip(
            reversed(self.levels), (bigrams, trigrams), strict=True
        ):
            before = codes // self.size
            total = _look_up(contexts, totals, before, 0.0)
            own = _look_up(grams, discounted, codes, 0.0)
            left = _look_up(contexts, spare, before, 0.0)
            # A context that training lacks says nothing.
            chance = np.where(total > 0, (own + left * chance) / np.maximum(total, 1), chance)
        return chance

    def perplexity(self, ids: np.ndarray) -> float:
        return math.exp(-np.log(self.probabilities(ids)).mean())

    def _codes(self, *columns: np.ndarray) -> np.ndarray:
        code = columns[0]
        for column in columns[1:]:
            code = code * self.size + column
        return code

    def _level(self, grams: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, ...]:
        """N-grams with their discounted counts, their contexts with the sums of counts and what discounts free."""
        discount = _discount(counts)
        contexts, place = np.unique(grams // self.size, return_inverse=True)
        totals, spare = np.bincount(place, counts), discount * np.bincount(place)
        return grams, counts - discount, contexts, totals, spare


def _discount(counts: np.ndarray) -> float:
    once, twice = (counts == 1).sum(), (counts == 2).sum()
    return once / (once + 2 * twice) if once else 0.0


def _look_up(keys: np.ndarray, values: np.ndarray, wanted: np.ndarray, default: float) -> np.ndarray:
    place = np.minimum(np.searchsorted(keys, wanted), len(keys) - 1)
    return np.where(keys[place] == wanted, values[place], default)


def tfidf_accuracy(
    texts: Sequence[str], labels: Sequence[int], test_texts: Sequence[str], test_labels: Sequence[int], c: float = 10.0
) -> float:
    """Test accuracy of logistic regression on the TF-IDF (sublinear) of words and pairs of words; `c` as in sklearn."""
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline

    vectorizer = TfidfVectorizer(ngram_range=(1, 2), min_df=2, sublinear_tf=True)
    model = make_pipeline(vectorizer, LogisticRegression(C=c, max_iter=1000))
    return float(model.fit(texts, labels).score(test_texts, test_labels))
