"""One writer per folder of checkpoints: a lock of the file system, or a lease where there is none (object stores)."""

import contextlib
import errno
import json
import os
import socket
import threading
import time
import uuid
import weakref
from typing import Any

import jax

from jaxfast.mesh import agreed

LEASE_SECONDS = 60.0
"""A lease that was not renewed for so long belongs to nobody."""
LOCK, LEASE = ".writer.lock", ".writer.lease"

_held: weakref.WeakValueDictionary[str, "Writer"] = weakref.WeakValueDictionary()


class Writer:
    """The right to write into a folder, until it is dropped or the process ends. `claim` gives it."""

    def __init__(self, folder: str):
        self.folder, self._release = folder, lambda: None
        if jax.process_index() == 0:
            release = _lease(folder) if "://" in folder else _lock(folder)
            self._release = weakref.finalize(self, release)

    def release(self) -> None:
        """Let the next one write."""
        _held.pop(self.folder, None)
        self._release()


def claim(folder: str) -> Writer:
    """Become the writer of `folder`; several objects of one process share it. All processes of a job call it together.

    Raises ValueError, naming the holder, if another process or machine writes there.
    """
    if folder in _held:
        return _held[folder]
    writer, refused = None, None
    try:
        writer = Writer(folder)
    except ValueError as error:
        refused = error
    if jax.process_count() > 1 and agreed(float(refused is not None)) and refused is None:
        refused = ValueError(f"{folder} is written by another run: end it, or give another folder")
    if refused is not None:
        raise refused
    _held[folder] = writer
    return writer


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime("%Y-%m-%d %H:%M:%S %z")}


def _refusal(folder: str, text: str) -> ValueError:
    try:
        holder = json.loads(text)
        who = f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (ValueError, KeyError, TypeError):
        who = "another process"
    return ValueError(f"{folder} is written by {who}: end that run, or give another folder")


def _lock(folder: str) -> Any:
    """Lock a file of `folder` (flock), which the system undoes when the process ends; return what undoes it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _lease(folder)
    os.makedirs(folder, exist_ok=True)
    file = open(os.path.join(folder, LOCK), "a+")  # noqa: SIM115 (it stays open as long as the lock)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        file.seek(0)
        text = file.read()
        file.close()
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise _refusal(folder, text) from None
        return _lease(folder)  # a file system without locks
    file.truncate(0)
    with contextlib.suppress(OSError):  # a full disk: the lock holds, only the name is missing
        file.write(json.dumps(_me()))
        file.flush()
    return file.close


def _lease(folder: str) -> Any:
    """Write a lease and renew it in a thread; return what ends it.

    Whether somebody else's is alive is seen by its changes, so that clocks need not agree: one that does not change for
    `LEASE_SECONDS` is taken over.
    """
    from etils import epath

    path = epath.Path(folder) / LEASE
    path.parent.mkdir(parents=True, exist_ok=True)
    mine, ended = _me() | {"id": uuid.uuid4().hex}, threading.Event()

    def read() -> str:
        try:
            return path.read_text()
        except OSError:
            return ""

    def renew() -> None:
        path.write_text(json.dumps(mine | {"renewed": time.time()}))

    seen, deadline = read(), time.monotonic() + LEASE_SECONDS
    while seen and time.monotonic() < deadline:
        time.sleep(LEASE_SECONDS / 60)
        now = read()
        if now and now != seen:
            raise _refusal(folder, now)
        seen = now
    renew()
    time.sleep(LEASE_SECONDS / 60)  # two that saw the same end of a lease: the later one has it
    if mine["id"] not in (there := read()):
        raise _refusal(folder, there)

    def keep() -> None:
        while not ended.wait(LEASE_SECONDS / 6):
            with contextlib.suppress(OSError):  # the next time
                renew()

    threading.Thread(target=keep, name="jaxfast-lease", daemon=True).start()

    def release() -> None:
        ended.set()
        with contextlib.suppress(OSError):
            if mine["id"] in read():
                path.unlink()

    return release
