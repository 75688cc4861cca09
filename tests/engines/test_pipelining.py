"""Lanes: work overlaps while it waits, never while it runs, and ends when it is told to."""

from __future__ import annotations

import threading
import time

import pytest

from factory.engines import pipelining


def test_work_is_done_in_order_without_threads_in_one_lane():
    before = threading.active_count()
    made = [*pipelining.run(range(3), lambda n: (n * 2, threading.active_count()), lanes=1)]
    assert made == [(0, (0, before)), (1, (2, before)), (2, (4, before))]


@pytest.mark.parametrize("count", [2, 3])
def test_every_piece_is_made_once_whatever_the_lanes(count):
    assert sorted(pipelining.run(range(20), lambda n: n * n, count)) == [
        (n, n * n) for n in range(20)
    ]
    assert [*pipelining.run([], lambda n: n, count)] == []


def test_the_second_piece_begins_while_the_first_waits():
    first_may_end = threading.Event()

    def make(n: int) -> int:
        if n == 0:
            with pipelining.release_turn():
                assert first_may_end.wait(10)
        else:
            first_may_end.set()
        return n

    assert [n for n, _ in pipelining.run([0, 1], make, 2)] == [1, 0]


def test_only_one_lane_runs_python_at_a_time():
    inside, most = 0, 0

    def make(n: int) -> None:
        nonlocal inside, most
        for _ in range(20):
            inside += 1
            most = max(most, inside)
            time.sleep(0.0005)
            inside -= 1
            with pipelining.release_turn():
                time.sleep(0.0005)

    assert len([*pipelining.run(range(9), make, 3)]) == 9
    assert most == 1


def test_work_is_taken_only_when_a_lane_is_free():
    taken = []

    def work():
        for n in range(100):
            taken.append(n)
            yield n

    results = pipelining.run(work(), lambda n: n, 2)
    next(results)
    time.sleep(0.3)
    # one read, two that wait to be read, two made by lanes that wait to say so
    assert len(taken) <= 5
    results.close()


def lanes_are_over() -> None:
    """Wait until no lane is left that could begin anything."""
    for thread in threading.enumerate():
        if thread.name.startswith("lane "):
            thread.join(10)
            assert not thread.is_alive()


def test_an_error_ends_the_run_and_what_comes_after_is_not_begun():
    begun, second_waits, raised = [], threading.Event(), threading.Event()

    def make(n: int) -> int:
        begun.append(n)
        if n == 3:
            with pipelining.release_turn():
                assert second_waits.wait(10)
            raise ValueError("the third")
        if n == 4:
            second_waits.set()
            with pipelining.release_turn():
                assert raised.wait(10)
        return n

    with pytest.raises(ValueError, match="the third"):
        list(pipelining.run(range(100), make, 2))
    raised.set()
    lanes_are_over()
    assert sorted(begun) == [0, 1, 2, 3, 4]  # the fourth was under way


def test_an_error_is_the_last_that_lanes_do_even_if_nobody_reads_it_yet():
    begun: list[int] = []

    def make(n: int) -> int:
        begun.append(n)
        if n == 1:
            raise ValueError("the first")
        return n

    results = pipelining.run(range(100), make, 2)
    assert next(results) == (0, 0)
    lanes_are_over()
    assert begun == [0, 1]
    with pytest.raises(ValueError, match="the first"):
        list(results)


def test_resting_outside_of_a_lane_does_nothing():
    with pipelining.release_turn():
        pass
