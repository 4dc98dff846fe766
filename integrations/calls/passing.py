"""Passing: calls that are not queued.  They see the program's own writes, or the local view answers them.

A guard on the manager's engine sees every statement, of any method and thread: it waits until the calls before it are
delivered, and refuses it where they are not.  So nothing that is not declared overtakes what is queued.
A generator or a coroutine of the manager works after the call has returned: each of its steps is watched like the call.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Generator, Iterable, Iterator
from contextlib import (
    AbstractContextManager,
    _AsyncGeneratorContextManager,
    _GeneratorContextManager,
    contextmanager,
    suppress,
)
from functools import partial
from inspect import isasyncgen, iscoroutine, isgenerator
from typing import TYPE_CHECKING, Any, NoReturn

from sqlalchemy.exc import InterfaceError, SQLAlchemyError

from ... import ConfigError, OutboxError
from ...log import Log, Repeated
from ...words import first_line
from ..code.class_code import remembered
from ..manager.away import cannot_answer, is_away, is_unreachable
from ..manager.manager_connection import is_used_up
from ..operations import AFTER_DRAIN
from ..preflight.evidence import Evidence
from ..preflight.ways_around import writes
from ..view.kept_answers import KeptAnswers, WaitingWrites
from ..view.local_view import UnknownLocally
from ..view.reads import Reads
from .asked_reads import BlockReads, ComparedReads, RestingReads, WouldWrite
from .guard import NotCaughtUp, PassingCall
from .stages import EncodedCall

if TYPE_CHECKING:
    from ..adapter import Adapter

_log = Log("outbox.integrations")

# Why a manager whose PostgreSQL answers was not asked, by whether calls are delivered.
_NOT_ASKED = {None: "no relay is running", True: "calls before it are not delivered, see `atb outbox status`"}
Watching = Callable[[], AbstractContextManager[Any]]


class Passing:
    """Calls the manager itself.  As thread-safe as the manager."""

    def __init__(self, adapter: Adapter, reads: Reads, block_reads: BlockReads) -> None:
        self._adapter, self.reads, self._block_reads = adapter, reads, block_reads
        self.kept = KeptAnswers(adapter.outbox, partial(adapter.host.classes.learn, adapter.outbox))
        self._repeated = Repeated(_log)
        clock, progress = adapter.outbox.clock, adapter.outbox.progress
        self._resting = RestingReads(clock.monotonic, lambda: adapter.outage.delivers, lambda: progress.acknowledged)
        writes = adapter.keeper.view.learning.written.seen
        self._compared = ComparedReads(adapter.outbox, adapter.keeper, adapter.delivery, reads)
        self.waiting = WaitingWrites(adapter.host, adapter.outbox, adapter.calls, writes, adapter.keeper.tables_read.of)

    def call(self, stand_in: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Call `name` of the manager, after the program's own writes; answered locally where PostgreSQL cannot.

        It runs with `stand_in` as `self`, so that what it calls is durable, but for reads that are answered locally.
        Raises `NotCaughtUp` where the writes are not delivered in time, and what the manager raises.
        """
        self._adapter.refuse_fork()
        self._adapter.keeper.look_at_code()
        self._adapter.callers_session.catch_up()
        try:
            return self._call(stand_in, name, args, kwargs)
        except (NotCaughtUp, UnknownLocally, SQLAlchemyError) as exc:
            self._adapter.guard.note(exc)
            raise

    def _call(self, stand_in: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        declared = self.reads.declared.get(name)
        if self.reads.local(name) is not None:
            return self._read(name, args, kwargs)
        if declared is not None and declared.keep_last:
            return self._kept_read(stand_in, name, args, kwargs, stale=declared.reads_stale)
        try:
            if name in AFTER_DRAIN and not self._adapter.delivery.wait_until_passed():
                raise self._adapter.guard.not_caught_up(f"{name} works on what PostgreSQL holds")
            return self._ask(stand_in, name, args, kwargs, stale=declared is not None and declared.reads_stale)
        except (NotCaughtUp, SQLAlchemyError) as exc:
            if (isinstance(exc, NotCaughtUp) or is_away(exc)) and self._made_current(name, args, kwargs):
                return None
            raise

    def _read(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A read that the local view answers where the manager cannot, or cannot soon."""
        adapter, failed = self._adapter, None
        clock, began = adapter.outbox.clock, adapter.outbox.clock.monotonic()
        # The manager would wait for a connection for the timeout of its pool, and may swallow the error.
        resting = self._resting.why(name)
        unlikely = is_used_up(adapter.host.built) or resting is not None
        signature = adapter.host.signature(name)
        if not unlikely and adapter.delivery.wait_until_passed(once=True) and adapter.outage.delivers is not False:
            in_block, seq = bool(self._block_reads.calls()), self._compared.begin(name)
            try:
                answer = self._ask(None, name, args, kwargs, is_read=True)
                self._repeated.over(name)
                if seq is not None and not in_block:
                    self._compared.end(name, seq, answer, signature, args, kwargs, adapter.sessions.current)
                return answer
            except (NotCaughtUp, SQLAlchemyError) as exc:
                if adapter.host.is_mocked or not (isinstance(exc, NotCaughtUp) or cannot_answer(exc)):
                    raise
                adapter.callers_session.broken()
                failed, error = exc, first_line(exc)
                self._resting.fails(name, exc, began)
                self._repeated.warn(name, "%(method)s is read from the local view: %(error)s", method=name, error=error)
        with adapter.keeper.kept.order:
            try:
                self._compared.check(name)
                view = self._block_reads.view()
                answer = self.reads.answer(name, signature, args, kwargs, view, adapter.sessions.current, clock.now())
                adapter.guard.answered_otherwise()
                return adapter.callers_session.shown(name, answer)
            except UnknownLocally as unknown:
                if isinstance(failed, SQLAlchemyError) and not is_away(failed):
                    # As the manager does where its tables do not fit.
                    raise failed from unknown
                if failed is not None or is_unreachable(resting) or adapter.outage.delivers is False:
                    self._raise_unknown(unknown, failed)
                unanswered = unknown
        if not unlikely and not adapter.delivery.wait_until_passed():
            self._raise_unknown(unanswered, failed)
        try:
            return self._ask(None, name, args, kwargs, is_read=True)
        except (NotCaughtUp, SQLAlchemyError) as exc:
            if not is_away(exc):
                raise
            self._resting.fails(name, exc, began)
            raise unanswered from exc

    def _raise_unknown(self, unknown: UnknownLocally, failed: Exception | None) -> NoReturn:
        """Raise `unknown`, and why the manager was not asked, unless it has `failed`."""
        why = None if failed is not None else _NOT_ASKED.get(self._adapter.outage.delivers)
        raise unknown if why is None else UnknownLocally(f"{unknown.message}; {why}", hint=unknown.hint) from unknown

    def _wrote(self, name: str, tables: Collection[str]) -> None:
        """A method that is not declared has written, perhaps something that an outage would answer as it was before."""
        for read, declared in self.reads.declared.items():
            if declared.keep_last and self.waiting.may_show(read, tables, name):
                try:
                    self.kept.outdate(read)
                except OutboxError as exc:
                    # The call itself has succeeded.
                    _log.warning("a kept answer of %(read)s could not be taken back: %(error)s", read=read, error=exc)
        local = [read for read in self.reads.names if self.reads.local(read) is not None]
        if self.waiting.show(local, tables, name):
            self._adapter.keeper.overwritten(name)

    def _kept_read(
        self, stand_in: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, stale: bool
    ) -> Any:
        """A read whose last answer is kept.  Raises `UnknownLocally` where a call may have changed it since."""
        seq = self._adapter.delivery.last_seq
        call = self._adapter.host.signature(name).bind(*args, **kwargs).arguments
        began, resting = self._adapter.outbox.clock.monotonic(), self._resting.why(name)
        try:
            if resting is not None:
                raise resting.with_traceback(None)
            answer = self._ask(stand_in, name, args, kwargs, stale=stale, is_read=True)
        except (NotCaughtUp, SQLAlchemyError) as exc:
            if self._adapter.host.is_mocked or not (isinstance(exc, NotCaughtUp) or cannot_answer(exc)):
                raise
            if resting is None:
                self._resting.fails(name, exc, began)
                self._adapter.callers_session.broken()
            here = [(one.operation.name, "this block") for one in self._block_reads.calls()]
            waiting = self.waiting.of(name, here)
            if waiting is not None:
                raise UnknownLocally(
                    f"{name} is not known while {waiting[0]} is not delivered ({waiting[1]}), which may change it",
                    hint="ask again when it is delivered",
                ) from exc
            answer, asked_at = self.kept.last(name, call, exc)
            changed = self.waiting.since(name, asked_at)
            if changed is not None:
                raise UnknownLocally(
                    f"{name} is not known: {changed[0]} (entry {changed[1]}) may have changed it since the last answer",
                    hint="an outage answers as the manager did last: ask once more after such a call",
                ) from exc
            self._adapter.guard.answered_otherwise()
            return answer
        if not self._block_reads.calls():
            # A block may still be left without effect.
            self.kept.keep(name, call, answer, seq, lambda kept: self.waiting.since(name, kept) is not None)
        return answer

    def _ask(
        self,
        stand_in: Any,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        stale: bool = False,
        is_read: bool = False,
    ) -> Any:
        """Ask the manager.

        `is_read`: it is a declared read, which only reads, and has another answer where the manager has none.  So an
        error of PostgreSQL that the manager swallowed is raised instead of the answer.
        """
        adapter = self._adapter
        written = set[str]()
        with self._watching(name, written, stale=stale, is_read=is_read) as watched:
            if is_read and adapter.host.let_go():
                # Unless PostgreSQL answers the manager yet, its answer is made up.
                watched.failures.note(InterfaceError("connect", None, Exception("the manager is not connected")))
            try:
                value = self._answer(stand_in, name, args, kwargs, is_read=is_read)
            except Exception as exc:
                if is_read and watched.failures.first is not None and not cannot_answer(exc):
                    # The manager raised an error of its own for it.
                    raise watched.failures.first from exc
                raise
        if is_read and watched.failures.first is not None:
            raise watched.failures.first
        if watched.used and is_read:
            adapter.keeper.saw(name, watched.used)
        self._adapter.keeper.meet(self._adapter.sessions.current)
        return stepwise(value, partial(self._watching, name, written, stale=stale))

    @contextmanager
    def _watching(
        self, name: str, written: set[str], *, stale: bool = False, is_read: bool = False
    ) -> Iterator[PassingCall]:
        """Watch a call, or a step of it; what it has written is taken back from the answers for an outage.

        `written`: the tables so far, also those of earlier steps: only a later one may have committed them.
        """
        with self._adapter.guard.watching(name, stale=stale, replaceable=is_read) as watched:
            try:
                yield watched
            finally:
                written |= watched.wrote
                if written and not is_read:
                    self._wrote(name, written)

    def _answer(self, stand_in: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, is_read: bool) -> Any:
        """The manager's answer; of a method that only reads with the calls of the caller's block, if it may show them.

        A method that turns out to write all the same goes past the block, as its statements do, and so does one of
        which PostgreSQL fails: it has an error or an answer of its own for that.
        """
        calls, session = self._block_reads.calls(), self._adapter.sessions.current
        if calls and (is_read or self._may_show(name, calls)):
            if not self._adapter.delivery.wait_until_passed(once=is_read):
                raise self._adapter.guard.not_caught_up(f"{name} works on what PostgreSQL holds")
            if is_read:
                return self._block_reads.ask(calls, name, args, kwargs, session)
            with suppress(WouldWrite, SQLAlchemyError, ConfigError):
                return self._block_reads.ask(calls, name, args, kwargs, session, may_write=True)
        return self._adapter.host.bound(name, stand_in)(*args, **kwargs)

    def _may_show(self, name: str, calls: Iterable[EncodedCall]) -> bool:
        """Whether an undeclared method may show what these calls write, and does nothing but read by its code.

        Another one may send an order before it writes, and must not run twice.
        """
        cls = self._adapter.host.manager_class
        may = any(self.waiting.may_change(item.operation.name, name) for item in calls)
        return may and cls is not None and _only_reads(cls, name)

    def attribute(self, name: str, get: Callable[[], Any]) -> Any:
        """The value of a property, which may ask PostgreSQL.  Raises as `call`."""
        if self._adapter.guard.is_watching():
            # The call that reads it is watched already.
            return get()
        self._adapter.refuse_fork()
        self._adapter.callers_session.catch_up()
        try:
            with self._adapter.guard.watching(name):
                return get()
        except (NotCaughtUp, UnknownLocally, SQLAlchemyError) as exc:
            self._adapter.guard.note(exc)
            raise

    def _made_current(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        """`set_current_session` without PostgreSQL: make a known session current."""
        if name != "set_current_session":
            return False
        bound = self._adapter.host.signature(name).bind(*args, **kwargs).arguments
        session_id = next(iter(bound.values()), None)
        known = session_id in self._adapter.keeper.view.sessions
        if known:
            self._adapter.sessions.current = session_id
        return known


@remembered(256)
def _only_reads(cls: type, method: str) -> bool:
    evidence = Evidence(cls)
    return bool(evidence.code.functions(method)) and not writes(method, evidence, but=frozenset())


class Stepwise(Generator[Any, Any, Any]):
    """A generator whose steps run in a context of their own each."""

    def __init__(self, generator: Generator[Any, Any, Any], watching: Watching) -> None:
        self._generator, self._watching = generator, watching

    def send(self, value: Any) -> Any:
        """See `Generator`."""
        with self._watching():
            return self._generator.send(value)

    def throw(self, *exc: Any) -> Any:
        """See `Generator`."""
        with self._watching():
            return self._generator.throw(*exc)

    def close(self) -> None:
        """See `Generator`."""
        with self._watching():
            self._generator.close()


class _StepwiseCoroutine(Coroutine[Any, Any, Any]):
    """What is awaited, with each step in a context of its own; other tasks run between them."""

    def __init__(self, coroutine: Any, watching: Watching) -> None:
        self._coroutine, self._watching = coroutine, watching

    def __await__(self) -> Generator[Any, Any, Any]:
        return Stepwise(self._coroutine, self._watching)

    def send(self, value: Any) -> Any:
        """See `Coroutine`."""
        with self._watching():
            return self._coroutine.send(value)

    def throw(self, *exc: Any) -> Any:
        """See `Coroutine`."""
        with self._watching():
            return self._coroutine.throw(*exc)

    def close(self) -> None:
        """See `Coroutine`."""
        with self._watching():
            self._coroutine.close()


class _StepwiseAsync(AsyncGenerator[Any, Any]):
    """An asynchronous generator, as `Stepwise`."""

    def __init__(self, generator: AsyncGenerator[Any, Any], watching: Watching) -> None:
        self._generator, self._watching = generator, watching

    def asend(self, value: Any) -> Any:
        """See `AsyncGenerator`."""
        return _StepwiseCoroutine(self._generator.asend(value), self._watching)

    def athrow(self, *exc: Any) -> Any:
        """See `AsyncGenerator`."""
        return _StepwiseCoroutine(self._generator.athrow(*exc), self._watching)

    def aclose(self) -> Any:
        """See `AsyncGenerator`."""
        return _StepwiseCoroutine(self._generator.aclose(), self._watching)


_STEPWISE = ((isgenerator, Stepwise), (iscoroutine, _StepwiseCoroutine), (isasyncgen, _StepwiseAsync))


def stepwise(value: Any, watching: Watching) -> Any:
    """What a method has answered; where it works after the call, in steps, with these watched."""
    if isinstance(value, (_GeneratorContextManager, _AsyncGeneratorContextManager)):
        value.gen = stepwise(value.gen, watching)
    made = next((kind for is_of_kind, kind in _STEPWISE if is_of_kind(value)), None)
    return value if made is None else made(value, watching)
