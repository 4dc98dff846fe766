"""A conversation that takes too long is ended by shutting its socket, and only its own."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, suppress

import pytest

from outbox.postgres.watchdog import Watchdog, has_unread
from tests.unit.fakes.waiting import LONG

LIMIT_S = 0.1


class Time:
    """Jumps when told."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Time:
    return Time()


@pytest.fixture
def watchdog(clock: Time) -> Iterator[Watchdog]:
    watchdog = Watchdog(LIMIT_S, clock)
    yield watchdog
    watchdog.close()
    for thread in threading.enumerate():
        if thread.name == "outbox-watchdog":
            thread.join(LONG)
            assert not thread.is_alive()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    one, other = socket.socketpair()
    one.settimeout(LONG)
    other.settimeout(LONG)
    with one, other:
        yield one, other


def descriptors(one: socket.socket) -> int:
    """How many descriptors of this process are this socket; others come and go with other threads."""
    mine = os.fstat(one.fileno())
    count = 0
    for name in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # that of the listing itself
            count += os.path.samestat(os.fstat(int(name)), mine)
    return count


def works(pair: tuple[socket.socket, socket.socket]) -> bool:
    try:
        pair[0].sendall(b"x")
        return pair[1].recv(1) == b"x"
    except OSError:
        return False


def test_a_read_that_never_ends_is_ended(
    watchdog: Watchdog, clock: Time, pair: tuple[socket.socket, socket.socket]
) -> None:
    watchdog.watch(pair[0].fileno())
    with watchdog.guard():
        clock.now = LIMIT_S * 1.01
        assert pair[0].recv(1) == b""
    assert watchdog.fired


@pytest.mark.parametrize("asking", [True, False])
@pytest.mark.parametrize("answered", [True, False])
def test_time_that_is_spent_in_the_program_is_not_the_server_s(
    watchdog: Watchdog,
    clock: Time,
    pair: tuple[socket.socket, socket.socket],
    asking: bool,
    answered: bool,
    caplog: pytest.LogCaptureFixture,
) -> None:
    watchdog.watch(pair[0].fileno(), lambda: asking)
    if answered:
        pair[1].sendall(b"x")
    with watchdog.guard():
        clock.now = LIMIT_S * 1.01
        assert pair[1].recv(1) == b""
    assert watchdog.spent_here is (answered or not asking)
    assert ("here, not in PostgreSQL" in caplog.text) is watchdog.spent_here
    assert ("PostgreSQL took longer" in caplog.text) is not watchdog.spent_here
    with watchdog.guard():
        assert not watchdog.spent_here


def test_each_host_that_lets_nobody_in_is_left(clock: Time) -> None:
    watchdog = Watchdog(LIMIT_S, clock, connecting_s=60.0)
    with watchdog.guard():
        for _ in range(2):
            one, other = socket.socketpair()
            with one, other:
                other.settimeout(LONG)
                one.settimeout(LONG)
                watchdog.watch_connecting(one.fileno())
                clock.now += 59.0
                # A wait callback is called again and again, which is no new beginning.
                watchdog.watch_connecting(one.fileno())
                assert works((one, other))
                clock.now += 2.0
                assert one.recv(1) == b""
        one, other = socket.socketpair()
        with one, other:
            one.settimeout(LONG)
            watchdog.watch_connecting(one.fileno())
            assert not watchdog.fired
            # Let in: now a silent server has the time of every other block.
            watchdog.watch(one.fileno())
            clock.now += LIMIT_S * 1.01
            assert one.recv(1) == b""
    watchdog.close()


def test_a_block_within_its_limit_is_left_alone(
    watchdog: Watchdog, clock: Time, pair: tuple[socket.socket, socket.socket]
) -> None:
    watchdog.watch(pair[0].fileno())
    for _ in range(3):
        with watchdog.guard():
            clock.now += LIMIT_S
            threading.Event().wait(LIMIT_S / 2)
    clock.now += 100 * LIMIT_S
    threading.Event().wait(LIMIT_S / 2)
    assert works(pair)
    assert not watchdog.fired


def test_block_that_ends_while_the_watchdog_looks_is_left_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    looks, ended = threading.Event(), threading.Event()

    class SlowTime(Time):
        def __call__(self) -> float:
            if threading.current_thread().name == "outbox-watchdog":
                looks.set()
                ended.wait(0.3)  # in vain where the block cannot end meanwhile
            return self.now

    clock = SlowTime()
    with closing(Watchdog(LIMIT_S, clock)) as watchdog:
        watchdog.watch(pair[0].fileno())
        with watchdog.guard():
            assert looks.wait(LONG)
        clock.now = 100.0
        ended.set()
        with watchdog.guard():
            threading.Event().wait(LIMIT_S / 2)
        assert works(pair)
        assert not watchdog.fired


def test_shut_ends_the_conversation_at_once_and_may_be_repeated(
    watchdog: Watchdog, pair: tuple[socket.socket, socket.socket]
) -> None:
    watchdog.watch(pair[0].fileno())
    watchdog.shut()
    watchdog.shut()
    assert watchdog.fired
    assert pair[1].recv(1) == b""


def test_a_socket_that_is_down_already_is_no_error(
    watchdog: Watchdog, pair: tuple[socket.socket, socket.socket]
) -> None:
    with socket.socket() as never_connected:
        watchdog.watch(never_connected.fileno())
        watchdog.shut()
        assert watchdog.fired


def test_descriptor_closed_and_given_to_another_is_not_touched(
    watchdog: Watchdog, pair: tuple[socket.socket, socket.socket]
) -> None:
    first, peer = socket.socketpair()
    number = first.fileno()
    watchdog.watch(number)
    first.close()
    os.dup2(pair[0].fileno(), number)
    try:
        watchdog.shut()
        assert works(pair)
        peer.settimeout(LONG)
        assert peer.recv(1) == b""
    finally:
        os.close(number)
        peer.close()


