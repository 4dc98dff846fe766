"""Limits that a manager was seen to enforce, for refusing calls in an outage; and the test for an exit order.

A limit that the manager was not seen to keep is none: a call within the caller's rights must not be refused by guess.

Rules of the database refuse a call on purpose, too: a CHECK, a domain, WITH CHECK OPTION, RAISE in a function.  A
manager that leaves such a refusal to PostgreSQL is as good as one that raises it itself, so it is learned alike. Other
errors of the data (a duplicate key, a missing parent) are none: they need not have to do with the limit that the call
goes beyond.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import psycopg2
import psycopg2.errors
from sqlalchemy.exc import DBAPIError

from ...registered import class_name, class_named
from ..roles import Balance, Order, Position
from .amounts import number_or_none
from .effects import Effect
from .learned import Learning
from .learning import DECISIVE
from .local_view import LocalView, UnknownLocally
from .rows import ORDERS, POSITIONS, RESOLVED, named_positions
from .seen import Seen

if TYPE_CHECKING:
    from ..operations import ManagerOperation

_CHECK = "23514"
_OF_TABLES = frozenset({_CHECK, "44000"})


def is_broken_by(error: BaseException | None) -> bool:
    """Whether an error of PostgreSQL says that a rule was broken.  A missing partition is a CHECK without a name."""
    origin = _origin(error)
    if origin is None or origin.pgcode not in _OF_TABLES:
        return is_raised(error)
    return origin.pgcode != _CHECK or origin.diag.constraint_name is not None


def is_raised(error: BaseException | None) -> bool:
    """Whether a function or a trigger raised it: an error of PL/pgSQL, or one with an SQLSTATE that is its author's."""
    origin = _origin(error)
    code = None if origin is None else origin.pgcode
    return code is not None and (code.startswith("P0") or _class_of(code) is None)


def _origin(error: BaseException | None) -> psycopg2.Error | None:
    origin = error.orig if isinstance(error, DBAPIError) else None
    return origin if isinstance(origin, psycopg2.Error) else None


def _class_of(sqlstate: str) -> Any:
    """The driver's class for an SQLSTATE of PostgreSQL's; None for others."""
    try:
        return psycopg2.errors.lookup(sqlstate)
    except KeyError:
        return None


def name_of(error: BaseException) -> str:
    """Under which name an error is learned; that of PostgreSQL has its SQLSTATE behind it."""
    name, origin = class_name(type(error)), _origin(error)
    return name if origin is None or not is_broken_by(error) else f"{name}#{origin.pgcode}"


def made_again(name: str, why: str) -> BaseException:
    """The error of that name, in a call that was not sent; a `ValueError` where its class has other arguments."""
    found, _, sqlstate = name.partition("#")
    cls = class_named(found)
    try:
        error = cls("(not sent)", {}, _of_driver(sqlstate, why)) if sqlstate else cls(why)
    except Exception:  # noqa: BLE001 - a class of the host's with arguments of its own
        return ValueError(why)
    return error if isinstance(error, Exception) else ValueError(why)


def _of_driver(sqlstate: str, why: str) -> Any:
    """An error of the driver's class, since callers look at that, and at `pgcode`, which only the driver can set."""
    cls = _class_of(sqlstate) or psycopg2.DatabaseError
    return type(cls.__name__, (cls,), {"__module__": cls.__module__, "pgcode": sqlstate})(why)


Call = Mapping[str, Any]

# The types of the answers with which a manager may refuse a call.
_ANSWERS = (bool, int, str, type(None))


def session_known(call: Call, view: LocalView) -> None:
    """Raise `UnknownLocally` where the session is none that was seen."""
    session_id = call.get("session_id")
    if session_id is not None and view.sessions and session_id not in view.sessions:
        raise UnknownLocally(
            f"session {session_id} is not known without PostgreSQL",
            hint="use the id that the session was created with",
        )


