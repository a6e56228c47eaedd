"""Text from a language model, token by token: by chance within a nucleus, or the likeliest by beam search."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Advance = Callable[[np.ndarray, Any], tuple[np.ndarray, Any]]
"""int32 ids (rows,) and a state to log-probabilities (rows, vocabulary) and the state after; a program of one shape."""


def sample(
    advance: Advance,
    state: Any,
    prompt: Sequence[int],
    n: int,
    *,
    temperature: float = 0.75,
    top_p: float | None = None,
    seed: int = 0,
) -> list[int]:
    """`n` ids that go on from `prompt`, each drawn by `nucleus`; `state` has one row."""
    rng, new = np.random.default_rng(seed), []
    for token in prompt:
        scores, state = advance(np.array([token], np.int32), state)
    for _ in range(n):
        chances = nucleus(np.asarray(scores)[0], temperature, top_p)
        new.append(int(rng.choice(len(chances), p=chances)))
        scores, state = advance(np.array(new[-1:], np.int32), state)
    return new


def nucleus(scores: np.ndarray, temperature: float = 1.0, top_p: float | None = None) -> np.ndarray:
    """Probabilities of log-probabilities `scores` divided by `temperature`, cut to the nucleus.

    The nucleus is the likeliest tokens whose probabilities first reach `top_p` together (Holtzman et al. 2020); the
    others get 0. None keeps them all.

    >>> nucleus(np.log([.5, .3, .15, .05]), top_p=.8).round(3).tolist()
    [0.625, 0.375, 0.0, 0.0]
    """
    scores = np.asarray(scores, np.float64) / temperature
    chances = np.exp(scores - scores.max())
    chances /= chances.sum()
    if top_p is not None:
        order = np.argsort(-chances, kind="stable")
        reached = np.cumsum(chances[order])
        # The likeliest one is always in; the rounding of a sum must not let one more in.
        chances[order[1:][reached[:-1] >= top_p - 1e-9]] = 0
    return chances / chances.sum()


def beam_search(
    advance: Advance, take: Callable[[Any, np.ndarray], Any], state: Any, prompt: Sequence[int], n: int, beams: int
) -> list[int]:
    """The likeliest `n` ids after `prompt` among the `beams` that are kept at each step.

    `state` has `beams` rows; `take(state, rows)` picks rows of one.
    """
    for token in prompt:
        scores, state = advance(np.full(beams, token, np.int32), state)
    # All rows are the same so far: they differ from the first step on.
    totals, texts = np.where(np.arange(beams) == 0, 0.0, -np.inf), np.zeros((beams, 0), np.int32)
    for step in range(n):
        scores = np.asarray(scores, np.float64)
        reached = (totals[:, None] + scores).ravel()
        best = np.argsort(-reached, kind="stable")[:beams]
        rows, tokens = np.divmod(best, scores.shape[1])
        totals, texts = reached[best], np.column_stack([texts[rows], tokens])
        if step < n - 1:
            scores, state = advance(tokens.astype(np.int32), take(state, rows))
    return texts[0].tolist()
