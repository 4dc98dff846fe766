"""A drill: victims that are killed or hurt on one store, one after the other, and what is there in the end."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing import forkserver
from pathlib import Path
from typing import Any
from unittest.mock import patch

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.operation import caller_key, idempotency_hash
from outbox.rescue import verify
from tests.unit.fakes.audit import OPERATIONS, SCHEMA, query
from tests.unit.fakes.waiting import LONG

from . import evidence, victim
from .invariants import Call, Observation, Reopened, Told, check
from .syscalls import Decision, Interceptor, Step

_PROCESSES = multiprocessing.get_context("forkserver")
# Each victim is forked from a process that has loaded everything: a kill costs milliseconds.
_PROCESSES.set_forkserver_preload(["tests.faults.victim"])


def _start_server() -> None:
    """Start that process, unless it runs.  Unmeasured: who is killed cannot report what it covered."""
    with patch.dict(os.environ):
        for name in [name for name in os.environ if name.startswith("COV")]:
            del os.environ[name]
        forkserver.ensure_running()


_CONFIG = OutboxConfig(backoff_base=0.01, backoff_cap=0.1)

Steps = list[tuple[Any, ...]]


@dataclass
class Report:
    """What one victim said, and how it ended."""

    exit_code: int
    events: list[tuple[Any, ...]]
    interceptor: Interceptor

    @property
    def killed(self) -> bool:
        return self.exit_code == -signal.SIGKILL

    def of(self, kind: str) -> list[tuple[Any, ...]]:
        """Its reports of one kind."""
        return [event[1:] for event in self.events if event[0] == kind]


@dataclass
class Drill:
    """One store and one database.  `run` victims, then `finish`."""

    directory: Path
    url: str
    settings: dict[str, Any] = field(default_factory=dict)
    # Added to every number, so that drills can share a database.
    offset: int = 0
    history: list[Call | Reopened] = field(default_factory=list)
    _groups: int = 0

    def create(self) -> Drill:
        """Make the table that the trades go to; once for each database."""
        query(self.url, SCHEMA)
        return self

    def start(self, steps: Steps, decide: Callable[[Step], Decision] = lambda step: None) -> Running:
        """Start a victim that runs beside the test."""
        return Running(self, steps, decide)

    def run(self, steps: Steps, decide: Callable[[Step], Decision] = lambda step: None) -> Report:
        """Run a victim to its end, whatever that is, and note what it was told."""
        return self.start(steps, decide).join()

    def note(self, events: list[tuple[Any, ...]]) -> None:
        """Take a victim's reports into the history."""
        open_call: tuple[int, int] | None = None
        for kind, *rest in events:
            if kind == "opened":
                self.history.append(Reopened(verified=rest[0]))
            elif kind == "calling":
                open_call = rest[0], rest[1]
            elif kind in ("acknowledged", "in doubt", "refused"):
                first, count, answer = rest
                seqs = answer if kind == "acknowledged" else [None] * count
                self._tell(first, count, Told(kind), seqs, halted=kind == "in doubt")
                open_call = None
        if open_call is not None:
            # It died before it was told anything.
            self._tell(*open_call, Told.IN_DOUBT, [None] * open_call[1], halted=False)

    def _tell(self, first: int, count: int, told: Told, seqs: list[int | None], *, halted: bool) -> None:
        self._groups += 1
        for number, seq in zip(range(first, first + count), seqs, strict=True):
            call = Call(
                key=number,
                told=told,
                seq=seq,
                order_by=f"account-{number % 3}",
                group=self._groups if count > 1 else None,
                halted=halted,
            )
            self.history.append(call)

    def in_doubt(self) -> set[Any]:
        """The numbers of calls of which nobody knows whether they are stored."""
        calls = [event for event in self.history if isinstance(event, Call)]
        sure = {call.key for call in calls if call.told is Told.ACKNOWLEDGED}
        return {call.key for call in calls if call.told is Told.IN_DOUBT} - sure

    def finish(self) -> None:
        """No faults any more: reopen, deliver, check; then repeat what is in doubt, deliver, and check again."""
        verified: list[Path] = []

        def check_in_a_fork(directory: Path) -> None:
            # The same verification, also in a process that may die, but without starting an interpreter for it.
            process = _PROCESSES.Process(target=victim.verify_store, args=(str(directory),))
            process.start()
            process.join(LONG)
            assert process.exitcode == 0, f"verifying {directory} ended with {process.exitcode}"
            verified.append(directory)

        real, verify.check = verify.check, check_in_a_fork
        try:
            box = Outbox.open(self.directory, replace(_CONFIG, **self.settings), OPERATIONS)
        finally:
            verify.check = real
        with box:
            self.history.append(Reopened(verified=bool(verified)))
            relay = Relay(box, PostgresTarget(self.url, OPERATIONS, config=_CONFIG))
            self.deliver_and_check(box, relay)
            for number in sorted(self.in_doubt()):
                args = {"number": number, "account": f"account-{number % 3}"}
                entry = box.enqueue("trade", args, key=f"trade-{number}")
                self._tell(number, 1, Told.ACKNOWLEDGED, [entry.seq], halted=False)
            self.deliver_and_check(box, relay)
            relay.stop()

    def deliver_and_check(self, box: Outbox, relay: Relay) -> None:
        """Deliver everything; every invariant holds, and the status is content."""
        assert relay.drain(LONG), f"not drained: {box.status().relay}"
        problems = check(self.observe(box, calm=True))
        assert problems == [], problems

    def observe(self, box: Outbox, **more: Any) -> Observation:
        """All that is known now."""
        return self.judge(evidence.contents(box), evidence.counters(box), box.status().as_dict(), **more)

    def judge(self, stored: Any, counters: dict[str, int], status: dict[str, Any], **more: Any) -> Observation:
        """The same, from what a process said that has the store open."""
        calls = [event for event in self.history if isinstance(event, Call)]
        numbers = {call.key for call in calls} | {entry.key for entry in stored}
        seqs = {call.key: call.seq for call in calls} | {entry.key: entry.seq for entry in stored}
        intents = {self._hash(status["store_id"], number): (number, seqs[number]) for number in numbers}
        return Observation(
            **{
                "history": self.history,
                "stored": stored,
                "effects": [effect for effect in evidence.effects(self.url) if effect.key in numbers],
                "receipts": evidence.receipts(self.url, status["store_id"], intents),
                "counters": counters,
                "unledgered": status["unledgered"],
                "findings": [*status["needs_operator"], *status["degraded"]],
                **more,
            }
        )

    @staticmethod
    def _hash(namespace: str, number: Any) -> str:
        return idempotency_hash(namespace, "trade", "key", caller_key(f"trade-{number}")).hex()


