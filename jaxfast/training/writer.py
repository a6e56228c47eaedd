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
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jaxfast.mesh import anywhere

LEASE_SECONDS = 60.0
"""A lease that was not renewed for so long belongs to nobody."""
LEASE = ".writer.lease"
_TIME = "%Y-%m-%d %H:%M:%S %z"

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
    if anywhere(refused is not None) and refused is None:
        refused = ValueError(f"{folder} is written by another run: end it, or give another folder")
    if refused is not None:
        raise refused
    _held[folder] = writer
    return writer


def _me() -> dict[str, Any]:
    return {"host": socket.gethostname(), "process": os.getpid(), "since": time.strftime(_TIME)}


def _refusal(folder: str, holder: Mapping[str, Any] | None) -> ValueError:
    try:
        who = f"process {holder['process']} on {holder['host']}, since {holder['since']}"
    except (KeyError, TypeError):
        who = "another process"
    return ValueError(f"{folder} is written by {who}: end that run, or give another folder")


def _lock(folder: str) -> Callable[[], None]:
    """Lock the folder itself (flock), which leaves no file there, and which the system undoes when the process ends;
    return what undoes it."""
    try:
        import fcntl
    except ImportError:  # Windows
        return _lease(folder)
    os.makedirs(folder, exist_ok=True)
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(opened)
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            raise _refusal(folder, _locker(folder)) from None
        return _lease(folder)  # a file system without locks
    return lambda: os.close(opened)


def _locker(folder: str) -> dict[str, Any] | None:
    """Who has locked a folder, by the kernel's table of locks (Linux); None where it is not known."""
    status = os.stat(folder)
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/locks").read_text().splitlines():
            fields = line.split()  # 1: FLOCK ADVISORY WRITE process device first last
            if fields[1] == "FLOCK" and fields[5] == device and int(fields[4]) > 0:
                began = os.stat(f"/proc/{fields[4]}").st_mtime
                since = time.strftime(_TIME, time.localtime(began))
                return {"host": socket.gethostname(), "process": int(fields[4]), "since": since}
    return None


def _lease(folder: str) -> Callable[[], None]:
    """Write a lease and renew it in a thread; return what ends it.

    Whether somebody else's is alive is seen by its changes, so that clocks need not agree: one that does not change for
    `LEASE_SECONDS` is taken over.
    """
    from etils import epath

    path = epath.Path(folder) / LEASE
    path.parent.mkdir(parents=True, exist_ok=True)
    mine, ended = _me() | {"id": uuid.uuid4().hex}, threading.Event()

    def read() -> dict[str, Any]:
        try:
            return dict(json.loads(path.read_text()))
        except (OSError, ValueError, TypeError):
            return {}

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
    if (there := read()).get("id") != mine["id"]:
        raise _refusal(folder, there)

    def keep() -> None:
        while not ended.wait(LEASE_SECONDS / 6):
            with contextlib.suppress(OSError):  # the next time
                renew()

    threading.Thread(target=keep, name="jaxfast-lease", daemon=True).start()

    def release() -> None:
        ended.set()
        with contextlib.suppress(OSError):
            if read().get("id") == mine["id"]:
                path.unlink()

    return release
