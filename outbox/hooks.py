"""Hooks: functions of the program that are called when something happens to its outbox.

Each hook has a thread of its own.  The writer of the store only puts an event into a queue, so a hook can neither hold
up a commit nor a delivery, may call anything of the outbox, and harms nothing when it raises.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from queue import SimpleQueue
from typing import Generic, TypeVar

from .clock import Clock
from .entry import Entry, EntryStatus
from .errors import OutboxError, StoreClosed, StoreUnavailable
from .handlers import check_callable
from .log import Log
from .monitoring.status import OutboxStatus
from .store.envelope import Record
from .store.ledger import Moved

Event = TypeVar("Event")

_log = Log("outbox.hooks")

# So many bytes of events may wait for one hook.
_MOST_BYTES = 32 << 20
# What a record takes beside its arguments.
_RECORD_BYTES = 1000
# Seconds between two looks for a change of state.
_LOOK_S = 1.0
# Seconds for which closing waits for hooks at work.
_CLOSE_S = 5.0


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """Functions that are called when something happens; None where nothing is to be called.

    Each is called in a thread of its own, one call after the other.  It may block, raise, and call anything of the
    outbox.  At most 32 MiB of events wait for one hook; later ones are dropped and counted in the log.  Raises
    `ConfigError` for what cannot be called with one argument, and for a coroutine or generator function.
    """

    # The halt latch of this process was set, with the reason.
    on_halt: Callable[[str], object] | None = None
    # A relay of this process has made an entry a dead letter; not where a waiting caller gets the refusal as an error.
    on_dead_letter: Callable[[Entry], object] | None = None
    # A relay of this process has delivered an entry, and the store has recorded that.
    on_delivered: Callable[[Entry], object] | None = None
    # The state of the outbox, once at the beginning and after each change, also of other processes.
    on_state: Callable[[OutboxStatus], object] | None = None

    def __post_init__(self) -> None:
        for name in ("on_halt", "on_dead_letter", "on_delivered", "on_state"):
            hook = getattr(self, name)
            if hook is not None:
                check_callable("hooks", name, hook, 1)


class HookCalls:
    """The threads of the hooks that were given.  Its methods never block and never raise."""

    def __init__(
        self, hooks: Hooks, look: Callable[[], OutboxStatus], clock: Clock, is_claimed: Callable[[Record], bool]
    ) -> None:
        """`look` takes the status; `is_claimed(record)`: whether a caller answers this dead letter.

        Raises `StoreUnavailable` where a thread cannot be started.
        """
        self._clock, self._is_claimed = clock, is_claimed
        self._on_halt = _thread("on_halt", hooks.on_halt)
        self._on_dead_letter = _thread("on_dead_letter", hooks.on_dead_letter)
        self._on_delivered = _thread("on_delivered", hooks.on_delivered)
        self._state_watch = None if hooks.on_state is None else StateWatch(look, hooks.on_state)
        queues = [one for one in (self._on_halt, self._on_dead_letter, self._on_delivered) if one is not None]
        self._threads: list[HookThread[str] | HookThread[Entry] | StateWatch] = [*queues]
        if self._state_watch is not None:
            self._threads.append(self._state_watch)
        try:
            for thread in self._threads:
                thread.start()
        except RuntimeError as exc:
            with self.ending():
                raise StoreUnavailable(
                    f"the thread of a hook cannot be started: {exc}", hint="allow more threads"
                ) from exc

    @property
    def wants_settled(self) -> bool:
        """Whether any hook is called for deliveries."""
        return self._on_delivered is not None or self._on_dead_letter is not None

    def halted(self, reason: str) -> None:
        """The halt latch was set; from any thread."""
        if self._on_halt is not None:
            self._on_halt.hand_over([partial(str, reason)], 0)

    def settled(self, moved: Moved) -> None:
        """Entries have left `pending`, and that was committed; from the writer's thread."""
        if self._on_delivered is not None and moved.completed:
            records = [record for _, record, _ in moved.completed]
            delivered = [partial(_delivered, record, result, moved.at_us) for _, record, result in moved.completed]
            self._on_delivered.hand_over(delivered, _weight(records))
        if self._on_dead_letter is not None and moved.dead:
            records = [record for record in moved.dead if not self._is_claimed(record)]
            dead = [partial(record.entry, strict=False) for record in records]
            self._on_dead_letter.hand_over(dead, _weight(records))

    @contextmanager
    def ending(self) -> Iterator[None]:
        """Let hooks end before the block, and those of what it does behind it; both for at most 5 seconds in all."""
        deadline = self._clock.monotonic() + _CLOSE_S
        for thread in self._threads:
            thread.finish(max(0.0, deadline - self._clock.monotonic()))
        try:
            yield
        finally:
            for thread in self._threads:
                thread.stop(max(0.0, deadline - self._clock.monotonic()))


