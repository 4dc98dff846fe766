"""A thread for one thing at a time, and its stand-in without a thread."""

from __future__ import annotations

import threading

import pytest

from outbox.worker import Later, Worker
from tests.unit.fakes.waiting import LONG


def test_work_runs_beside_its_owner() -> None:
    worker: Worker[int] = Worker("beside")
    entered, gate = threading.Event(), threading.Event()

    def work() -> int:
        entered.set()
        assert gate.wait(LONG)
        return threading.get_ident()

    worker.begin(work)
    assert entered.wait(LONG)
    gate.set()
    answer = worker.wait()
    assert answer is not None
    assert answer() != threading.get_ident()
    worker.close()


@pytest.mark.parametrize("worker", [Worker[int]("beside"), Later[int]()], ids=["thread", "later"])
def test_error_of_the_work_is_raised_to_its_reader(worker: Worker[int] | Later[int]) -> None:
    worker.begin(lambda: 1 // 0)
    answer = worker.wait()
    assert answer is not None
    with pytest.raises(ZeroDivisionError):
        answer()
    worker.begin(lambda: 7)
    answer = worker.wait()
    assert answer is not None
    assert answer() == 7
    worker.close()


@pytest.mark.parametrize("worker", [Worker[int]("beside"), Later[int]()], ids=["thread", "later"])
def test_wait_without_begun_work_returns_nothing(worker: Worker[int] | Later[int]) -> None:
    assert worker.wait() is None
    worker.begin(lambda: 7)
    worker.wait()
    assert worker.wait() is None
    worker.close()


def test_work_that_nobody_asked_for_ends_before_the_next_begins() -> None:
    worker: Worker[None] = Worker("beside")
    done: list[int] = []
    for number in range(5):
        worker.begin(lambda number=number: done.append(number))  # type: ignore[misc]
    worker.close()
    assert done == [0, 1, 2, 3, 4]


def test_a_closed_worker_has_no_thread_and_begins_anew() -> None:
    worker: Worker[int] = Worker("outbox-test-worker")
    for number in range(2):
        worker.begin(lambda: 3)
        worker.close()
        assert "outbox-test-worker" not in {thread.name for thread in threading.enumerate()}, number
    worker.close()


def test_worker_thread_has_its_name_and_ends_with_the_process() -> None:
    worker: Worker[threading.Thread] = Worker("outbox-test-worker")
    worker.begin(threading.current_thread)
    answer = worker.wait()
    assert answer is not None
    assert answer().name == "outbox-test-worker"
    # Work that hangs in the network must not keep a process from ending.
    assert answer().daemon
    worker.close()


def test_later_does_its_work_when_it_is_waited_for() -> None:
    later: Later[None] = Later()
    done: list[int] = []
    later.begin(lambda: done.append(1))
    assert done == []
    later.wait()
    assert done == [1]


def test_a_thread_that_cannot_be_started_is_started_the_next_time(monkeypatch: pytest.MonkeyPatch) -> None:
    worker: Worker[int] = Worker("beside")

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError):
            worker.begin(lambda: 1)
        assert worker.wait() is None
    worker.begin(lambda: 2)
    answer = worker.wait()
    assert answer is not None
    assert answer() == 2
    worker.close()


def test_waiting_that_was_interrupted_can_be_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    worker: Worker[int] = Worker("beside")
    gate = threading.Event()
    worker.begin(lambda: int(gate.wait(LONG)))
    assert worker._task is not None

    def interrupt(timeout: float | None = None) -> bool:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(worker._task.done, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            worker.wait()
    gate.set()
    answer = worker.wait()
    assert answer is not None
    assert answer() == 1
    worker.close()
