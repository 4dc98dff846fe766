"""The real clock, from which everything else is told the time."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from uuid import RFC_4122

from outbox.clock import SystemClock


def test_the_real_clock_gives_stamps_in_utc_and_never_goes_back() -> None:
    clock = SystemClock()
    before = datetime.now(UTC)
    stamp = clock.now()
    assert stamp.tzinfo is UTC
    assert before <= stamp <= datetime.now(UTC)
    assert clock.monotonic() <= clock.monotonic()
    assert 0 <= clock.random() < 1
    assert clock.new_id() != clock.new_id()


def test_ids_are_random_uuids_that_no_two_threads_share() -> None:
    clock = SystemClock()
    with ThreadPoolExecutor(8) as pool:
        drawn = [made for ids in pool.map(lambda _: [clock.new_id() for _ in range(500)], range(8)) for made in ids]
    assert len({*drawn}) == 4000
    assert {(made.version, made.variant) for made in drawn} == {(4, RFC_4122)}


def test_a_forked_process_draws_ids_of_its_own() -> None:
    clock = SystemClock()
    clock.new_id()  # there are more in stock now
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(writing, b"".join(clock.new_id().bytes for _ in range(100)))
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        theirs = pipe.read()
    assert os.waitpid(child, 0)[1] == 0
    assert len(theirs) == 1600
    ours = {clock.new_id().bytes for _ in range(100)}
    assert not ours & {theirs[at : at + 16] for at in range(0, 1600, 16)}