def test_watchdog_guards_the_newest_connection_only(
    watchdog: Watchdog, pair: tuple[socket.socket, socket.socket]
) -> None:
    one, other = socket.socketpair()
    with one, other:
        watchdog.watch(one.fileno())
        watchdog.watch(pair[0].fileno())
        watchdog.shut()
        assert works((one, other))
        assert not works(pair)


def test_each_block_is_judged_for_itself(watchdog: Watchdog, pair: tuple[socket.socket, socket.socket]) -> None:
    watchdog.watch(pair[0].fileno())
    with watchdog.guard():
        watchdog.shut()
    assert watchdog.fired
    with watchdog.guard():
        assert not watchdog.fired


def test_block_shut_before_it_had_a_socket_does_not_get_one(
    watchdog: Watchdog, pair: tuple[socket.socket, socket.socket]
) -> None:
    with watchdog.guard():
        watchdog.shut()
        watchdog.watch(pair[0].fileno())
        assert not works(pair)


def test_socket_shut_in_an_earlier_block_does_not_spoil_the_next(
    watchdog: Watchdog, pair: tuple[socket.socket, socket.socket]
) -> None:
    with watchdog.guard():
        watchdog.shut()
    watchdog.watch(pair[0].fileno())
    assert works(pair)


def test_a_forgotten_socket_is_closed_with_its_owners_descriptor(
    watchdog: Watchdog, pair: tuple[socket.socket, socket.socket]
) -> None:
    watchdog.forget()
    watchdog.watch(pair[0].fileno())
    watchdog.forget()
    pair[0].close()
    assert pair[1].recv(1) == b""
    watchdog.shut()


def test_after_closing_it_can_be_used_again(
    watchdog: Watchdog, clock: Time, pair: tuple[socket.socket, socket.socket]
) -> None:
    watchdog.close()
    watchdog.watch(pair[0].fileno())
    watchdog.close()
    watchdog.close()
    watchdog.shut()
    assert works(pair)
    watchdog.watch(pair[0].fileno())
    with watchdog.guard():
        clock.now = 1.0
        assert pair[0].recv(1) == b""


def test_closed_watchdog_keeps_no_descriptor(clock: Time, pair: tuple[socket.socket, socket.socket]) -> None:
    watchdog = Watchdog(LIMIT_S, clock)
    for _ in range(5):
        watchdog.watch(pair[0].fileno())
    assert descriptors(pair[0]) == 2
    watchdog.close()
    assert descriptors(pair[0]) == 1


def test_watchdog_without_a_thread_gets_one_later(
    watchdog: Watchdog, clock: Time, pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            watchdog.watch(pair[0].fileno())
        # The relay closes it when it stops.
        watchdog.close()
        with pytest.raises(RuntimeError, match="can't start new thread"):
            watchdog.watch(pair[0].fileno())
    watchdog.watch(pair[0].fileno())
    with watchdog.guard():
        clock.now = LIMIT_S * 1.01
        assert pair[0].recv(1) == b""


def test_watchdog_may_be_closed_from_its_own_thread(clock: Time, pair: tuple[socket.socket, socket.socket]) -> None:
    done = threading.Event()

    class Closing(Watchdog):
        def shut(self) -> None:
            super().shut()
            self.close()
            done.set()

    watchdog = Closing(LIMIT_S, clock)
    watchdog.watch(pair[0].fileno())
    with watchdog.guard():
        clock.now = 1.0
        assert done.wait(LONG)


@pytest.mark.slow
def test_limit_of_a_statement_starts_after_connecting(
    watchdog: Watchdog, clock: Time, pair: tuple[socket.socket, socket.socket]
) -> None:
    watchdog.watch(pair[0].fileno())
    watchdog.forget()
    # Its thread looks a few times, and finds nothing to do.
    threading.Event().wait(LIMIT_S)
    with watchdog.guard():
        clock.now = 10 * LIMIT_S
        threading.Event().wait(LIMIT_S)
        assert not watchdog.fired
        watchdog.watch(pair[0].fileno())
        threading.Event().wait(LIMIT_S)
        assert works(pair)
        clock.now += LIMIT_S * 1.01
        assert pair[0].recv(1) == b""
    assert watchdog.fired


def test_watchdog_has_not_fired_before_a_block_or_after_reconnecting(
    watchdog: Watchdog, pair: tuple[socket.socket, socket.socket]
) -> None:
    assert not watchdog.fired
    watchdog.shut()
    watchdog.watch(pair[0].fileno())
    assert not watchdog.fired


def test_watchdog_thread_has_a_name_and_ends_with_the_process(
    watchdog: Watchdog, pair: tuple[socket.socket, socket.socket]
) -> None:
    before = set(threading.enumerate())
    watchdog.watch(pair[0].fileno())
    (thread,) = set(threading.enumerate()) - before
    assert thread.name == "outbox-watchdog"
    assert thread.daemon


@pytest.mark.parametrize("poll", ["there", "patched away"])
def test_unread_bytes_and_an_end_are_noticed(monkeypatch: pytest.MonkeyPatch, poll: str) -> None:
    """Eventlet takes `select.poll` away from its host: no entry was delivered any more."""
    if poll != "there":
        monkeypatch.delattr(select, "poll")
    here, there = socket.socketpair()
    with here:
        with there:
            assert not has_unread(here.fileno())
            there.send(b"x")
            assert has_unread(here.fileno())
            here.recv(1)
            assert not has_unread(here.fileno())
        assert has_unread(here.fileno())


def test_number_that_select_cannot_take_has_nothing_unread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "poll")
    assert not has_unread(100_000)
