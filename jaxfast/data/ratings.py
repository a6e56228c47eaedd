"""Ratings of items by users: from a table to index arrays, and back from an index to a name."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np

from jaxfast.data import frames
from jaxfast.data.prediction import Value
from jaxfast.data.split import split_indices
from jaxfast.messages import first, nearest


@dataclass(frozen=True)
class RatingsCodec:
    """The users and the items that training rows have, in the order of a model's rows.

    Anybody else is number len(users), anything else number len(items). `user`, `item`, `rating`: the table's columns.
    """

    kind: ClassVar[str] = "ratings"

    user: str
    item: str
    rating: str
    users: tuple[int | str, ...]
    items: tuple[int | str, ...]

    def encode_many(self, users: Sequence[Any], items: Sequence[Any]) -> dict[str, np.ndarray]:
        """int32 arrays "user" and "item" of names, the unseen included; ValueError for names of another type."""
        return {
            "user": _numbers(users, self._user_numbers, self.user),
            "item": _numbers(items, self._item_numbers, self.item),
        }

    def encode(self, item: Any) -> dict[str, np.ndarray]:
        """One (user, item), a mapping or pandas row with both columns, or an example such as `data.valid[i]`."""
        if hasattr(item, "to_dict") and getattr(item, "ndim", None) == 1:
            item = item.to_dict()
        if isinstance(item, Mapping):
            # Only an example holds arrays; its numbers are rows of the model, not names.
            if all(isinstance(item.get(name), np.ndarray) for name in ("user", "item")):
                return {name: item[name] for name in ("user", "item")}
            missing = [name for name in (self.user, self.item) if name not in item]
            if missing:
                raise ValueError(f"to predict a rating takes {missing[0]!r}, this item has {first(list(item), 20)}")
            item = item[self.user], item[self.item]
        if not isinstance(item, (tuple, list)) or len(item) != 2:
            raise ValueError(f"give ({self.user}, {self.item}) or a mapping of both, got {item!r}")
        return {name: values[0] for name, values in self.encode_many([item[0]], [item[1]]).items()}

    def decode(self, outputs: np.ndarray) -> Value:
        """The rating that a model's output for one pair says."""
        return Value(float(np.asarray(outputs).reshape(())))

    def user_number(self, user: Any) -> int:
        """The row of a user; ValueError for one that training rows do not have."""
        return _known(user, self._user_numbers, self.user)

    def item_number(self, item: Any) -> int:
        """The row of an item; ValueError for one that training rows do not have."""
        return _known(item, self._item_numbers, self.item)

    def to_json(self) -> dict:
        """Plain JSON values; `from_json` gives an equal codec."""
        return {"kind": self.kind, **asdict(self)}

    @classmethod
    def from_json(cls, stored: dict) -> "RatingsCodec":
        lists = {name: tuple(stored[name]) for name in ("users", "items")}
        return cls(stored["user"], stored["item"], stored["rating"], **lists)

    @cached_property
    def _user_numbers(self) -> dict:
        return {name: i for i, name in enumerate(self.users)}

    @cached_property
    def _item_numbers(self) -> dict:
        return {name: i for i, name in enumerate(self.items)}


@dataclass(frozen=True, eq=False)
class Ratings:
    """Rows (user, item, target) as int32, int32 and float32 arrays; `index` are their places in the table."""

    user: np.ndarray
    item: np.ndarray
    target: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, i: int) -> dict[str, np.ndarray]:
        return {name: np.asarray(values) for name, values in self.batch(i).items()}

    def batch(self, indices: np.ndarray) -> dict[str, np.ndarray]:
        """The rows at `indices`, stacked."""
        return {"user": self.user[indices], "item": self.item[indices], "target": self.target[indices]}

    @property
    def nbytes(self) -> int:
        return self.user.nbytes + self.item.nbytes + self.target.nbytes

    def __repr__(self) -> str:
        return f"Ratings: {len(self)} rows"


@dataclass(frozen=True, eq=False, repr=False)
class RatingsData:
    """Training and validation ratings with all that a learner needs to know of them; `frame` is their table."""

    train: Ratings
    valid: Ratings
    codec: RatingsCodec
    batch_size: int
    seed: int
    frame: Any
    inputs: tuple[str, ...] = ("user", "item")
    classes: None = None
    augment: None = None
    prepare: None = None

    def encode(self, item: Any) -> dict[str, np.ndarray]:
        """`RatingsCodec.encode` of one pair."""
        return self.codec.encode(item)

    def decode(self, outputs: np.ndarray) -> Value:
        """`RatingsCodec.decode` of one output."""
        return self.codec.decode(outputs)

    def show_batch(self, n: int = 9, *, seed: int = 0):
        """`n` training rows drawn with `seed`, as a table of the library that the data came in."""
        rows = self.train.index[np.random.default_rng(seed).permutation(len(self.train))[:n]]
        return self.frame[rows][[self.codec.user, self.codec.item, self.codec.rating]].to_native()

    def show_results(self, examples: Sequence[Mapping], predictions: Sequence[Value]):
        """Users, items and ratings beside predictions, as a table."""
        name = lambda names, number: names[int(number)] if int(number) < len(names) else "(unseen)"
        columns = {
            self.codec.user: [str(name(self.codec.users, example["user"])) for example in examples],
            self.codec.item: [str(name(self.codec.items, example["item"])) for example in examples],
            self.codec.rating: [float(example["target"]) for example in examples],
            "prediction": [prediction.value for prediction in predictions],
        }
        return frames.narwhals().from_dict(columns, backend=self.frame.implementation).to_native()

    def __repr__(self) -> str:
        lows, highs = self.train.target.min(), self.train.target.max()
        unseen = (self.valid.user == len(self.codec.users)) | (self.valid.item == len(self.codec.items))
        note = f", {unseen.sum()} of them of unseen users or items" if unseen.any() else ""
        return (
            f"RatingsData: {len(self.train)} training and {len(self.valid)} validation ratings{note}\n"
            f"  {len(self.codec.users)} users, {len(self.codec.items)} items, ratings {lows:g} to {highs:g}, "
            f"batches of {self.batch_size}"
        )


