"""The compiled programs of a learner, kept by what they read, so that equal work compiles once."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, NamedTuple, TypeVar

Program = TypeVar("Program")


class Programs:
    """Compiled programs by what they read: of each kind, such as "train", the `kept` that were used last."""

    def __init__(self, kept: int = 8):
        self.kept = kept
        self._kinds: dict[str, OrderedDict[Hashable, Any]] = {}

    def get(self, kind: str, reads: tuple, make: Callable[[], Program]) -> Program:
        """The program of this kind that reads `reads`, made by `make` where there is none.

        Members of `reads` are compared by their value where they have one: modules, transforms, `functools.partial` of
        equal arguments. What cannot be compared, such as a lambda, is its own.
        """
        programs = self._kinds.setdefault(kind, OrderedDict())
        key = tuple(map(by_value, reads))
        if key not in programs:
            programs[key] = make()
            if len(programs) > self.kept:
                programs.popitem(last=False)
        programs.move_to_end(key)
        return programs[key]

    def __len__(self) -> int:
        return sum(map(len, self._kinds.values()))


class _Itself(NamedTuple):
    """Something without a hash: it equals only itself, which it keeps alive, so that its number stays its own."""

    number: int
    thing: Any

    def __hash__(self) -> int:
        return hash(self.number)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Itself) and self.thing is other.thing


def by_value(thing: Any) -> Hashable:
    """Something hashable that is equal for things that a program cannot tell apart.

    >>> by_value(partial(max, default=1)) == by_value(partial(max, default=1)), by_value([1]) == by_value([1])
    (True, False)
    """
    if isinstance(thing, partial):
        keywords = sorted(thing.keywords.items())
        return partial, by_value(thing.func), *map(by_value, thing.args), *((name, by_value(x)) for name, x in keywords)
    if isinstance(thing, tuple):
        return type(thing), *map(by_value, thing)
    try:
        hash(thing)
    except TypeError:
        return _Itself(id(thing), thing)
    return thing
