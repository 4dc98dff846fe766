"""Folds: applies a durable call to the local view, by its declared roles and by what was learned.

The view's lock is held; the notes are those of the adapter: `session`, `id` where the call creates one, `side` for the
ids of rows beside it; and `at`, the time of the capture, and `seq`, the number of the entry.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC
from typing import TYPE_CHECKING, Any

from ..roles import Balance, Session
from .amounts import number_or_none
from .effects import Prediction, predict
from .explanations import Unknown, alike
from .local_view import NOT_SHOWN, ROUNDED, LocalView
from .rows import ORDERS, PARENT, POSITIONS, RESOLVED, Row, Tables, new_session, resolve, without_resolved
from .seen import Seen

if TYPE_CHECKING:
    from ..operations import ManagerOperation

# Older ones that have ended are forgotten, unless they have open rows.
_SESSIONS_KEPT = 50


def seen_of(view: LocalView, operation: ManagerOperation, call: Mapping[str, Any], notes: Mapping[str, Any]) -> Seen:
    """A call beside the rows of its session, as effects are learned and predicted; `call` has the manager's names."""
    session = view.sessions.get(notes.get("session"))  # type: ignore[arg-type]
    tables = {} if session is None else session["tables"]
    learning = view.learning
    decisions = learning.decisions.get(operation.name, ())
    rounds = learning.roundings.in_rows(operation.name)
    return Seen(
        operation, operation.standard(call), notes, tables,
        forms=learning.forms, decisions=decisions, rounds=rounds,
    )  # fmt: skip


def fold(view: LocalView, seen: Seen) -> bool:
    """Apply one call to the view; whether all that it did was known."""
    operation, session_id = seen.operation, seen.notes.get("session")
    if operation.session is Session.BEGINS and session_id is not None:
        return _begin(view, session_id, seen)
    session = view.sessions.get(session_id)  # type: ignore[arg-type]
    if session_id is None:
        return True
    if session is None:
        if operation.balance is None and not seen.touches_rows:
            return True
        # Of a session that was never seen only the call's own arguments are known.
        session = view.sessions[session_id] = new_session()
        view.doubt_all(session_id, f"session {session_id} was never seen")
    if operation.session is Session.ENDS:
        session["active"] = False
    effect = view.learning.effect(seen)
    if not operation.has_role and effect is None:
        view.doubt_all(session_id, f"{operation.name} was never seen, and may change it")
        return False
    sure = _change_balance(view, session_id, seen)
    change = predict(effect, seen, view.learning.new_values(seen))
    change.doubts |= view.learning.merged(seen)
    if effect is not None and (finer := view.learning.roundings.finer(operation.name, seen.places, effect.places)):
        why = f"{operation.name} was never seen with so many decimal places of {', '.join(finer)}, which code may round"
        change.doubts |= {(table, id_, "*"): why for table, id_, _ in change.rows}
    if effect is not None and operation.name in view.learning.present.respelling and seen.letters - effect.letters:
        texts = ", ".join(sorted({one[:-2] for one in seen.letters - effect.letters}))
        why = f"{operation.name} was never seen with such letters in {texts}, which code may change"
        change.doubts |= {(table, id_, "*"): why for table, id_, _ in change.rows}
    return _apply(view, session_id, change, seen) and sure


def foretells(view: LocalView, seen: Seen, after: Tables) -> bool:
    """Whether the view follows the call to the rows that are shown `after` it, or doubts them."""
    other, session_id = LocalView(view.shown), seen.notes["session"]
    other.learning = view.learning
    other.sessions[session_id] = {**new_session(), "tables": {name: dict(rows) for name, rows in seen.tables.items()}}
    fold(other, replace(seen, rounds=view.learning.roundings.in_rows(seen.operation.name)))
    made = other.sessions[session_id]
    left_open = {RESOLVED, *(table for table, *_ in made["doubts"])}
    told = {one for one in {*made["tables"], *after} - left_open if one.partition(".")[0] in seen.tables.keys() & after}
    return all(alike(made["tables"].get(table, {}), after.get(table, {})) for table in told)