def exceeded(seen: Seen, balance: Decimal | None, effect: Effect | None) -> dict[str, str]:
    """The limits that a call goes beyond, with what is wrong."""
    operation, found = seen.operation, {}
    amount = number_or_none(seen.amount)
    if operation.balance is not None and amount is not None:
        after = amount if operation.balance is Balance.SET else None if balance is None else balance + amount
        if after is not None and after < 0:
            found["balance below zero"] = f"the balance is {balance} and cannot become {after}"
    position_id = seen.call.get("position_id")
    moves = operation.position not in (None, Position.OPENS)
    if moves and position_id is not None and POSITIONS in seen.tables:
        rows = seen.tables[POSITIONS]
        named = named_positions(rows, operation, seen.call)
        if not named:
            found["position not open"] = f"{operation.own_name('position_id')} {position_id} is not open"
        elif operation.position is Position.REDUCES and len(named) == 1:
            found |= _beyond_left(seen, rows[named[0]], effect)
    if operation.order is Order.UPDATES and operation.position is None and ORDERS in seen.tables:
        for id_ in seen.named(RESOLVED) if not seen.named(ORDERS) else ():
            found[f"order not open{_resolution(seen, id_)}"] = f"the order {id_} is not open"
    return found


def _resolution(seen: Seen, id_: Any) -> str:
    """By which kind of call an order was resolved, and what is asked of it now: a manager may take late fills only."""
    resolved_by = seen.tables[RESOLVED][id_]
    by = [name for name in resolved_by if name.startswith("by:")]
    given = {name: resolved_by[name] for name in by} | dict(seen.call)
    decisive = [f"{name}={value}" for name, value in given.items() if name.removeprefix("by:") in DECISIVE]
    return ", ".join(["", *sorted(by), *sorted(decisive)])


def _beyond_left(seen: Seen, row: Mapping[str, Any], effect: Effect | None) -> dict[str, str]:
    for key, space in ({} if effect is None else effect.changed.get(POSITIONS, {})).items():
        left = number_or_none(row.get(key))
        for one in space.candidates:
            taken = number_or_none(seen.call.get(str(one[1])[4:])) if one[0] == "sum" and one[2] < 0 else None
            if left is not None and taken is not None and taken > left:
                return {"more than is left": f"{str(one[1])[4:]} must be at most the {left} left, not {taken}"}
    return {}


def refused(learning: Learning, operation: ManagerOperation, limits: Mapping[str, str], error: BaseException) -> None:
    """The manager raised at a call beyond these limits."""
    _learn(learning, operation, limits, name_of(error))


def answered(learning: Learning, operation: ManagerOperation, limits: Mapping[str, str], answer: Any) -> None:
    """The manager gave this answer to a call beyond these limits, and wrote nothing."""
    if isinstance(answer, _ANSWERS):
        _learn(learning, operation, limits, [answer])


def _learn(learning: Learning, operation: ManagerOperation, limits: Mapping[str, str], how: str | list[Any]) -> None:
    for limit in limits:
        if learning.limits.setdefault(f"{operation.name}: {limit}", how) is not None:
            learning.version += 1


def accepted(learning: Learning, operation: ManagerOperation, limits: Mapping[str, str]) -> None:
    """The manager accepted a call beyond these limits, so they are none."""
    for limit in limits:
        learning.limits[f"{operation.name}: {limit}"] = None
        learning.version += 1


def refuses(learning: Learning, operation: ManagerOperation) -> bool:
    """Whether the manager was seen to refuse a call of this operation."""
    of = f"{operation.name}: "
    return any(how is not None and limit.startswith(of) for limit, how in learning.limits.items())


def is_refused(learning: Learning, operation: ManagerOperation, limits: Mapping[str, str]) -> bool:
    """Whether the manager was seen to refuse calls beyond one of these limits."""
    return any(learning.limits.get(f"{operation.name}: {limit}") is not None for limit in limits)


def refuse(learning: Learning, operation: ManagerOperation, limits: Mapping[str, str]) -> tuple[Any] | None:
    """Raise what the manager was seen to raise for a call beyond one of these limits, or return what it answered."""
    for limit, why in limits.items():
        how = learning.limits.get(f"{operation.name}: {limit}")
        if isinstance(how, list):
            return (how[0],)
        if how is not None:
            raise made_again(how, why)
    return None
