"""Lanes: several shards in progress at once, so that an engine never drains.

Only one lane runs Python at a time: it holds the turn and releases it while it waits for an engine.
So stages need not care about threads: between two waits no other lane runs, and tokenizers, which
may not be used from two threads at once, are safe.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Work = TypeVar("Work")
Result = TypeVar("Result")

_LOOK = 0.1  # seconds between looks at whether the lanes are to stop


class _ThreadTurn(threading.local):
    lock: threading.Lock | None = None  # the turn that this thread holds


_current = _ThreadTurn()


@contextmanager
def release_turn() -> Iterator[None]:
    """Let other lanes run while this one waits. Outside of a lane it does nothing."""
    turn = _current.lock
    if turn is None:
        yield
        return
    _current.lock = None
    turn.release()
    try:
        yield
    finally:
        turn.acquire()
        _current.lock = turn


def run(
    work: Iterable[Work], make: Callable[[Work], Result], lanes: int
) -> Iterator[tuple[Work, Result]]:
    """Yield (work, result of `make`) of every piece of work, in the order in which they get done.
    `lanes` of them are in progress at once; the next is taken from `work` when one is done, so
    nothing is held in memory ahead of time.

    An error in `make` is raised here, and no further work is begun after it. With one lane there is
    no thread.
    """
    if lanes == 1:
        for piece in work:
            yield piece, make(piece)
        return
    pieces, turn = iter(work), threading.Lock()
    enough, over = threading.Event(), threading.Event()  # begin nothing more; nobody listens
    done: queue.Queue[tuple[Work, Result] | BaseException | None] = queue.Queue(maxsize=lanes)

    def report(item: tuple[Work, Result] | BaseException | None) -> None:
        while not over.is_set():
            try:
                done.put(item, timeout=_LOOK)
            except queue.Full:
                continue
            return

    def lane() -> None:
        try:
            while not enough.is_set():
                with turn:
                    _current.lock = turn
                    try:
                        if enough.is_set() or (piece := next(pieces, _NOTHING)) is _NOTHING:
                            break
                        result = make(piece)  # type: ignore[arg-type]
                    except BaseException:
                        enough.set()  # before the turn goes to another lane
                        raise
                    finally:
                        _current.lock = None
                report((piece, result))  # type: ignore[arg-type]
        except BaseException as error:  # noqa: BLE001  (raised again where the results are read)
            report(error)
        else:
            report(None)

    for number in range(lanes):  # daemons: what waits for an engine that is gone ends with us
        threading.Thread(target=lane, name=f"lane {number}", daemon=True).start()
    try:
        running = lanes
        while running:
            item = done.get()
            if isinstance(item, BaseException):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        enough.set()
        over.set()


_NOTHING = object()
