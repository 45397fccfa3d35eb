"""Signals that ask a run to stop: SIGINT (Ctrl-C), SIGTERM, and SIGUSR1, as Slurm sends before it takes a machine."""

from __future__ import annotations

import contextlib
import logging
import signal
from collections.abc import Iterator

from speechssl import ranks

log = logging.getLogger("speechssl")

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """True once a signal has asked for a stop."""

    def __init__(self) -> None:
        self.number: int | None = None

    def __bool__(self) -> bool:
        return self.number is not None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take signals as requests. A second Ctrl-C stops at once; other signals, which schedulers repeat, do not."""
        before = {number: signal.signal(number, self._ask) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _ask(self, number: int, _frame: object) -> None:
        if self and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self:
            log.warning("stopping after this step, with a checkpoint; Ctrl-C stops at once")
        self.number = number
        ranks.asked_to_end |= number == signal.SIGTERM
