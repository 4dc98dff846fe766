"""Unanswerable: what the local view will not answer after calls of an outage, as far as is known before the outage."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from .learned import Learning
from .local_view import NOT_SHOWN
from .rows import Row

if TYPE_CHECKING:
    from ..operations import ManagerOperation

NOTICE = "unanswerable"


def unanswerable(learning: Learning, calls: Mapping[str, ManagerOperation]) -> list[str]:
    """One clause for each reason why reads of balance, positions and orders may not be answered in an outage.

    `calls`: the operations by the names of their methods.  A method without a part in positions and orders is left out,
    but for its changes of the balance.
    """
    methods = sorted(name for name, one in calls.items() if one.position is not None or one.order is not None)
    values: dict[str, set[str]] = {}
    for kind, effect in learning.effects.items():
        if effect.count:
            values.setdefault(kind.partition("|")[0], set()).update(effect.unexplained())
    unexplained = [(name, sorted(values[name])) for name in methods if values.get(name)]
    otherwise = sorted({kind.partition("|")[0] for kind, one in learning.effects.items() if one.balance.is_strange})
    open_ = [name for name, one in calls.items() if one.as_seen and _is_open(learning.yields.get(name))]
    never = [name for name in methods if name not in values]
    return [
        *(f"{', '.join(names)} after {name} ({_why(calls[name], names)})" for name, names in unexplained),
        *([f"the balance after some calls of {', '.join(otherwise)} (not as declared)"] if otherwise else []),
        *([f"the answers of {', '.join(sorted(open_))} (cannot be explained)"] if open_ else []),
        *([f"rows after the first call of {', '.join(never)} (never seen)"] if never else []),
    ]


def not_understood(sessions: Mapping[Any, Row]) -> list[str]:
    """One clause for each table that PostgreSQL shows in a form that is not understood: no read of it is answered."""
    shown = (row.get("unshown", {}).items() for row in sessions.values() if row["active"])
    found = {table: why for one in shown for table, why in one if why != NOT_SHOWN}
    return [f"{table} at all ({why})" for table, why in sorted(found.items())]


def _is_open(known: Mapping[str, Any] | None) -> bool:
    """Whether the answers of a method, as they were seen, are not all explained."""
    if known is None:
        return False
    return (
        bool(known.get("varies"))
        or known.get("numbered") is False
        or any(space.strikes for space in known["keys"].values())
    )


def _why(operation: ManagerOperation, names: list[str]) -> str:
    is_id = operation.creates is None and any(name.startswith("id of ") for name in names)
    return "not known without creates=" if is_id else "cannot be explained"