class Running:
    """A victim at work."""

    def __init__(self, drill: Drill, steps: Steps, decide: Callable[[Step], Decision]) -> None:
        self._drill = drill
        _start_server()
        ours, self._theirs = _PROCESSES.Pipe()
        self.control = ours
        self._heard, say = _PROCESSES.Pipe(duplex=False)
        arguments = (str(drill.directory), drill.url, drill.settings, drill.offset, steps, self._theirs, say)
        self._process = _PROCESSES.Process(target=victim.run, args=arguments)
        self.interceptor = Interceptor(drill.directory.parent, decide)
        self._events: list[tuple[Any, ...]] = []
        self._process.start()
        say.close()
        self._theirs.close()
        if ("surrender",) in steps:
            assert self._process.pid is not None
            with suppress(EOFError):  # it died before
                self.interceptor.attach(self.control, self._process.pid)

    def hear(self, kind: str) -> tuple[Any, ...]:
        """Wait for its next report of this kind."""
        while True:
            self._events.append(self._heard.recv())
            if self._events[-1][0] == kind:
                return self._events[-1][1:]

    def said_so_far(self) -> int:
        """How many reports it has made.  Not beside `hear` or `join`."""
        while self._heard.poll():
            try:
                self._events.append(self._heard.recv())
            except EOFError:
                break
        return len(self._events)

    def wait(self) -> None:
        """Until it has ended, without taking its reports."""
        self._process.join(LONG)

    def kill(self) -> None:
        self._process.kill()

    def join(self) -> Report:
        """Wait for its end, and note what it was told."""
        with suppress(EOFError):
            while True:
                assert self._heard.poll(LONG * 2), f"it hangs after {self._events[-3:]}"
                self._events.append(self._heard.recv())
        self._process.join(LONG)
        self.interceptor.join()
        self.control.close()
        self._heard.close()
        assert self._process.exitcode is not None
        report = Report(self._process.exitcode, self._events, self.interceptor)
        self._drill.note(self._events)
        assert not report.of("broken"), report.of("broken")[0][0]
        assert report.exit_code in (0, -signal.SIGKILL), f"it ended with {report.exit_code} after {self._events[-3:]}"
        return report
