"""The baselines for texts against slow references, and the experiment in a tiny form from end to end."""

import json
from collections import Counter

import numpy as np
import pytest

from experiments import ulmfit
from experiments.baselines_text import KneserNey, tfidf_accuracy


def slow_kneser_ney(train, size, a, b, c):
    """P(c | a, b) by the formulas, with dictionaries."""
    tri = Counter(zip(train, train[1:], train[2:], strict=False))
    bi = Counter((w[1], w[2]) for w in tri)
    uni = Counter(w[1] for w in bi)

    def discount(counts):
        once, twice = (sum(v == n for v in counts.values()) for n in (1, 2))
        return once / (once + 2 * twice) if once else 0

    def level(counts, context, word, lower):
        inside = {gram: n for gram, n in counts.items() if gram[:-1] == context}
        if not inside:
            return lower
        d, total = discount(counts), sum(inside.values())
        return (max(counts.get((*context, word), 0) - d, 0) + d * len(inside) * lower) / total

    d, total = discount(uni), sum(uni.values())
    lowest = max(uni.get(c, 0) - d, 0) / total + d * len(uni) / total / size
    return level(tri, (a, b), c, level(bi, (b,), c, lowest))


def test_kneser_ney_is_the_formula_and_a_distribution():
    rng = np.random.default_rng(0)
    train = (rng.geometric(0.3, 400) % 9).tolist()
    model = KneserNey(np.array(train), 10)
    for a, b in [(1, 2), (3, 3), (0, 9), (9, 9), (8, 1)]:
        chances = [model.probabilities(np.array([a, b, c]))[0] for c in range(10)]
        assert sum(chances) == pytest.approx(1)
        np.testing.assert_allclose(chances, [slow_kneser_ney(train, 10, a, b, c) for c in range(10)], rtol=1e-9)
    assert model.perplexity(np.array(train)) < 10 > model.perplexity(rng.geometric(0.3, 300) % 9)


def test_tfidf_tells_words_apart():
    liked, disliked = ["a great film", "great and good", "so great"], ["a bad film", "bad and dull", "so bad"]
    assert tfidf_accuracy(liked + disliked, [1, 1, 1, 0, 0, 0], ["great", "bad"], [1, 0]) == 1


def test_few_labels_are_balanced():
    rows = [(str(i), int(i % 5 == 0)) for i in range(100)]
    few = ulmfit.few_labels(rows, 20)
    assert sum(label for _, label in few) == 10 and len({name for name, _ in few}) == 20


TINY = ulmfit.Config(
    {"emb_size": 16, "hidden_size": 24, "n_layers": 2}, max_vocab=500, max_tokens=30_000, test_reviews=64,
    max_length=64, batch_size=16, epochs=1, lr=1e-2, drop_mult=0.2, cycles=((1, -1, 2e-2, 2.6**4), (1, 0, 5e-3, 2.6)),
    random_lr=5e-3, classifier_drop_mult=0.2, labelled=48, seeds=1, bptt=32,
)  # fmt: skip


@pytest.mark.slow
def test_the_experiment_runs_and_goes_on_from_its_stages(outside_data, tmp_path):
    folder = str(outside_data("imdb.jsonl.xz").parent)
    first = ulmfit.run(TINY, tmp_path, ("few",), folder, quiet=True)
    assert json.loads((tmp_path / "result.json").read_text())["few"]["mean"] == first["few"]["mean"]
    assert first["lm"]["perplexity"] < 500 and first["few"]["labelled"] == 48
    again = ulmfit.run(TINY, tmp_path, ("few",), folder, quiet=True)  # from the checkpoints of finished stages
    assert again["lm"] == first["lm"] and again["few"]["pretrained"] == first["few"]["pretrained"]
