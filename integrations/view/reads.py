"""Reads that the local view answers while PostgreSQL cannot: the ones that engines make at start and in their loop.

A manager may have them under names of its own, and declares which.  `Reads` is that table; whatever asks a manager for
such an answer asks by it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from itertools import combinations
from typing import Any

from ...errors import ConfigError
from ..code.signatures import signature_of_bound
from ..manager.away import unswallowed
from .kept_answers import ManagerRead
from .local_view import NAMES, LocalView, UnknownLocally, question

Call = Mapping[str, Any]
# (view, arguments of the call by standard name, current session, now) -> what the manager would return
Answerer = Callable[[LocalView, Call, int | None, datetime], Any]

# The reads by their standard names.
BALANCE, LAST_BALANCE = "get_current_balance", "recover_last_balance"
READ_POSITIONS, READ_ORDERS = "get_active_positions", "get_unresolved_orders"
ACTIVE_SESSION, LAST_SESSION = "get_active_session_id", "get_last_session_id"

# The answer to a read that a manager has not, or that needs more arguments than are known.
MISSING: Any = object()


def _session(call: Call, current: int | None) -> int | None:
    given: int | None = call.get("session_id")
    return current if given is None else given


def _balance(view: LocalView, call: Call, current: int | None, now: datetime) -> Any:
    return view.shown_balance(BALANCE, _session(call, current))


def _last_balance(view: LocalView, call: Call, current: int | None, now: datetime) -> Any:
    session = _session(call, current)
    session = view.active_session_id() if session is None else session
    return None if session is None else view.shown_balance(LAST_BALANCE, session)


def _positions(view: LocalView, call: Call, current: int | None, now: datetime) -> Any:
    return view.open_positions(_session(call, current))


def _orders(view: LocalView, call: Call, current: int | None, now: datetime) -> Any:
    return view.unresolved_orders(_session(call, current))


def _active(view: LocalView, call: Call, current: int | None, now: datetime) -> int | None:
    return view.active_session_id()


def _last(view: LocalView, call: Call, current: int | None, now: datetime) -> int | None:
    return view.last_session_id(now, **call)


@dataclass(frozen=True, slots=True)
class LocalRead:
    """How one of these reads is answered, and the standard names of its arguments."""

    answer: Answerer
    takes: tuple[str, ...] = ("session_id",)


LOCAL_READS: Mapping[str, LocalRead] = {
    BALANCE: LocalRead(_balance),
    LAST_BALANCE: LocalRead(_last_balance),
    READ_POSITIONS: LocalRead(_positions),
    READ_ORDERS: LocalRead(_orders),
    ACTIVE_SESSION: LocalRead(_active, ()),
    LAST_SESSION: LocalRead(_last, ("within_hours", "strategy_name", "symbol")),
}


class Reads:
    """The reads of one manager: which method gives which answer, and what its arguments are called."""

    def __init__(self, declared: Iterable[ManagerRead] = ()) -> None:
        """Raises `ConfigError` for a declaration that cannot be served, see `refusals`."""
        self.declared = {one.name: one for one in declared}
        refused = refusals(self.declared.values())
        if refused:
            raise ConfigError(
                "; ".join(f"read {name!r}: {reason}" for name, reason in refused.items()),
                hint="correct these declarations",
            )
        # By standard name; a method that is declared as another read is no longer the one of its own name.
        self._own = {name: ManagerRead(name) for name in LOCAL_READS if name not in self.declared}
        self._own |= {one.standard: one for one in self.declared.values() if one.standard in LOCAL_READS}

    @cached_property
    def names(self) -> tuple[str, ...]:
        """The manager's names of its reads: those answered locally, and others that are declared."""
        return tuple(dict.fromkeys((*(read.name for read in self._own.values()), *self.declared)))

    def name(self, standard: str) -> str:
        """The manager's name of a read."""
        return self._own[standard].name if standard in self._own else standard

    def local(self, name: str) -> ManagerRead | None:
        """The declaration of a method that the local view answers; None for any other."""
        return next((read for read in self._own.values() if read.name == name), None)

    def asking(self, manager: Any) -> Callable[..., Any]:
        """`ask(read, *values, **named)` of a manager: its answer, or MISSING; by standard order and names.

        It raises what PostgreSQL failed with, also where the manager has swallowed it.
        """

        def ask(standard: str, *values: Any, **named: Any) -> Any:
            read = self._own.get(standard)
            method: Any = None if read is None else getattr(manager, read.name, None)
            given = None if read is None or method is None else _arguments(read, method, values, named)
            if given is None:
                return MISSING
            with unswallowed():
                return method(*given.args, **given.kwargs)

        return ask

    def answer(
        self,
        name: str,
        signature: inspect.Signature,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        view: LocalView,
        current: int | None,
        now: datetime,
    ) -> Any:
        """What the manager's method `name` would return.  Raises `UnknownLocally`."""
        read, call = self._called(name, signature, args, kwargs)
        local = LOCAL_READS[read.standard]
        for argument, value in call.items():
            if argument not in local.takes:
                raise UnknownLocally(
                    f"{name} with {argument}={value!r} cannot be answered without PostgreSQL",
                    hint=f"the local view knows {', '.join(local.takes) or 'no argument'}; others are named by args=",
                )
        return local.answer(view, call, current, now)

    def session(
        self,
        name: str,
        signature: inspect.Signature,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        current: int | None,
    ) -> int | None:
        """The session that such a call asks about."""
        return _session(self._called(name, signature, args, kwargs)[1], current)

    def _called(
        self, name: str, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
    ) -> tuple[ManagerRead, Call]:
        read = self.local(name)
        assert read is not None
        return read, _standard_call(read, signature, args, kwargs)


