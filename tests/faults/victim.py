"""The program to which the faults happen: enqueues, relays, vacuums, and says what it was told.

It runs in a process of its own, step by step from a list, and reports through a pipe, which outlives it.
"""

from __future__ import annotations

import logging
import os
import resource
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from outbox import DurabilityError, Outbox, OutboxConfig, OutboxError, PostgresTarget, Relay, StoreClosed, StoreFull
from outbox.rescue import soundness, verify
from tests.unit.fakes.audit import OPERATIONS
from tests.unit.fakes.waiting import LONG

from . import evidence, failpoints, small_disk, syscalls

_ACCOUNTS = 3


def run(
    directory: str,
    url: str,
    settings: dict[str, Any],
    offset: int,
    steps: list[tuple[Any, ...]],
    control: Connection,
    say: Connection,
) -> None:
    """Do `steps`; each is the name of a method of `_Program` and its arguments."""
    os.setsid()
    logging.disable()
    program = _Program(Path(directory), url, settings, offset, control, say.send)
    try:
        for name, *args in steps:
            getattr(program, name)(*args)
        program.close()
    except BaseException:  # noqa: BLE001 - the test gets to see it, whatever it is
        say.send(("broken", traceback.format_exc()))
    else:
        say.send(("done",))


def verify_store(directory: str) -> None:
    """End with 0 if the store is sound."""
    found = list(soundness.problems(Path(directory)))
    if found:
        raise SystemExit("; ".join(found))


class _Program:
    def __init__(
        self,
        directory: Path,
        url: str,
        settings: dict[str, Any],
        offset: int,
        control: Connection,
        say: Callable[[Any], None],
    ) -> None:
        self._directory, self._url, self._offset = directory, url, offset
        self._config = OutboxConfig(
            **{"backoff_base": 0.01, "backoff_cap": 0.1, "batch_size": 4, "connect_timeout": LONG, **settings}
        )
        self._control, self._say = control, say
        self._box: Outbox | None = None
        self._verified = 0
        check = verify.check

        def noted(directory: Path) -> None:
            check(directory)
            self._verified += 1

        verify.check = noted

    # -- faults

    def arm(self, name: str, times: int = 1) -> None:
        """Die at a failpoint."""
        failpoints.arm(name, times)

    def surrender(self) -> None:
        """From here on the test decides about every system call that changes a file."""
        syscalls.surrender(self._control)

    def verify_here(self) -> None:
        """Verify without another process: this one may die as well."""
        verify.check = lambda directory: verify_store(str(directory))

    def small_disk(self, size: int) -> None:
        """The directory above the store becomes a file system of so many bytes, for this process only."""
        small_disk.mount(self._directory.parent, size)

    def address_space(self, size: int) -> None:
        """This process may not map more than so many bytes."""
        resource.setrlimit(resource.RLIMIT_AS, (size, resource.RLIM_INFINITY))

    def ballast(self, free: int) -> None:
        """Fill the disk with something else until so many bytes are free."""
        small_disk.fill(self._directory.parent / "ballast", free)

    def limit(self, more: int | None) -> None:
        """No file may become larger than the store's data file is now plus `more` bytes; None lifts the limit."""
        size = resource.RLIM_INFINITY if more is None else (self._directory / "data.mdb").stat().st_size + more
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    # -- work

    def make_folder(self) -> None:
        """The store's directory, empty, as a mount point is."""
        self._directory.mkdir()

    def open(self) -> None:
        """Open as the engine; a failure is reported, and what follows is left out."""
        self._open(Outbox.open)

    def attach(self) -> None:
        """Open as a relay."""
        self._open(Outbox.attach)

    def _open(self, opener: Callable[..., Outbox]) -> None:
        verified = self._verified
        try:
            self._box = opener(self._directory, self._config, OPERATIONS)
        except (OutboxError, OSError) as exc:
            self._say(("could not open", repr(exc)))
        else:
            self._say(("opened", self._verified > verified))

    def close(self) -> None:
        """Close, as far as it is open."""
        if self._box is not None:
            self._box.close()
            self._box = None

    def enqueue(self, first: int, count: int, padding: int = 0) -> None:
        """Enqueue trades, one by one, and go on after a failure."""
        for number in self._numbers(first, count):
            self._one(number, padding)

    def fill(self, first: int, most: int, padding: int) -> None:
        """Enqueue trades until one is not acknowledged."""
        for number in self._numbers(first, most):
            if self._one(number, padding) != "acknowledged":
                return
        raise AssertionError(f"{most} trades were taken")

    def _one(self, number: int, padding: int) -> str:
        if self._box is None:
            return "not open"
        box = self._box
        self._say(("calling", number, 1))
        return self._tell(number, 1, lambda: [self._trade(box, number, padding)])

    def group(self, first: int, count: int) -> None:
        """Enqueue trades as one transaction."""
        if self._box is None:
            return
        box, numbers = self._box, self._numbers(first, count)
        self._say(("calling", numbers[0], count))

        def call() -> list[int]:
            with box.transaction() as transaction:
                for number in numbers:
                    self._trade(transaction, number, 0)
            return [entry.seq for entry in transaction.entries]

        self._tell(numbers[0], count, call)

    def _numbers(self, first: int, count: int) -> range:
        return range(self._offset + first, self._offset + first + count)

    def _trade(self, to: Any, number: int, padding: int) -> int:
        args: dict[str, Any] = {"number": number, "account": f"account-{number % _ACCOUNTS}"}
        if padding:
            args["padding"] = "x" * padding
        entry = to.enqueue("trade", args, key=f"trade-{number}")
        return 0 if entry is None else int(entry.seq)

    def _tell(self, first: int, count: int, call: Callable[[], list[int]]) -> str:
        try:
            seqs = call()
        except (StoreFull, StoreClosed) as exc:
            told, rest = "refused", str(exc)
        except DurabilityError as exc:
            told, rest = "in doubt", str(exc)
        else:
            self._say(("acknowledged", first, count, seqs))
            return "acknowledged"
        self._say((told, first, count, rest))
        return told

    def drain(self, timeout_s: float = LONG) -> None:
        """Relay until nothing is left to deliver, or the time is up."""
        if self._box is None:
            return
        relay = Relay(self._box, PostgresTarget(self._url, OPERATIONS, config=self._config))
        try:
            self._say(("drained", relay.drain(timeout_s)))
        except (OutboxError, OSError) as exc:
            self._say(("could not drain", repr(exc)))

    def drain_in_vain(self) -> None:
        """Relay, and do it again, until the test says so."""
        while True:
            self.drain(0.5)
            if self._control.poll():
                return

    def vacuum(self) -> None:
        """Rewrite the file; a failure is reported."""
        if self._box is None:
            return
        try:
            self._box.compact(timedelta(hours=1), vacuum=True)
        except (OSError, DurabilityError) as exc:
            self._say(("vacuum failed", repr(exc)))
        else:
            self._say(("vacuumed",))

    def status(self) -> None:
        """Report it."""
        assert self._box is not None
        self._say(("status", self._box.status().as_dict()))

    def contents(self) -> None:
        """Report all that the store holds, for a test that cannot look into it."""
        assert self._box is not None
        status = self._box.status().as_dict()
        self._say(("contents", evidence.contents(self._box), evidence.counters(self._box), status))

    def wait(self) -> None:
        """Until the test says so."""
        self._control.recv()
