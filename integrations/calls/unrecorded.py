"""Unrecorded: calls of which nothing is stored.

Some answer without having used the database (`Unwritten`).  Some only set the manager up, such as an observer, while
PostgreSQL is away at the start (`put_off`): the constructor has not run to its end then, and the attribute into which
such a call puts something is not there.  It is made once the manager is built, before that is used.  When calls cannot
be recorded any more, the engine's halt method is called (`Halt`).
"""

from __future__ import annotations

import ast
import functools
import inspect
import threading
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from sqlalchemy.exc import SQLAlchemyError

from ... import AlreadyRejected, ConfigError, DurabilityError, Outbox, OutboxError
from ...log import Log, Repeated
from ...words import first_line
from ..code.class_code import remembered
from ..code.members import class_member
from ..code.method_code import facts_of
from ..manager.away import is_away
from ..manager.host import Host
from ..operations import ManagerOperation
from ..outage import Outage
from ..preflight import beyond_call, ways_around
from ..preflight.evidence import Evidence
from ..upkeep.kept_view import OrderLock
from .stages import RehearsedCall

_log = Log("outbox.integrations")


def put_off(host: Host, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    """Put a call off until the manager can be built; False where it can be made now, or not be put off."""
    cls = host.manager_class
    if host.built is not None or cls is None or not host.declared.isdisjoint(_reached(cls, name)):
        return False
    needed = _needs(cls, name)
    if needed is None or needed <= host.early.keys():
        return False
    # Wrong arguments are the caller's error, now.
    host.signature(name).bind(*args, **kwargs)
    try:
        host.manager()
    except SQLAlchemyError as exc:
        if not is_away(exc):
            raise
        _log.debug("%(method)s is called when the manager is built: %(error)s", method=name, error=first_line(exc))
        host.when_built(functools.partial(_make, name, args, kwargs))
        return True
    return False


def _make(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any], manager: Any) -> None:
    try:
        class_member(type(manager), name).__get__(manager)(*args, **kwargs)
    except Exception as exc:  # noqa: BLE001 - its caller has gone on long ago
        _log.error("%(method)s, called before the manager was built, failed: %(error)s", method=name, error=exc)


@remembered(256)
def _reached(cls: type, name: str) -> frozenset[str]:
    """The names of the methods and attributes of self that a method turns to, and its own."""
    return frozenset({name, *Evidence(cls, None).code.uses_of(name)})


@remembered(256)
def _needs(cls: type, name: str) -> frozenset[str] | None:
    """The attributes that a method needs; None where it answers something, or may turn to the database."""
    evidence, member = Evidence(cls, None), class_member(cls, name)
    if not inspect.isfunction(member) or inspect.isgeneratorfunction(member) or inspect.iscoroutinefunction(member):
        return None
    functions = [function for function, _ in evidence.code.reached(name)]
    if not functions or not all(facts_of(function).read for function in functions):
        return None
    answers = [one for function in evidence.code.functions(name) for one in facts_of(function).returns]
    if any(not isinstance(one, ast.Constant) or one.value is not None for one in answers):
        return None
    if evidence.turns_to_the_database(name) or ways_around.hands_itself_over(name, evidence):
        return None
    return frozenset(one for one in evidence.code.uses_of(name) if not hasattr(cls, one))


_PREFIX = "unwritten:"