def about_sessions(named: Mapping[str, Any]) -> dict[str, Call]:
    """The questions that a program asks when it starts, and their arguments.

    Where several programs share a database, each asks for its own session: by what it has `named` it.
    """
    own = [(name, named[name]) for name in NAMES if type(named.get(name)) is str]
    asked = [dict(some) for count in range(len(own) + 1) for some in combinations(own, count)]
    return {ACTIVE_SESSION: {}, **{question(LAST_SESSION, some): some for some in asked}}


def refusals(declared: Iterable[ManagerRead]) -> dict[str, str]:
    """Name the reads of which no table can be made, each with the reason."""
    found: dict[str, str] = {}
    taken: dict[str, str] = {}
    for read in declared:
        way = f"like= takes one of {', '.join(LOCAL_READS)}"
        if read.standard in LOCAL_READS:
            if taken.setdefault(read.standard, read.name) != read.name:
                found[read.name] = f"{taken[read.standard]} is declared like {read.standard} too: declare one of them"
        elif read.like is not None:
            found[read.name] = f"it is declared like {read.like!r}, which the local view cannot answer: {way}"
        elif read.args:
            found[read.name] = f"args= is for reads that the local view answers, and like= is missing: {way}"
    return found


def _arguments(
    read: ManagerRead, method: Any, values: tuple[Any, ...], named: Mapping[str, Any]
) -> inspect.BoundArguments | None:
    """The arguments of a question; None where the method needs others."""
    signature = signature_of_bound(method)
    left = {**dict(zip(LOCAL_READS[read.standard].takes, values, strict=False)), **named}
    found: dict[str, Any] = {}
    for name, parameter in signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            found[name], left = tuple(left.values()), {}
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            found[name] = {read.own_name(standard): value for standard, value in left.items()}
        elif read.standard_name(name) in left:
            found[name] = left.pop(read.standard_name(name))
        elif parameter.default is inspect.Parameter.empty:
            return None
    return inspect.BoundArguments(signature, found)


def _standard_call(
    read: ManagerRead, signature: inspect.Signature, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> dict[str, Any]:
    """The arguments of a call by standard name; a default that is given counts as not given."""
    takes, call = LOCAL_READS[read.standard].takes, dict[str, Any]()
    for name, value in signature.bind(*args, **kwargs).arguments.items():
        parameter = signature.parameters[name]
        if parameter.kind is inspect.Parameter.VAR_POSITIONAL:
            names = [*(one for one in takes if one not in call), *(f"{name}[{at}]" for at in range(len(value)))]
            call |= dict(zip(names, value, strict=False))
        elif parameter.kind is inspect.Parameter.VAR_KEYWORD:
            call |= {read.standard_name(key): item for key, item in value.items()}
        elif read.standard_name(name) in takes or value != parameter.default:
            call[read.standard_name(name)] = value
    return call
