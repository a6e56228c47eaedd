"""Collaborative filtering: from a table of ratings to a model, and to recommendations (the course's lesson 4)."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxfast.data.ratings import Ratings, RatingsCodec, RatingsData, ratings_data
from jaxfast.interpret.embeddings import Embeddings
from jaxfast.interpret.recommend import ndcg_at_k, nearest_rows, recall_at_k, top_k
from jaxfast.learner import Learner
from jaxfast.losses import Loss, mse
from jaxfast.messages import check_answer, check_type, check_whole
from jaxfast.models.collab import EmbeddingDotBias, EmbeddingNN

__all__ = ["CollabLearner", "Ratings", "RatingsCodec", "RatingsData", "from_frame", "learner"]


def from_frame(
    df: Any,
    *,
    user: str = "user",
    item: str = "item",
    rating: str = "rating",
    valid: float | str | Sequence[Any] | np.ndarray = 0.2,
    batch_size: int = 64,
    seed: int = 42,
) -> RatingsData:
    """One rating per row of a pandas data frame, or of what else narwhals reads (polars, a dict of columns ...).

    `user`, `item`, `rating`: the names of the columns; users and items are whole numbers or text. `valid`: a fraction,
    row numbers, booleans, or the name of a column of booleans. Users and items are numbered by the training rows alone;
    who occurs in validation only is unseen, and the model gives them the mean of all others.
    ValueError for an empty table, missing columns, and empty or infinite ratings, users and items.
    """
    return ratings_data(df, user=user, item=item, rating=rating, valid=valid, seed=seed, batch_size=batch_size)


def learner(
    data: RatingsData,
    *,
    n_factors: int = 50,
    y_range: tuple[float, float] | None = None,
    weight_decay: float = 0.1,
    use_nn: bool = False,
    layers: Sequence[int] | None = None,
    dropout: float = 0.0,
    metrics: Sequence[str | Callable] = ("mse",),
    loss: Loss = mse,
    **options: Any,
) -> "CollabLearner":
    """A model of `data`: `EmbeddingDotBias` with `n_factors`, or by `use_nn` `EmbeddingNN` with `layers`, `dropout`.

    `y_range`: the ends that predictions can come close to, a little beyond the ratings, such as (0, 5.5) for 1 to 5.
    `layers`: default one of `n_factors` (fastai's collab_learner). `options` are `Learner`'s. ValueError for a range
    that does not hold the training ratings, and for layers or dropout without `use_nn`.
    """
    check_type("data", data, RatingsData, "collab.from_frame")
    check_whole("n_factors", n_factors)
    if not use_nn and (layers is not None or dropout):
        raise ValueError("layers and dropout belong to the network: give use_nn=True as well")
    if not 0 <= dropout < 1:
        raise ValueError(f"a dropout of {dropout}: give a rate from 0 to below 1")
    if y_range is not None:
        low, high = y_range
        least, most = data.train.target.min(), data.train.target.max()
        if not (low < high and low <= least and most <= high):
            raise ValueError(f"y_range=({low:g}, {high:g}) must hold the ratings, {least:g} to {most:g}")
        y_range = float(low), float(high)
    sizes = len(data.codec.users), len(data.codec.items)
    if use_nn:
        module = EmbeddingNN(*sizes, tuple(layers or (n_factors,)), dropout, y_range)
    else:
        module = EmbeddingDotBias(*sizes, n_factors, y_range)
    return CollabLearner(data, module, loss=loss, metrics=metrics, weight_decay=weight_decay, **options)


class CollabLearner(Learner):
    """A `Learner` of ratings: recommends, and shows what it has learnt of items and users.

    `predict((user, item))` gives a rating; an unseen user or item is taken for the mean of all.
    """

    def item_factors(self) -> Embeddings:
        """The factors of every item: `.plot()` draws their two principal components, `["name"]` is one row."""
        return self._embeddings("item")

    def user_factors(self) -> Embeddings:
        """The factors of every user."""
        return self._embeddings("user")

    def item_bias(self) -> list[tuple[int | str, float]]:
        """Every item with its bias, highest first: how good it is to everybody, whatever one's taste."""
        return self._biases("item", self.data.codec.items)

    def user_bias(self) -> list[tuple[int | str, float]]:
        """Every user with their bias, highest first: how kindly they rate."""
        return self._biases("user", self.data.codec.users)

    def nearest_items(self, item: int | str, n: int = 10) -> list[tuple[int | str, float]]:
        """The `n` items whose factors point the way of this one's, and the cosines; ValueError for an unknown item."""
        row = self.data.codec.item_number(item)
        rows, cosines = nearest_rows(np.asarray(self.state.params["item_factors"]), row, n)
        return [(self.data.codec.items[i], float(cosine)) for i, cosine in zip(rows, cosines, strict=True)]

    def plot_items(self, n: int = 60, *, most_rated: int = 1000):
        """A figure of the two principal components of the `most_rated` items' factors, `n` of them named."""
        codec = self.data.codec
        kept = np.argsort(-np.bincount(self.data.train.item, minlength=len(codec.items)), kind="stable")[:most_rated]
        vectors = np.asarray(self.state.params["item_factors"])[kept]
        return Embeddings(codec.item, tuple(codec.items[i] for i in kept), vectors).plot(n)

    def recommend(self, user: int | str, n: int = 10, *, include_seen: bool = False) -> list[tuple[int | str, float]]:
        """The `n` items with the highest predicted ratings, without those that the user rated in training.

        An unseen user gets what the mean of all users would like. ValueError where fewer than `n` items are left.
        """
        codec = self.data.codec
        number = codec.encode_many([user], [codec.items[0]])["user"]
        scores = self._scores(number)
        seen = np.zeros(scores.shape, bool)
        if not include_seen:
            seen[0, self.data.train.item[self.data.train.user == number[0]]] = True
        left = int((~seen).sum())
        if not 1 <= n <= left:
            raise ValueError(f"n={n}: {codec.user} {user!r} has {left} items left to recommend")
        return [(codec.items[i], float(scores[0, i])) for i in top_k(scores, n, seen)[0]]

    def rank_metrics(self, dataset: Ratings | None = None, *, k: int = 10, relevant: float) -> dict[str, float]:
        """{"recall@k", "ndcg@k"} of recommendations without what users rated in training, averaged over users.

        Relevant is what a user rated `relevant` or higher in `dataset` (default: validation); users without such an
        item and items that training rows do not have are left out. ValueError where nobody has a relevant item.
        """
        dataset = self.data.valid if dataset is None else dataset
        codec, train = self.data.codec, self.data.train
        known = (dataset.user < len(codec.users)) & (dataset.item < len(codec.items)) & (dataset.target >= relevant)
        if not known.any():
            raise ValueError(f"no rating of {relevant:g} or higher by a user and of an item of the training rows")
        users = np.unique(dataset.user[known])
        place = np.full(len(codec.users), -1)
        place[users] = np.arange(len(users))
        wanted, seen = np.zeros((2, len(users), len(codec.items)), bool)
        wanted[place[dataset.user[known]], dataset.item[known]] = True
        rated = place[train.user] >= 0
        seen[place[train.user[rated]], train.item[rated]] = True
        ranked = top_k(self._scores(users.astype(np.int32)), k, seen)
        wanted &= ~seen
        return {f"recall@{k}": recall_at_k(ranked, wanted), f"ndcg@{k}": ndcg_at_k(ranked, wanted)}

    def _scores(self, users: np.ndarray) -> np.ndarray:
        """Predicted ratings of every item by each of `users`, (users, items)."""
        blocks = [users[i : i + 64] for i in range(0, len(users), 64)]
        scores = np.concatenate([np.asarray(self._score(self.state.variables, block)) for block in blocks])
        check_answer(scores)
        return scores

    @property
    def _score(self) -> Callable:
        n, module = len(self.data.codec.items), self.module
        one = lambda variables, user: module.apply(variables, jnp.full(n, user), jnp.arange(n), train=False)
        return self.programs.get("score", (module, n), lambda: jax.jit(jax.vmap(one, in_axes=(None, 0))))

    def _embeddings(self, side: str) -> Embeddings:
        codec = self.data.codec
        names = {"user": codec.users, "item": codec.items}[side]
        return Embeddings(getattr(codec, side), names, np.asarray(self.state.params[f"{side}_factors"]))

    def _biases(self, side: str, names: Sequence[int | str]) -> list[tuple[int | str, float]]:
        if f"{side}_bias" not in self.state.params:
            raise ValueError(f"{type(self.module).__name__} has no biases: use_nn=False gives a model that has")
        values = np.asarray(self.state.params[f"{side}_bias"])[:, 0]
        return [(names[i], float(values[i])) for i in np.argsort(-values, kind="stable")]
