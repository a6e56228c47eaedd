"""Being told to go: SIGTERM on one machine, the notice that reaches every process of a distributed job."""

import itertools
import signal
import sys
import threading

import jax
from jax.experimental import multihost_utils

# jax wants the processes to ask with the same rising numbers, over all fits of a job.
_question = itertools.count(1)


class Preempted(SystemExit):
    """Raised when the state is saved in `folder` after a notice: the process ends with 143 (128 + SIGTERM), so that
    launchers start the same command again."""

    def __init__(self, folder: str):
        super().__init__(143)
        print(f"told to go: the state is saved in {folder}, and the same command goes on from there", file=sys.stderr)


class Preemption:
    """Within the `with` block, if `listening`, SIGTERM does not end the process but makes `noticed()` true.

    Under `jax.distributed`, which catches SIGTERM and the notices of TPU VMs itself, all processes must ask `noticed`
    equally often, and are told the same at the same question.
    """

    def __init__(self, listening: bool = True):
        self.told, self._before, self._listening = False, None, listening
        self._shared = listening and jax.distributed.is_initialized()

    def __enter__(self) -> "Preemption":
        if self._listening and not self._shared and threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, self._tell)
        return self

    def __exit__(self, *error) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)

    def _tell(self, number, frame) -> None:
        self.told = True

    def noticed(self) -> bool:
        """Whether to save and go, from now on."""
        if self._shared and not self.told:
            self.told = multihost_utils.reached_preemption_sync_point(next(_question))
        return self.told
