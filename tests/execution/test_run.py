"""What surrounds a run: signals, in the main thread and in any other."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from factory.errors import Interrupted
from factory.execution.run import _stoppable


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_ends_a_run_and_the_handler_before_it_is_back_afterwards(number):
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match="told to stop by"), _stoppable():
        os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_run_in_another_thread_leaves_signals_alone():
    before, seen = signal.getsignal(signal.SIGTERM), []

    def run() -> None:
        with _stoppable():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