def fold_beside(view: LocalView, seen: Seen) -> list[Any]:
    """Doubt the other sessions that such a call was seen to change; lists them."""
    effect = view.learning.effect(seen)
    if effect is None or not effect.beside:
        return []
    named = seen.sessions_beside(view.sessions)
    found = [session_id for name, session_id in named.items() if name in effect.beside]
    for session_id in found:
        view.doubt_apart(session_id, f"{seen.operation.name} changes it beside its own session")
    return found


def _begin(view: LocalView, session_id: int, seen: Seen) -> bool:
    if seen.notes.get("resumes"):
        return True
    call, effect = seen.call, view.learning.effect(seen)
    at = seen.notes["at"].astimezone(UTC).replace(tzinfo=None)
    session = view.sessions[session_id] = new_session(call.get("strategy_name"), call.get("symbol"), None, at)
    name, values, unknown = seen.operation.name, dict[str, Any](), {"balance": f"{seen.operation.name} was never seen"}
    if effect is not None and effect.count:
        values, unknown = effect.predict({"balance": effect.start}, seen.sources())
    session["balance"] = number_or_none(values.get("balance"))
    if unknown:
        view.doubt(session_id, "balance", f"{name}: {unknown['balance']}")
    for old in sorted(view.sessions)[:-_SESSIONS_KEPT]:
        if _may_be_forgotten(view.sessions[old]):
            del view.sessions[old]
        else:
            # It may never be ended, if the engine was killed.
            view.sessions[old] = without_resolved(view.sessions[old])
    return not session["doubts"]


def _may_be_forgotten(session: Row) -> bool:
    """Whether a session has ended and has no row that a read of all sessions would show, as far as is known."""
    has_rows = any(session["tables"].get(table) for table in (POSITIONS, ORDERS))
    in_doubt = any(table != "balance" and why != NOT_SHOWN for (table, *_), why in session["doubts"].items())
    return not (session["active"] or has_rows or in_doubt)


def _change_balance(view: LocalView, session_id: int, seen: Seen) -> bool:
    operation, session = seen.operation, view.sessions[session_id]
    learned = view.learning.is_balance_as_declared(seen)
    doubts = session["doubts"]
    if operation.balance is None:
        if learned is False:
            view.doubt(session_id, "balance", f"{operation.name} changes it, which its declaration does not say")
        return learned is not False
    doubted = ("balance", None, "*") in doubts
    if operation.balance is Balance.SET:
        doubts.pop(("balance", None, "*"), None)
        session.pop("rounded", None)
        doubted = False
    try:
        if session.get("rounded"):
            raise Unknown(f"all its digits are {ROUNDED}")
        before = None if doubted else session["balance"]
        session["balance"] = view.learning.balance_after(operation, before, seen.amount)
        if not learned:
            new = " and ".join(view.learning.new_values(seen))
            never = f"it was never seen{' with ' if new else ''}{new}"
            raise Unknown(never if learned is None else "the manager made another balance of it")
    except Unknown as exc:
        doubts.setdefault(("balance", None, "*"), f"{operation.name}: {exc}")
        return False
    return True


def _apply(view: LocalView, session_id: int, change: Prediction, seen: Seen) -> bool:
    session = view.sessions[session_id]
    tables, doubts = session["tables"], session["doubts"]
    for table, id_, row in change.rows:
        tables.setdefault(table, {})[id_] = row
    for table, id_ in change.gone:
        if table == ORDERS:
            resolve(session, id_, seen.call, seen.notes["seq"])
        tables[table].pop(id_, None)
        nested = [(name, key) for name in tables if table == POSITIONS and name.startswith(f"{POSITIONS}.")
                  for key, row in tables[name].items() if row[PARENT] == id_]  # fmt: skip
        for name, key in nested:
            del tables[name][key]
        lost = {(table, id_), *nested}
        session["doubts"] = doubts = {one: why for one, why in doubts.items() if one[:2] not in lost}
    doubts |= change.doubts
    return not change.doubts
