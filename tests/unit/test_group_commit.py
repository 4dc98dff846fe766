"""Threads that submit together share one commit, one fate, and never wait for a leader that is gone."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from outbox import group_commit
from outbox.group_commit import GroupCommit
from tests.unit.fakes.waiting import until

PATIENCE_S = 20.0


class Rig:
    """A group commit whose commits stop at a barrier when told, and whose submitters' ends are recorded."""

    def __init__(self) -> None:
        self.commits: list[list[Any]] = []
        # Raised by the commits to come, first one first; None lets one pass.
        self.failures: list[BaseException | None] = []
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.go_on.set()
        self.ends: dict[Any, BaseException | None] = {}
        # Called first by each commit, with its items.
        self.before: Callable[[list[Any]], object] = len
        # Whether the commits keep to themselves that they wait for the disk.
        self.silent = False
        self.commit = GroupCommit[Any](self._commit)
        self._threads: list[threading.Thread] = []

    def _commit(self, items: list[Any], waits: Callable[[], None]) -> None:
        self.before(items)
        if not self.silent:
            waits()
        self.entered.set()
        assert self.go_on.wait(PATIENCE_S)
        self.commits.append(items)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None:
            raise failure

    def submit(self, item: Any) -> None:
        try:
            self.commit.submit(item)
        except BaseException as exc:  # noqa: BLE001 - it is what the test looks at
            self.ends[item] = exc
        else:
            self.ends[item] = None

    def start(self, item: Any, *, name: str | None = None) -> None:
        """Submit on a thread of its own, and wait until it is in the queue or commits."""
        before = len(self.commit._queue)
        thread = threading.Thread(target=self.submit, args=(item,), name=name)
        self._threads.append(thread)
        was_led = self.commit._leader is not None
        thread.start()
        until(lambda: len(self.commit._queue) > before if was_led else self.entered.is_set())

    def hold(self) -> None:
        """Submit `first` and keep its commit from ending."""
        self.go_on.clear()
        self.start("first")

    def release(self) -> None:
        self.go_on.set()
        for thread in self._threads:
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


@pytest.fixture(params=["waits", "silent"])
def rig(request: pytest.FixtureRequest) -> Iterator[Rig]:
    rig = Rig()
    rig.silent = request.param == "silent"
    yield rig
    rig.release()
    # Whatever happened, the next one is served at once and alone.
    rig.failures.clear()
    rig.commit.submit("after")
    assert rig.commits[-1] == ["after"]


def test_a_lone_thread_commits_by_itself(rig: Rig) -> None:
    rig.submit(1)
    rig.submit(2)
    assert rig.commits == [[1], [2]]


def test_threads_that_arrive_during_a_commit_share_the_next_one_in_order(rig: Rig) -> None:
    rig.hold()
    for item in range(31):
        rig.start(item)
    rig.release()
    assert rig.commits == [["first"], list(range(31))]
    assert rig.ends == dict.fromkeys(["first", *range(31)])


def test_busy_threads_need_fewer_commits_than_items_and_nothing_is_lost_or_doubled(rig: Rig) -> None:
    barrier = threading.Barrier(32)

    def work(number: int) -> None:
        barrier.wait(PATIENCE_S)
        for item in range(20):
            rig.submit((number, item))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(32)]
    rig.hold()
    for thread in threads:
        thread.start()
    until(lambda: len(rig.commit._queue) == 32)
    rig.release()
    for thread in threads:
        thread.join(PATIENCE_S)
    committed = [item for commit in rig.commits for item in commit if item != "first"]
    assert sorted(committed) == [(number, item) for number in range(32) for item in range(20)]
    assert len(rig.commits) < len(committed)
    assert not any(rig.ends.values())


def test_an_error_reaches_all_of_its_batch_and_nobody_else(rig: Rig) -> None:
    error = OSError("disk full")
    rig.failures = [None, error]
    rig.hold()
    for item in range(5):
        rig.start(item)
    rig.release()
    assert rig.ends == {"first": None, **dict.fromkeys(range(5), error)}  # type: ignore[misc]


def test_an_error_of_a_commit_does_not_hold_up_the_queue_behind_it(rig: Rig) -> None:
    rig.failures = [OSError("disk full")]
    rig.hold()
    rig.start("next")
    rig.release()
    assert isinstance(rig.ends["first"], OSError)
    assert rig.ends["next"] is None


