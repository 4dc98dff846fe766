"""Relay: drives the deliveries of one outbox, in a thread of its own or in the thread that calls `drain`."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from ..box import Outbox
from ..errors import ConfigError, OutboxError, StoreClosed, StoreLocked
from ..log import Log
from ..store.environment import as_unavailable
from ..store.locks import Role, RoleLock
from ..store.writer import refuse_at_the_end
from ..target import Target
from ..worker import Wake, waited_for
from .delivery import HURRY_S, Delivery, Step
from .reconcile_orders import ReconcileOrder, Reconciliation

_log = Log("outbox.relay")


class Relay:
    """Drains one outbox into one target.  One relay per store: the second gets `StoreLocked`.

    Either `start` and `stop` a thread, or call `drain`, or drive `step` yourself; all public methods are thread-safe,
    except that `step` must not run beside the thread.
    """

    def __init__(self, box: Outbox, target: Target) -> None:
        """`box` may be opened or attached.  Settings come from `box.config`, time and randomness from `box.clock`.

        Raises `ConfigError` for a target that is none.
        """
        if not hasattr(target, "operations"):
            # Without its value, which may be a URL with a password.
            raise ConfigError(
                f"a relay needs a target, and got a {type(target).__name__}",
                hint="Relay(box, PostgresTarget(url, operations))",
            )
        # Of a target that has settings, as PostgreSQL's.
        configure = getattr(target, "configure", None)
        if configure is not None:
            configure(box.config)
        self._box, self._target, self._clock = box, target, box.clock
        self._delivery = Delivery(box, target)
        self._role: RoleLock | None = None
        self._last = Step()
        self._thread: threading.Thread | None = None
        self._stop = threading.Event()
        # Counts the calls of `stop`: a drain that has not cleared the event yet must not miss one.
        self._stops = 0
        self._wake = Wake()
        # A signal handler may stop a relay whose start or stop it has interrupted.
        self._lifecycle = threading.RLock()
        # Reentrant: a signal handler may come while it is held.
        self._told = threading.RLock()
        self._moved = threading.Condition(self._told)
        # Held while `step` is driven: by the relay's thread, or by a thread in `drain`.
        self._driving = threading.Lock()
        self._driver: int | None = None
        for operation in target.operations.values():
            # Handlers that raise alarms of their own.
            keep_alarms_in = getattr(operation.handler, "keep_alarms_in", None)
            if keep_alarms_in is not None:
                keep_alarms_in(box.alarms)

    def start(self) -> None:
        """Take the relay's role and start the thread.  Raises `StoreLocked`; a second call does nothing.

        Raises `RuntimeError` where no thread can be started, `StoreClosed` after a fork.
        """
        self._box.store.check_open()
        with self._lifecycle:
            stops = self._stops
            if self.running and self._stop.is_set():
                raise StoreLocked("the relay's thread has not ended yet", hint="call stop until it returns True")
            if self.running:
                return
            self._take_role()
            self._stop.clear()
            if self._stops != stops:  # a signal handler has stopped it meanwhile
                self._leave_role()
                return
            # A first batch that hangs must be visible to other processes, so the relay reports before it.
            said = self._delivery.publication
            said.died, said.moved_at = None, self._clock.monotonic()
            self._delivery.publish(said.moved_at, force=True)
            self._thread = thread = threading.Thread(target=self._run, name="outbox-relay", daemon=True)
            self._listen_no_more()  # after a thread that died
            self._box.on_enqueue(self._wake.set)
            self._box.progress.on_asked(self._asked)
            # Before the thread starts, so that its own report comes later.
            self._box.progress.report(delivering=True)
            try:
                thread.start()
            except RuntimeError:  # there is no room for another thread
                self._thread = None
                self._listen_no_more()
                self._box.progress.report(delivering=None)
                self._leave_role()
                raise

    def stop(self, timeout: float = 10.0) -> bool:
        """Stop the thread and let go of the role and the connection; may be called twice.

        A batch in flight gets half of `timeout` seconds, then its connection is shut: nothing is lost, since
        receipts settle it at the next start.  A `drain` of another thread is stopped too.  Returns whether both have
        ended; in a signal handler that has interrupted `drain` it is False, and that call ends next.  In a forked child
        it does nothing: the thread, the role and the connection are its parent's.
        """
        if self._box.store.forked:
            return True
        if sys.is_finalizing():
            timeout = 0.0  # the thread was stopped for good
        with self._lifecycle:
            thread = self._thread
            self._stops += 1
            self._stop.set()
            self._wake.set()
            if thread is not None:
                self._listen_no_more()
            # One without an ident belongs to a `start` that this call interrupts, and ends at once.
            if thread is not None and thread.ident is not None:
                thread.join(timeout / 2)
                if thread.is_alive():
                    self._target.interrupt()
                    thread.join(timeout / 2)
                if thread.is_alive():
                    return False
            self._thread = None
            if self._driver == threading.get_ident():
                return False  # a signal handler that has interrupted a drain, which ends when the handler does
            # Another thread may be draining.
            for last in (False, True):
                with self._alone(timeout / 2) as alone:
                    if alone:
                        self._delivery.pay()
                        self._target.close()
                        self._leave_role()
                        return True
                if not last:
                    self._target.interrupt()
            return False

    def _asked(self) -> None:
        """Ask PostgreSQL soon whether it answers, for a caller that waits."""
        self._delivery.idle.want()
        self._wake.set()

    def _listen_no_more(self) -> None:
        self._box.off_enqueue(self._wake.set)
        self._box.progress.off_asked(self._asked)

    @property
    def running(self) -> bool:
        """Whether the thread is alive."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def died(self) -> str | None:
        """Why the thread died, or None."""
        return self._delivery.publication.died

    def step(self, now: float) -> float:
        """Move one batch.  `now` is monotonic seconds; returns the seconds until the next step is due, 0 for at once.

        Takes the relay's role at the first call.  Raises `StoreLocked`, or what reading the store raises.
        """
        self._take_role()
        self._last = self._delivery.step(now)
        self._tell()
        return self._last.wait_s

    def __enter__(self) -> Relay:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()

    def drain(self, timeout: float = 30.0) -> bool:
        """Relay until nothing that was acknowledged before the call can be delivered any more.

        True when that is so (dead letters and what they hold back may remain: see the status), False after `timeout`
        seconds, while deliveries are paused, or when the relay's thread died.  Uses the running thread, or the calling
        one.  False at once where a handler calls it, or a signal handler that has interrupted a drain: deliveries go
        on only after it.  Raises `DurabilityError` at the end of the interpreter.
        """
        refuse_at_the_end()
        if self._driver == threading.get_ident() or self._thread is threading.current_thread():
            return False
        stops = self._stops
        goal = self._box.store.figures().counters.next_seq - 1
        deadline = self._clock.monotonic() + timeout
        with self._hurrying() as question:
            if self.running:
                return self._await(goal, question, deadline)
            with self._alone(timeout) as alone:
                return alone and self._drain_alone(goal, question, deadline, stops)

    @contextmanager
    def _alone(self, timeout: float) -> Iterator[bool]:
        """Drive the relay alone within the block; yields whether that was possible within `timeout` seconds."""
        alone = self._driving.acquire(timeout=max(0.0, timeout))
        try:
            if alone:
                self._driver = threading.get_ident()
            yield alone
        finally:
            if alone:
                self._driver = None
                self._driving.release()

    def _drain_alone(self, goal: int, question: int, deadline: float, stops: int) -> bool:
        owned = self._role is not None
        self._stop.clear()
        if self._stops != stops:
            return False
        try:
            with self._delivery.beside_a_thread(), waited_for():
                return self._drain_here(goal, question, deadline)
        finally:
            if self._box.progress.delivering:
                # No relay delivers from now on, so callers must not wait.
                self._box.progress.report(delivering=None)
            if not owned:
                self._delivery.publish(self._clock.monotonic(), force=True)
                self._target.close()
                self._leave_role()

    def reconcile(self, *, everything: bool = False, accept: str | None = None) -> Reconciliation:
        """Put entries that PostgreSQL lost back into `pending`; deliver them with `drain` or `start`.

        `everything` compares the whole ledger, also where no loss is known.  With `accept`, a reason,
        nothing is put back and PostgreSQL stays as it is.  Raises `StoreLocked` while a relay is at work,
        `OutboxError` while deliveries are paused, `TargetUnavailable`, `TargetMisconfigured` or `DurabilityError`.
        """
        if (pause := self._box.pauses.current()) is not None:
            # Also without a delivery it would write into PostgreSQL.
            raise OutboxError(f"nothing was put back: {pause.sentence()}")
        with self._lifecycle, self._alone(0.0) as alone:
            # A thread that has just been started may not drive yet.
            if self.running or not alone:
                raise StoreLocked("the relay's thread runs, or another call drains", hint="stop it first")
            owned = self._role is not None
            self._take_role()
            try:
                done = self._delivery.reconcile(ReconcileOrder(everything=everything, accept=accept))
                return done or Reconciliation(needed=False)
            finally:
                if not owned:
                    self._target.close()
                    self._leave_role()

    def _drain_here(self, goal: int, question: int, deadline: float) -> bool:
        while True:
            now = self._clock.monotonic()
            wait = self.step(now)
            if self._has_drained(goal, question):
                return True
            now = self._clock.monotonic()
            if self._last.paused:
                return self._is_settled(goal)
            if now >= deadline or self._stop.is_set():
                return False
            self._stop.wait(min(wait, deadline - now))

    def _await(self, goal: int, question: int, deadline: float) -> bool:
        self._wake.set()
        with self._told:
            while self.running:
                if self._has_drained(goal, question):
                    return True
                if self._box.pauses.current() is not None:
                    return self._is_settled(goal)
                left = deadline - self._clock.monotonic()
                if left <= 0:
                    return False
                self._moved.wait(min(left, HURRY_S))
        return False

    def _has_drained(self, goal: int, question: int) -> bool:
        last = self._last
        return last.caught_up and last.answered >= question and last.seen_seq >= goal

    def _is_settled(self, goal: int) -> bool:
        return self._box.store.watermark() >= goal

    @contextmanager
    def _hurrying(self) -> Iterator[int]:
        """Within the block a caller waits, and PostgreSQL is asked whether it has everything: see `IdleChecks.want`."""
        self._delivery.awaited += 1
        self._delivery.try_soon(self._clock.monotonic())
        try:
            yield self._delivery.idle.want()
        finally:
            self._delivery.awaited -= 1

    def _run(self) -> None:
        with self._driving:
            self._drive()

    def _drive(self) -> None:
        closed = False
        try:
            with self._delivery.beside_a_thread(), waited_for():
                self._deliver()
        except BaseException as exc:  # noqa: BLE001 - a thread has no caller: its death is logged and shown in the status
            # No death, which would need an operator: the program has ended in the other order, perhaps by an exception.
            closed = isinstance(exc, StoreClosed) and self._is_box_closed()
            if closed:
                _log.warning("the outbox was closed before its relay was stopped: what is pending waits for the next")
            else:
                self._delivery.publication.died = f"{type(exc).__name__}: {exc}"
                _log.critical(
                    "relay thread died, restart the engine or its relay: %(error)s", error=self.died, trace=True
                )
        finally:
            try:
                self._delivery.publish(self._clock.monotonic(), force=True)
            finally:
                # Whatever the report meets: callers must not wait for this thread.
                if closed or self.died is not None:
                    self._leave_role()
                self._box.progress.report(delivering=None)
                with self._told:
                    self._moved.notify_all()

    def _is_box_closed(self) -> bool:
        """A target may meet another outbox that is closed."""
        try:
            self._box.store.check_open()
        except StoreClosed:
            return True
        return False

    def _deliver(self) -> None:
        while not self._stop.is_set():
            self._wake.clear()
            wait = self.step(self._clock.monotonic())
            if wait <= 0:
                continue
            # During an outage new work is no reason to try earlier; a caller that waits in `drain` is.
            outage = self._last.paused or not (self._last.link.works or self._delivery.awaited)
            (self._stop if outage else self._wake).wait(min(wait, HURRY_S) if outage else wait)

    def _tell(self) -> None:
        """Wake the callers that wait in this process."""
        works = self._last.link.works if self.running or self._delivery.awaited else None
        last = self._last
        self._box.progress.report(delivering=works, caught_up=last.caught_up, unreachable=last.link.unreachable)
        with self._told:
            self._moved.notify_all()

    def _take_role(self) -> None:
        refuse_at_the_end()
        if self._role is None:
            with as_unavailable(self._box.path):
                role = RoleLock(self._box.path, Role.RELAY)
                try:
                    self._delivery.take_up()
                except BaseException:
                    role.release(clean=True)
                    raise
            self._role = role

    def _leave_role(self) -> None:
        if self._role is not None:
            self._delivery.leave()
            self._role.release(clean=True)
            self._role = None