class Unwritten:
    """Answers those of one adapter, shows them, and logs those that failed.  Safe from any thread."""

    def __init__(self, outbox: Outbox, names: Iterable[str], host: Host, order: OrderLock, outage: Outage) -> None:
        """`names`: the operations.  Notices of an earlier run are taken away: the method may be mended since.

        `order` is held while the manager gets what such a call has changed in it.
        """
        self._outbox, self._host, self._order, self._outage = outbox, host, order, outage
        # Operations that were seen to write nothing: reported once, as a method may write sometimes.
        self._reported: set[str] = set()
        # Those of them that were not seen to write since.
        self._shown: set[str] = set()
        self._repeated = Repeated(_log)
        for notice in outbox.store.figures().notices.keys() & {_PREFIX + name for name in names}:
            outbox.notices.clear(notice)

    def answer(self, item: RehearsedCall) -> Any:
        """The answer of the call's rehearsal; the manager gets the rehearsal's changes.

        Raises what the manager raised, `ConfigError` where the call was only buffered, or has not run, and
        `DurabilityError`.
        """
        operation, rehearsal = item.operation, item.rehearsal
        answer, changed = rehearsal.answer, rehearsal.changes
        if inspect.isawaitable(answer) or inspect.isgenerator(answer):
            raise ConfigError(
                f"{operation.name} of the manager answers with a {type(answer).__name__}, which has not run yet",
                hint="managers must be synchronous; leave the operation out",
            )
        refused = rehearsal.error is not None or rehearsal.refused or answer is False
        if changed and not refused and not operation.best_effort:
            names = ", ".join(f"self.{name}" for name in changed.by_name)
            raise ConfigError(
                f"{operation.name} of the manager kept the call in {names} and did not write it",
                hint="what is buffered cannot be made durable: write at each call, or leave the operation out",
            )
        if self._host.built is not None:
            # Other threads' calls may change the same attributes.
            with self._order:
                changed.apply(self._host.built)
        if not operation.best_effort:
            self._look_at_switches(operation.name)
        if rehearsal.error is not None:
            raise rehearsal.error
        if not refused and not operation.best_effort:
            self._show(operation.name)
        return answer

    def is_let_pass(self, operation: ManagerOperation, bound: Mapping[str, Any], error: OutboxError) -> bool:
        """Whether a call that could not be recorded raises nothing: a best-effort one, or an exit.  Logs it.

        `bound`: its arguments.  A halted store, or a dead letter of the same order, stops no exit.
        """
        name, say = operation.name, _log.warning
        if not operation.best_effort:
            never = operation.never_refused if isinstance(error, DurabilityError | AlreadyRejected) else None
            if never is None or not never(operation.standard(bound)):
                return False
            say = _log.critical
        elif isinstance(error, DurabilityError):
            # Each call fails alike until an operator acts, and the log may be on the disk that is full.
            self._repeated.warn(name, "calls of %(operation)s are not recorded: %(error)s", operation=name, error=error)
            return True
        say("a call of %(operation)s was not recorded: %(error)s", operation=name, error=error)
        return True

    def _look_at_switches(self, name: str) -> None:
        """Sound an alarm where an outage may be why the manager did not write."""
        cls = self._host.manager_class
        found = beyond_call.of_class(cls, name) if cls is not None and self._outage.is_on() else ()
        if not found:
            return
        by = ", ".join(f"self.{one}" for one in found)
        message = f"calls of {name} were not recorded: the manager leaves them out in an outage, by {by}"
        _log.critical("%(problem)s: %(way)s", problem=message, way=beyond_call.SWITCHES_WAY)
        self._outbox.alarms.sound(f"left-out-{name}", f"{message}: {beyond_call.SWITCHES_WAY}")

    def _show(self, name: str) -> None:
        if name in self._reported:
            return
        self._reported.add(name)
        _log.warning("%(operation)s wrote nothing and was not recorded", operation=name)
        self._outbox.notices.put(_PREFIX + name, f"{name} answered without writing anything")
        self._shown.add(name)

    def wrote(self, name: str) -> None:
        """A call of operation `name` was recorded."""
        self._repeated.over(name)
        if name not in self._shown:
            return
        self._shown.discard(name)
        try:
            self._outbox.notices.clear(_PREFIX + name)
        except DurabilityError as exc:
            # The call is recorded, and must not seem to have failed.
            _log.warning("a notice could not be taken away: %(error)s", error=exc)


class Halt:
    """Calls the engine's halt method before a call raises, or returns that could not be numbered.  Thread-safe.

    Use it when no lock of the adapter is held: the method may wait for a thread of the engine that makes a call, and
    may make calls itself.
    """

    def __init__(self, method: Callable[[str], Any] | None) -> None:
        """`method(reason)`: called in the caller's thread."""
        self._method, self._here = method, threading.local()

    def after(self, error: BaseException) -> None:
        """Call the method if `error` is one of durability, but not for a call that the method makes itself.

        The caller gets `error` also where the method fails.
        """
        if self._method is None or not isinstance(error, DurabilityError) or getattr(self._here, "halting", False):
            return
        self._here.halting = True
        try:
            self._method(str(error))
        except Exception:  # noqa: BLE001 - of the engine; its call must still raise that nothing was recorded
            _log.critical("the halt method has failed: check that new positions are stopped", trace=True)
        finally:
            self._here.halting = False