def test_an_interrupted_leader_hands_over_and_nothing_is_lost_or_doubled(rig: Rig) -> None:
    rig.failures = [None, KeyboardInterrupt()]
    rig.hold()
    for item in ("leader", "b", "c"):
        rig.start(item)
    rig.release()
    assert isinstance(rig.ends.pop("leader"), KeyboardInterrupt)
    assert rig.ends == {"first": None, "b": None, "c": None}
    # The interrupted commit is in doubt; the followers' items are given to the next leader once more.
    assert rig.commits == [["first"], ["leader", "b", "c"], ["b", "c"]]


def test_an_interrupted_leader_lets_those_behind_its_batch_go_on(rig: Rig) -> None:
    rig.failures = [KeyboardInterrupt()]
    rig.hold()
    rig.start("next")
    rig.release()
    assert isinstance(rig.ends["first"], KeyboardInterrupt)
    assert rig.commits == [["first"], ["next"]]


def test_an_interrupted_follower_leaves_the_queue(rig: Rig) -> None:
    rig.hold()
    main = threading.get_ident()

    def interrupt() -> None:
        until(lambda: len(rig.commit._queue) == 1)
        signal.pthread_kill(main, signal.SIGUSR1)

    def raise_it(*_: Any) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGUSR1, raise_it)
    try:
        helper = threading.Thread(target=interrupt)
        helper.start()
        with pytest.raises(KeyboardInterrupt):
            rig.commit.submit("follower")
    finally:
        signal.signal(signal.SIGUSR1, before)
    helper.join()
    assert rig.commit._queue == []
    rig.release()
    assert rig.commits == [["first"]]


@pytest.mark.parametrize("look_s", [0.001, 3600.0])
def test_who_has_been_committed_is_woken_when_the_next_commit_waits_for_the_disk_and_looks_before(
    monkeypatch: pytest.MonkeyPatch, look_s: float
) -> None:
    monkeypatch.setattr(group_commit, "_LOOK_S", look_s)
    gates = {name: threading.Event() for name in ("first", "leader", "next", "disk")}

    def write(items: list[str], waits: Callable[[], None]) -> None:
        assert gates[items[0]].wait(PATIENCE_S)
        waits()
        assert items[0] != "next" or gates["disk"].wait(PATIENCE_S)

    commit = GroupCommit[str](write)
    threads: dict[str, threading.Thread] = {}

    def start(item: str, queued: int) -> None:
        threads[item] = threading.Thread(target=commit.submit, args=(item,))
        threads[item].start()
        until(lambda: commit._leader is not None and len(commit._queue) == queued)

    start("first", 0)
    start("leader", 1)
    start("follower", 2)
    gates["first"].set()
    until(lambda: not commit._queue)
    start("next", 1)
    gates["leader"].set()
    threads["leader"].join(PATIENCE_S)
    until(lambda: not commit._queue)
    assert [waiter.item for waiter in commit._settled] == ["follower"]
    if look_s > PATIENCE_S:
        assert threads["follower"].is_alive()
        gates["next"].set()
    threads["follower"].join(PATIENCE_S)
    assert not threads["follower"].is_alive()
    assert threads["next"].is_alive()
    gates["next"].set()
    gates["disk"].set()
    for thread in threads.values():
        thread.join(PATIENCE_S)
        assert not thread.is_alive()


class InterruptedMutex:
    """A mutex of which a thread called `doomed` is interrupted as it waits for it, the `at`-th time that it does."""

    def __init__(self, at: int) -> None:
        self._lock, self._left = threading.Lock(), at

    def __enter__(self) -> None:
        if threading.current_thread().name == "doomed":
            self._left -= 1
            if self._left == 0:
                raise KeyboardInterrupt
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def submit_doomed(rig: Rig) -> None:
    thread = threading.Thread(target=rig.submit, args=("doomed",), name="doomed")
    thread.start()
    thread.join(PATIENCE_S)
    assert not thread.is_alive()
    assert isinstance(rig.ends["doomed"], KeyboardInterrupt)


def test_one_that_is_interrupted_before_it_is_in_the_queue_leaves_the_leader_alone(rig: Rig) -> None:
    rig.hold()
    rig.commit._mutex = InterruptedMutex(at=1)  # type: ignore[assignment]
    submit_doomed(rig)
    rig.start("next")
    assert rig.commits == []
    assert len(rig.commit._queue) == 1
    rig.release()
    assert rig.commits == [["first"], ["next"]]


