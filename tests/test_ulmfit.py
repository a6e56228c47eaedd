"""The baselines for texts against slow references, and the experiment in a tiny form from end to end."""

import json
from collections import Counter
from pathlib import Path

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


@pytest.mark.parametrize(
    ("arguments", "config", "folder", "stages"),
    [
        ([], ulmfit.DEFAULT, "runs/ulmfit", ("few",)),
        (["--gpu"], ulmfit.GPU, "runs/ulmfit-gpu", ("all",)),
        (["--full"], ulmfit.FULL, "runs/ulmfit-full", ("few", "all")),
        (["--full", "--stages"], ulmfit.FULL, "runs/ulmfit-full", ()),
        (["--small", "--out", "x"], ulmfit.SMALL, "x", ("few",)),
    ],
)
def test_what_each_form_runs(arguments, config, folder, stages, monkeypatch):
    calls = []
    monkeypatch.setattr(ulmfit, "start", lambda: None)
    monkeypatch.setattr(ulmfit, "run", lambda *given: calls.append(given))
    ulmfit.main(arguments)
    assert calls == [(config, Path(folder), stages, None)]


def test_the_form_for_a_gpu_has_the_papers_sizes_and_eight_epochs():
    assert ulmfit.GPU.sizes == ulmfit.FULL.sizes == {"emb_size": 400, "hidden_size": 1152, "n_layers": 3}
    assert (ulmfit.GPU.batch_size, ulmfit.GPU.epochs, sum(epochs for epochs, *_ in ulmfit.GPU.cycles)) == (256, 8, 5)
    assert ulmfit.GPU.max_tokens is None and ulmfit.GPU.test_reviews == 25_000


@pytest.mark.parametrize(("limit", "n"), [(None, 4), (1, 1), (5, 2), (8, 3), (100, 4)])
def test_the_first_reviews_within_a_limit_of_tokens(limit, n):
    rows = [("one", 0), ("two words", 1), ("three more words", 0), ("four", 1)]  # 1.3, 3.9, 7.8 and 9.1 tokens in all
    assert ulmfit.first_tokens(rows, limit) == rows[:n]


@pytest.mark.slow
@pytest.mark.usefixtures("one_device")
def test_the_small_form_and_what_is_left_of_a_stage_that_fails(outside_data, tmp_path, monkeypatch):
    folder = str(outside_data("imdb.jsonl.xz").parent)
    monkeypatch.setattr(ulmfit, "start", lambda: None)
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="out of memory"):
        patch.setattr(ulmfit, "classify", lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        ulmfit.main(["--small", "--data", folder, "--out", str(tmp_path)])
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["lm"]["perplexity"] > 1 and "few" not in kept
    assert (tmp_path / "lm.png").read_bytes().startswith(b"\x89PNG")
    ulmfit.main(["--small", "--data", folder, "--out", str(tmp_path)])
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["lm"] == kept["lm"] and set(result["few"]["mean"]) == {"pretrained", "random"}


@pytest.mark.slow
def test_the_experiment_runs_and_goes_on_from_its_stages(outside_data, tmp_path):
    folder = str(outside_data("imdb.jsonl.xz").parent)
    first = ulmfit.run(TINY, tmp_path, ("few",), folder, quiet=True)
    assert json.loads((tmp_path / "result.json").read_text())["few"]["mean"] == first["few"]["mean"]
    assert first["lm"]["perplexity"] < 500 and first["few"]["labelled"] == 48
    again = ulmfit.run(TINY, tmp_path, ("few",), folder, quiet=True)  # from the checkpoints of finished stages
    assert again["lm"] == first["lm"] and again["few"]["pretrained"] == first["few"]["pretrained"]