class HookThread(Generic[Event]):
    """The thread of one hook, and the events that wait for it."""

    def __init__(self, name: str, hook: Callable[[Event], object]) -> None:
        self._name, self._hook = name, hook
        self._queue: SimpleQueue[tuple[Sequence[Callable[[], Event]], int] | threading.Event | None] = SimpleQueue()
        # Bytes handed over and dealt with: each number is changed by one thread only, so no lock is needed.
        self._given = self._done = 0
        self._dropped = 0
        self._thread = threading.Thread(target=self._run, name=f"outbox-{name.replace('_', '-')}", daemon=True)

    def start(self) -> None:
        """Raises `RuntimeError` where no thread can be started."""
        self._thread.start()

    def hand_over(self, events: Sequence[Callable[[], Event]], size: int) -> None:
        """Let the hook be called with each of `events`, which take `size` bytes; one thread at a time may call this."""
        if self._given - self._done + size > _MOST_BYTES and self._given > self._done:
            if not self._dropped:
                _log.error("hook %(hook)s is too slow, and events for it are dropped", hook=self._name)
            self._dropped += len(events)
            return
        if self._dropped:
            _log.error(
                "hook %(hook)s keeps up again; dropped events: %(events)s", hook=self._name, events=self._dropped
            )
            self._dropped = 0
        self._given += size
        self._queue.put((events, size))

    def finish(self, timeout: float) -> None:
        """Wait until the hook was called for all that was handed over, for at most `timeout` seconds."""
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            reached = threading.Event()
            self._queue.put(reached)
            reached.wait(timeout)

    def stop(self, timeout: float) -> None:
        """End the thread behind what was handed over; waits at most `timeout` seconds."""
        self._queue.put(None)
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def _run(self) -> None:
        while (found := self._queue.get()) is not None:
            if isinstance(found, threading.Event):
                found.set()
                continue
            events, size = found
            for event in events:
                _call(self._name, self._hook, event)
            self._done += size


class StateWatch:
    """Looks at the status every second, and calls a hook where the state has changed."""

    def __init__(self, look: Callable[[], OutboxStatus], hook: Callable[[OutboxStatus], object]) -> None:
        self._look, self._hook = look, hook
        self._last: object = None
        self._failed: str | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="outbox-on-state", daemon=True)

    def start(self) -> None:
        """Raises `RuntimeError` where no thread can be started."""
        self._thread.start()

    def look(self) -> None:
        """Look once.  Raises `StoreClosed`."""
        try:
            status = self._look()
        except StoreClosed:
            raise
        except (OutboxError, OSError) as exc:
            if str(exc) != self._failed:
                self._failed = str(exc)
                _log.warning("the status for hook on_state cannot be read: %(error)s", error=exc)
            return
        self._failed = None
        state = _state(status)
        if state != self._last:
            self._last = state
            _call("on_state", self._hook, lambda: status)

    def finish(self, timeout: float) -> None:
        """Look no more; waits at most `timeout` seconds for the hook at work."""
        self._stop.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout)

    def stop(self, timeout: float) -> None:
        """See `finish`."""
        self.finish(timeout)

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                self.look()
                self._stop.wait(_LOOK_S)
        except StoreClosed:
            return  # in the middle of a look


def _state(status: OutboxStatus) -> object:
    """What must change before `on_state` is called: no figures, and no breaker that opens and half opens."""
    relay = status.relay
    return (
        status.health,
        status.halted,
        relay.alive,
        relay.stopped,
        relay.stuck,
        relay.died is not None,
        relay.breaker in ("open", "half-open"),
        frozenset([*relay.parked, *relay.parked_best_effort]),
        frozenset(status.alarms),
    )


def _call(name: str, hook: Callable[[Event], object], event: Callable[[], Event]) -> None:
    try:
        hook(event())
    except BaseException as exc:  # noqa: BLE001 - a hook harms nothing, whatever it raises, and has no caller
        _log.error("hook %(hook)s failed: %(error)s", hook=name, error=f"{type(exc).__name__}: {exc}", trace=True)


def _thread(name: str, hook: Callable[[Event], object] | None) -> HookThread[Event] | None:
    return None if hook is None else HookThread(name, hook)


def _delivered(record: Record, result: bytes, at_us: int) -> Entry:
    return record.settled(EntryStatus.COMPLETED, at_us, result=result).entry(strict=False)


def _weight(records: Sequence[Record]) -> int:
    return sum([len(record.args) + len(record.types) + _RECORD_BYTES for record in records])