def test_a_leader_that_is_interrupted_before_it_has_a_batch_commits_nothing(rig: Rig) -> None:
    rig.commit._mutex = InterruptedMutex(at=2)  # type: ignore[assignment]
    submit_doomed(rig)
    assert rig.commits == []


def test_a_leader_that_is_interrupted_after_its_commit_lets_its_followers_go(rig: Rig) -> None:
    # The doomed one: into the queue, take the batch, hand over.
    rig.hold()
    rig.commit._mutex = InterruptedMutex(at=3)  # type: ignore[assignment]
    rig.start("doomed", name="doomed")
    rig.start("follower")
    rig.release()
    assert isinstance(rig.ends["doomed"], KeyboardInterrupt)
    assert rig.ends["follower"] is None
    assert rig.commits == [["first"], ["doomed", "follower"]]


class InterruptedLock:
    """A lock on whose second taking the thread is interrupted, just after it has it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._taken = 0

    def acquire(self, timeout: float = -1) -> bool:
        if not self._lock.acquire(timeout=timeout):
            return False
        self._taken += 1
        if self._taken == 2:
            raise KeyboardInterrupt
        return True

    def release(self) -> None:
        self._lock.release()


def test_a_follower_that_is_interrupted_as_it_becomes_leader_hands_over(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock() -> Any:
        return InterruptedLock() if threading.current_thread().name == "doomed" else threading.Lock()

    monkeypatch.setattr(group_commit, "Lock", lock)
    rig.hold()
    rig.start("doomed", name="doomed")
    rig.start("next")
    rig.release()
    assert isinstance(rig.ends["doomed"], KeyboardInterrupt)
    assert rig.ends["next"] is None
    assert rig.commits == [["first"], ["next"]]


class StartlingLock:
    """A lock at whose first release the thread that releases it is interrupted, just after that."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.acquire = self._lock.acquire
        self._startles = True

    def release(self) -> None:
        self._lock.release()
        if self._startles:
            self._startles = False
            raise KeyboardInterrupt


@pytest.mark.parametrize("doomed", ["leader", "b", "c"])
def test_an_interruption_while_others_are_woken_leaves_nobody_asleep(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, doomed: str
) -> None:
    def lock() -> Any:
        return StartlingLock() if threading.current_thread().name == doomed else threading.Lock()

    monkeypatch.setattr(group_commit, "Lock", lock)
    rig.hold()
    for item in ("leader", "b", "c"):
        rig.start(item, name=item)
    rig.release()
    assert sorted(rig.ends) == ["b", "c", "first", "leader"]
    assert [type(end) for end in rig.ends.values() if end is not None] == [KeyboardInterrupt]
    assert rig.commits == [["first"], ["leader", "b", "c"]]


class PatientMutex:
    """A mutex for which a thread called `doomed` does not ask the `at`-th time before `gate` is open."""

    def __init__(self, at: int) -> None:
        self.gate = threading.Event()
        self._lock, self._left = threading.Lock(), at

    def __enter__(self) -> None:
        if threading.current_thread().name == "doomed":
            self._left -= 1
            assert self._left or self.gate.wait(PATIENCE_S)
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_a_leader_that_is_interrupted_while_it_hands_over_makes_no_second_leader(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lock() -> Any:
        return StartlingLock() if threading.current_thread().name == "leader" else threading.Lock()

    monkeypatch.setattr(group_commit, "Lock", lock)
    # The doomed one: into the queue, take the batch, hand over, and once more after the interruption.
    mutex = PatientMutex(at=4)
    rig.commit._mutex = mutex  # type: ignore[assignment]
    go_on = threading.Event()
    rig.before = lambda items: items == ["leader"] and go_on.wait(PATIENCE_S)
    rig.go_on.clear()
    rig.start("doomed", name="doomed")
    rig.start("leader", name="leader")
    rig.go_on.set()
    until(lambda: rig.commits == [["doomed"]] and not rig.commit._queue)
    rig.start("late")
    mutex.gate.set()
    until(lambda: "doomed" in rig.ends)
    assert isinstance(rig.ends["doomed"], KeyboardInterrupt)
    assert rig.commit._leader is not None
    assert rig.commit._leader.item == "leader"
    assert [waiter.item for waiter in rig.commit._queue] == ["late"]
    go_on.set()
    rig.release()
    assert rig.commits == [["doomed"], ["leader"], ["late"]]
