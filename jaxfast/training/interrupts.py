"""Ctrl-C during a fit: held back while a dispatch is published, so that it always finds a whole state."""

import functools
import os
import signal
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any

import jax


class Interrupts:
    """Within the block, SIGINT raises KeyboardInterrupt as always, but not within `held`: then at the end of that.

    A training program takes the memory of the state that it is given, so that between a dispatch and the publication of
    the new state there is a moment without one; it takes milliseconds. `held` also takes `lock`, so that another thread
    does not read a state meanwhile. In a job of several processes SIGINT becomes SIGTERM, which jax tells to all of
    them, and they stop at the same step. An interrupt that is swallowed on its way comes again at the end of the next
    `held`, or of the block.
    """

    def __init__(self, lock: AbstractContextManager | None = None):
        self.held = _Held(lock or threading.RLock())
        self._before: Callable | None = None

    def __enter__(self) -> "Interrupts":
        before = signal.getsignal(signal.SIGINT)
        if threading.current_thread() is threading.main_thread() and callable(before):
            self._before = before
            signal.signal(signal.SIGINT, self._handle)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)
        act, self.held.pending = self.held.pending, None
        if act is not None and error[0] is None:
            act()

    def _handle(self, number: int, frame: FrameType | None) -> Any:
        if jax.process_count() > 1:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        act = functools.partial(self._before, number, frame)
        if self.held.depth or self._before is signal.default_int_handler:
            # Noted in any case: what is raised in a callback of the garbage collector is printed and forgotten.
            self.held.pending = act
        if not self.held.depth:
            act()


class _Held:
    """A context that may be entered again and within itself; an interrupt that came meanwhile acts at its end."""

    def __init__(self, lock: AbstractContextManager):
        self.lock, self.depth = lock, 0
        self.pending: Callable[[], Any] | None = None

    def __enter__(self) -> None:
        self.depth += 1
        self.lock.__enter__()

    def __exit__(self, *error: object) -> None:
        self.lock.__exit__(*error)
        self.depth -= 1
        if not self.depth and self.pending is not None:
            act, self.pending = self.pending, None
            act()
