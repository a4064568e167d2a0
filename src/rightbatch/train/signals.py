"""Ctrl-C and SIGTERM as requests: the run stops after the update in flight, and saves."""

from __future__ import annotations

import signal
from collections.abc import Generator
from contextlib import contextmanager
from threading import current_thread, main_thread
from types import FrameType


class StopRequests:
    """Which of the two signals has come.

    The first Ctrl-C asks; the handler that was there before then gets the second, and aborts.
    """

    def __init__(self) -> None:
        self.interrupted = self.terminated = False

    @contextmanager
    def listening(self) -> Generator[None]:
        """Take the signals over, and give them back.

        Outside the main thread, and where a signal is ignored, there is nothing to listen to.
        """
        if current_thread() is not main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number, handler in before.items():
            if handler is not signal.SIG_IGN and handler is not None:
                signal.signal(number, self._on_signal)
        self._on_interrupt = before[signal.SIGINT]
        try:
            yield
        finally:
            for number, handler in before.items():
                if handler is not None:
                    signal.signal(number, handler)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if number == signal.SIGTERM:
            self.terminated = True
        else:
            self.interrupted = True
            signal.signal(signal.SIGINT, self._on_interrupt)