def ratings_data(
    table: Any, *, user: str, item: str, rating: str, valid: Any, seed: int, batch_size: int
) -> RatingsData:
    """Check, split, number the users and items of the training rows, and turn all rows into arrays."""
    frame = frames.to_frame(table)
    if not len(frame):
        raise ValueError("the table has no rows: give at least two ratings")
    if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
        raise ValueError(f"batch_size={batch_size!r}: give a whole number from 1 on")
    for role, name in (("user=", user), ("item=", item), ("rating=", rating)):
        frames.check_columns(frame, [name], role)
    if len({user, item, rating}) < 3:
        raise ValueError(f"user={user!r}, item={item!r} and rating={rating!r} must be three columns")
    targets = frames.numbers_of(frame[rating]).astype(np.float32)
    wrong = np.flatnonzero(~np.isfinite(targets))
    if len(wrong):
        what = "empty" if np.isnan(targets[wrong[0]]) else "infinite"
        raise ValueError(f"{rating!r} is {what} in row {first(wrong)}: drop those rows")
    if isinstance(valid, str):
        if valid not in frame.columns:
            raise ValueError(
                f"valid={valid!r}: give a fraction, an index array, or the name of a column of booleans"
                f"{nearest(valid, frame.columns)}"
            )
        mask = frame[valid]
        if frames.kind_of(mask) != frames.FLAG or mask.is_null().any():
            raise ValueError(f"valid={valid!r} must be a column of booleans without empty cells, it holds {mask.dtype}")
        valid = mask.to_numpy().astype(bool)
    users, items = _names(frame[user]), _names(frame[item])
    train, held_out = split_indices(len(frame), valid, seed=seed)
    if batch_size > len(train):
        raise ValueError(
            f"batch_size={batch_size} is more than the {len(train)} training ratings: "
            f"give batch_size={len(train)} or less"
        )
    known_users, known_items = (np.unique(names[train]) for names in (users, items))
    codec = RatingsCodec(user, item, rating, tuple(known_users.tolist()), tuple(known_items.tolist()))
    codes = _positions(users, known_users), _positions(items, known_items), targets
    parts = [Ratings(*(values[rows] for values in codes), rows) for rows in (train, held_out)]
    return RatingsData(*parts, codec=codec, batch_size=int(batch_size), seed=seed, frame=frame)


def _names(series) -> np.ndarray:
    """The names in a column, int64 or text; ValueError where one is empty and for anything else."""
    empty = [i for i, value in enumerate(series.to_list()) if frames.is_empty(value)]
    if empty:
        raise ValueError(f"{series.name!r} is empty in row {first(empty)}: drop those rows")
    kind = frames.kind_of(series)
    if kind == frames.TEXT:
        return np.array(series.to_list(), str)
    values = series.to_numpy() if kind == frames.NUMBER else np.zeros(0)
    if kind != frames.NUMBER or values.dtype.kind == "f" and (values != np.floor(values)).any():
        raise ValueError(f"{series.name!r} holds {kind} ({series.dtype}): names are whole numbers or text")
    return values.astype(np.int64)


def _positions(names: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The place of each name among the sorted `known`, their number where it is not among them."""
    places = np.minimum(np.searchsorted(known, names), len(known) - 1)
    return np.where(known[places] == names, places, len(known)).astype(np.int32)


def _numbers(names: Sequence[Any], known: dict, column: str) -> np.ndarray:
    for name in names:
        _check_type(name, known, column)
    return np.array([known.get(name, len(known)) for name in names], np.int32)


def _known(name: Any, known: dict, column: str) -> int:
    _check_type(name, known, column)
    if name not in known:
        raise ValueError(f"{column} {name!r} is not among the {len(known)} of the training rows{nearest(name, known)}")
    return known[name]


def _check_type(name: Any, known: dict, column: str) -> None:
    text = isinstance(next(iter(known)), str)
    whole = isinstance(name, (int, np.integer)) and not isinstance(name, bool)
    if not (isinstance(name, str) if text else whole):
        had = "text" if text else "whole numbers"
        raise ValueError(f"{column} is {name!r} of type {type(name).__name__}: the training rows have {had} there")
