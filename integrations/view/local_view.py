"""LocalView: balances, open positions, sessions and unresolved orders, known without PostgreSQL.

The last state that PostgreSQL showed, and every durable call since then folded into it.  It is a fold over entries in
their order, checkpointed in the store, so that it is the same again after a restart in the middle of an outage.
What it does not know it refuses with `UnknownLocally`: an engine must never take silence for "nothing there".
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from ... import Entry, OutboxError
from ...results import decode_result, encode_result
from ..roles import NO_SESSIONS
from .amounts import bare, number_or_none
from .explanations import Unknown
from .learned import Learning
from .rows import ORDERS, POSITIONS, RESOLVED, Row, Tables, joined, named_orders, named_positions, new_session

if TYPE_CHECKING:
    from ..operations import ManagerOperation

# What is known of a session, and by which a program finds its own.
NAMES = ("strategy_name", "symbol")

_FORMAT = 2
# The way out where an answer was never seen.
_WAIT = "ask again when PostgreSQL is back"
# Stands among the arguments of a question for an answer that is a session which has ended.
ENDED = "ended"
# Why a table is in doubt for ever.
NOT_SHOWN = "the manager does not show them"
# Why a balance is not known to the last digit.
ROUNDED = "not known, since the manager shows it rounded"
_BALANCE = "balance"
_CURRENT_BALANCE = "get_current_balance"

Doubts = dict[tuple[str, Any, str], str]


def encoded(snapshot: Mapping[str, Any]) -> bytes:
    """A snapshot, to be stored.  It takes a while: for calls to go on, no lock is held."""
    # The order apart, since what is stored has its keys sorted, and ids such as UUIDs have no order of their own.
    rows = snapshot["sessions"].items()
    order = {id_: {name: list(found) for name, found in row["tables"].items()} for id_, row in rows}
    return encode_result({**snapshot, "order": order})


def _apart(sessions: Mapping[int, Row]) -> dict[int, Row]:
    """Sessions that change by themselves from now on."""
    return {
        id_: {
            **row,
            "doubts": dict(row["doubts"]),
            "tables": {name: dict(rows) for name, rows in row["tables"].items()},
        }
        for id_, row in sessions.items()
    }


class UnknownLocally(OutboxError, LookupError):
    """PostgreSQL is away and the local view does not know what was asked for."""


class LocalView:
    """State of one store's trading, and what was learned of its manager.  Thread-safe."""

    def __init__(self, shown: Callable[[str], str] = str) -> None:
        """`shown(read)`: the manager's own name of a read, for messages."""
        self.shown = shown
        self._lock: Any = threading.RLock()
        self._seq, self._sessions = 0, dict[int, Row]()
        # The session of calls that name none while none is current.
        self.otherwise: int | None = None
        self.learning = Learning()
        # Folds the entries once more where more was learned since; set by the keeper.
        self.renew: Callable[[], bool] = lambda: False
        # Durable calls that are not folded in yet, oldest first; and what folds one in, once, set by the keeper.
        self._behind: deque[Entry] = deque()
        self.fold: Callable[[Entry], object] = lambda _: None

    # -- following

    @property
    def lock(self) -> AbstractContextManager[Any]:
        """Held while the view is read or changed; all that was durable before is folded in then.  Reentrant."""
        self.catch_up()
        lock: AbstractContextManager[Any] = self._lock
        return lock

    @property
    def seq(self) -> int:
        """Sequence number of the last entry folded in."""
        self.catch_up()
        return self._seq

    @seq.setter
    def seq(self, value: int) -> None:
        self._seq = value

    @property
    def sessions(self) -> dict[int, Row]:
        """What is known of each session, by its id."""
        self.catch_up()
        return self._sessions

    @sessions.setter
    def sessions(self, value: dict[int, Row]) -> None:
        self._sessions = value

    def follow(self, entry: Entry) -> None:
        """Let a durable call be folded in before the view is looked at, in whichever thread that happens first.

        Calls come in the order of their entries.
        """
        self._behind.append(entry)

    def catch_up(self) -> None:
        """Fold in what is durable; not for a thread that holds the lock, whose view must not change meanwhile."""
        if self._behind and not self._lock._is_owned():
            with self._lock:
                while self._behind:
                    self.fold(self._behind[0])
                    self._behind.popleft()

    # -- durability

    def snapshot(self) -> dict[str, Any]:
        """The state as it is now; what was learned is apart.  Rows are shared, since none is changed in place."""
        with self.lock:
            return {"format": _FORMAT, "seq": self.seq, "sessions": _apart(self.sessions)}

    def take(self, snapshot: Mapping[str, Any]) -> None:
        """Take over a state that `snapshot` gave."""
        with self.lock:
            self.seq, self.sessions = snapshot["seq"], _apart(snapshot["sessions"])

    def load(self, data: bytes) -> None:
        """Take over a state that `encoded` gave; one of another format is left alone, and the fold starts anew."""
        state = decode_result(data)
        if state.get("format") != _FORMAT:
            return
        for session_id, order in state.get("order", {}).items():
            tables = state["sessions"][session_id]["tables"]
            tables |= {name: {id_: tables[name][id_] for id_ in ids} for name, ids in order.items()}
        self.take(state)

    def begin_with(self, other: LocalView, apart: Collection[Any]) -> None:
        """Take over the state of another view; the sessions in `apart` change by themselves from now on."""
        with other.lock:
            self.seq, self.learning, self.otherwise = other.seq, other.learning, other.otherwise
            self.sessions = {id_: deepcopy(row) if id_ in apart else row for id_, row in other.sessions.items()}

    # -- what PostgreSQL showed

    def observe_session(
        self,
        session_id: int,
        balance: Any,
        tables: Tables,
        *,
        active: bool,
        shows_balance: bool = True,
        unknown: Mapping[str, str] | None = None,
        foreign: bool = False,
    ) -> None:
        """Replace what is known of a session by what PostgreSQL shows, when nothing of it is pending.

        `active` and `foreign` are taken for a session that is new to the view; `unknown`: why a table is missing among
        `tables`.  Managers answer 0 for a session that does not exist, so one of which nothing but that is shown stays
        unknown.
        """
        with self.lock:
            if session_id not in self.sessions:
                if session_id != NO_SESSIONS and not (balance or any(tables.values())):
                    return
                self.sessions[session_id] = {**new_session(), "active": active}
                if foreign:
                    self.sessions[session_id]["foreign"] = True
            session = self.sessions[session_id]
            known = session["balance"] if self._is_exact(session) else None
            session["doubts"] = {}
            session["balance"] = exact(balance, known)
            if hides := self.learning.roundings.hides_balance:
                found = self.learning.roundings.exact(session_id, session["balance"], known)
                session["rounded"] = found is None
                session["balance"] = session["balance"] if found is None else found
            if session["balance"] is None and shows_balance:
                self.doubt(session_id, _BALANCE, f"{self.shown(_CURRENT_BALANCE)} of the manager gives none")
            elif shows_balance and not (hides and session["rounded"]):
                self.learning.learn_answer(_CURRENT_BALANCE, session["balance"], balance)
            for table in {POSITIONS, ORDERS} - tables.keys():
                self.doubt(session_id, table, (unknown or {}).get(table, NOT_SHOWN))
            # No fold of calls will make them known, only another look.
            session["unshown"] = {table: why for (table, *_), why in session["doubts"].items()}
            resolved = session["tables"].get(RESOLVED, {})
            session["tables"] = {POSITIONS: {}, ORDERS: {}, **tables, RESOLVED: resolved}
            self.learning.learn_shown(tables)

    def doubt(self, session_id: int, table: str, why: str) -> None:
        """Answer a session's balance, or one of its tables, no more."""
        self.sessions[session_id]["doubts"][table, None, "*"] = why

    def doubt_all(self, session_id: int, why: str) -> None:
        """Answer neither the balance nor a table of a session any more."""
        for table in (_BALANCE, POSITIONS, ORDERS):
            self.doubt(session_id, table, why)

    def doubt_apart(self, session_id: Any, why: str) -> None:
        """Doubt all of a session, whose state another view may share."""
        session = self.sessions[session_id]
        tables = (_BALANCE, *session["tables"])
        doubts = {**session["doubts"], **{(table, None, "*"): why for table in tables}}
        self.sessions[session_id] = {**session, "doubts": doubts}

    # -- answers

    def active_session_id(self) -> int | None:
        """The session begun last among those not ended.  Raises `UnknownLocally` where none was ever seen."""
        with self.lock:
            self._require_history()
            self._require_agreement("get_active_session_id")
            return max((id_ for id_, row in self.sessions.items() if row["active"]), default=None)

    def last_session_id(
        self, now: datetime, within_hours: float = 24.0, strategy_name: str | None = None, symbol: str | None = None
    ) -> int | None:
        """The session begun last within the given hours, of that strategy and symbol."""
        wanted = {"strategy_name": strategy_name, "symbol": symbol}
        with self.lock:
            self._require_history()
            found, asked = self.last_session(
                now, {name: value for name, value in wanted.items() if value is not None}, within_hours
            )
            self._require_agreement("get_last_session_id", asked)
            return found

    def last_session(
        self, now: datetime, wanted: Mapping[str, Any], within_hours: float = 24.0
    ) -> tuple[int | None, list[str]]:
        """That session, and what was asked, for `question`: of one that has ended a manager may answer otherwise."""
        found = self._begun_last(now.astimezone(UTC).replace(tzinfo=None) - timedelta(hours=within_hours), wanted)
        return found, [*wanted, *([] if found is None or self.sessions[found]["active"] else [ENDED])]

    def _begun_last(self, since: datetime, asked: Mapping[str, Any]) -> int | None:
        for id_ in sorted(self.sessions, reverse=True):
            row = self.sessions[id_]
            if row.get("foreign") and asked and question("get_last_session_id", asked) in self.learning.compared.agrees:
                # The manager, asked for this program's own, did not name it.
                continue
            if any(row[name] not in (None, value) for name, value in asked.items()):
                continue
            if row["start_time"] is not None and row["start_time"] < since:
                continue
            if any(row[name] is None for name in asked):
                raise UnknownLocally(
                    f"{' and '.join(asked)} of session {id_} are not known without PostgreSQL",
                    hint="it was begun before this outbox was there",
                )
            return id_
        return None

    @staticmethod
    def _is_exact(session: Row) -> bool:
        return not (session.get("rounded") or (_BALANCE, None, "*") in session["doubts"])

    def balance(self, session_id: int | None, *, shown: bool = False) -> Decimal:
        """The exact balance of a session; `shown`: as it is shown will do.  Raises `UnknownLocally`."""
        with self.lock:
            self._require_session(session_id, "balance")
            assert session_id is not None
            self._require_sure([session_id], _CURRENT_BALANCE, lambda table: table == _BALANCE)
            balance: Decimal | None = self.sessions[session_id]["balance"]
            if balance is not None and not shown and self.sessions[session_id].get("rounded"):
                raise UnknownLocally(f"all digits of the balance of session {session_id} are {ROUNDED}", hint=_WAIT)
            if balance is None:
                raise UnknownLocally(f"the balance of session {session_id} is not known without PostgreSQL", hint=_WAIT)
            return balance

    def shown_balance(self, read: str, session_id: int | None) -> Any:
        """The balance of a session as the manager's method `read` shows it.  Raises `UnknownLocally`."""
        with self.lock:
            balance, space = self.balance(session_id, shown=True), self.learning.reads.get(read)
            try:
                if space is None:
                    raise Unknown(f"{self.shown(read)} was never asked while PostgreSQL was up")
                return space.predict({"note:balance": bare(balance)})
            except Unknown as exc:
                raise UnknownLocally(
                    f"how {self.shown(read)} shows a balance of {balance} is not known: {exc}", hint=_WAIT
                ) from None

    def open_positions(self, session_id: int | None) -> Any:
        """Open positions as the manager shows them; of every session where `session_id` is None."""
        with self.lock:
            ids = self._asked(session_id)
            self._require_sure(ids, "get_active_positions", lambda table: table.startswith(POSITIONS))
            nested = sorted(self.learning.nested)
            rows = (row for id_ in ids for row in joined(self.sessions[id_]["tables"], nested, self._ordered))
            return self._shown_rows(POSITIONS, rows, nested)

    def unresolved_orders(self, session_id: int | None) -> Any:
        """Orders neither filled nor dead; of every session where `session_id` is None."""
        with self.lock:
            ids = self._asked(session_id)
            self._require_sure(ids, "get_unresolved_orders", lambda table: table == ORDERS)
            rows = (row for id_ in ids for row in self.sessions[id_]["tables"][ORDERS].values())
            return self._shown_rows(ORDERS, rows)

    def _shown_rows(self, table: str, rows: Iterable[Row], nested: Iterable[str] = ()) -> Any:
        found = self._ordered(table, rows)
        try:
            return self.learning.forms.answer(table, found, nested)
        except Unknown as exc:
            raise UnknownLocally(f"{table} cannot be answered without PostgreSQL: {exc}", hint=_WAIT) from None

    def _ordered(self, table: str, rows: Iterable[Row]) -> list[Row]:
        """Copies of rows in the order in which the manager shows them.  Raises `UnknownLocally`."""
        try:
            key = self.learning.forms.key(table)
            return self.learning.row_orders.sorted(table, deepcopy(list(rows)), key)
        except Unknown as exc:
            raise UnknownLocally(
                f"the order of {table} is not known without PostgreSQL: {exc}",
                hint="answers with several rows are learned from while PostgreSQL is up",
            ) from None

    def _asked(self, session_id: int | None) -> list[int]:
        self._require_history()
        if session_id is not None:
            self._require_session(session_id, "rows")
        return sorted(self.sessions) if session_id is None else [session_id]

    def not_understood(self, session_id: Any, tables: Iterable[str]) -> set[str]:
        """Those of the tables whose rows may not be all that there are."""
        with self.lock:
            session = self.sessions.get(session_id)
            return {one for one in tables if session is None or (one, None, "*") in session["doubts"]}

    def is_sure(self, session_id: int) -> bool:
        """Whether nothing of a session is in doubt."""
        with self.lock:
            return session_id in self.sessions and not self.sessions[session_id]["doubts"]

    def _require_sure(self, ids: Iterable[int], read: str, about: Callable[[str], bool]) -> None:
        ids = list(ids)
        found = self._doubts(ids, about)
        if found and self.renew():
            for id_ in ids:
                # One that PostgreSQL has refused is gone.
                self._require_session(id_, "rows")
            found = self._doubts(ids, about)
        for (table, id_, key), why in found.items():
            of = "" if id_ is None else f" of {id_}"
            what = table if key == "*" else f"{key!r} of {table}"
            raise UnknownLocally(
                f"{self.shown(read)} cannot be answered without PostgreSQL: {what}{of} is not known ({why})",
                hint="the manager computes it from more than the call: pass it as an argument"
                if "cannot be explained" in why
                else "such calls are learned from while PostgreSQL is up",
            )

    def _doubts(self, ids: Iterable[int], about: Callable[[str], bool]) -> Doubts:
        return {one: why for id_ in ids for one, why in self.sessions[id_]["doubts"].items() if about(one[0])}

    def _require_session(self, session_id: int | None, what: str) -> None:
        if session_id is None or session_id not in self.sessions:
            raise UnknownLocally(
                f"the {what} of session {session_id} are not known without PostgreSQL"
                if what == "rows"
                else f"the {what} of session {session_id} is not known without PostgreSQL",
                hint="the local view knows sessions that this outbox has seen",
            )

    def _require_history(self) -> None:
        if not self.sessions:
            raise UnknownLocally(
                "nothing of this manager is known without PostgreSQL",
                hint="run once with PostgreSQL up: then a restart in the middle of an outage can resume",
            )

    def _require_agreement(self, read: str, asked: Iterable[str] = ()) -> None:
        general = question(read, {ENDED}.intersection(asked))
        agrees = self.learning.compared.agrees.get(question(read, asked), self.learning.compared.agrees.get(general))
        if not agrees:
            never = agrees is None
            raise UnknownLocally(
                f"{self.shown(read)} cannot be answered without PostgreSQL",
                hint="it was never asked before" if never else "PostgreSQL answered otherwise when it was asked last",
            )

    # -- rows by id

    def session_of_position(self, operation: ManagerOperation, call: Mapping[str, Any], likely: Any) -> Any:
        """The session of the open position that a call names, `likely` before others, or None where no view has it."""
        with self.lock:
            for id_ in (likely, *(one for one in self.sessions if one != likely)):
                rows = self.sessions.get(id_, {}).get("tables", {}).get(POSITIONS, {})
                if named_positions(rows, operation, call):
                    return id_
            return None

    def session_of_order(self, call: Mapping[str, Any], likely: Any) -> Any:
        """The session of the order that a call names, `likely` before others, or None where no view has it."""
        with self.lock:
            key, names = self.learning.forms.key(ORDERS), self.learning.forms.names("client_order_id")
            for id_ in (likely, *(one for one in self.sessions if one != likely)):
                tables = self.sessions.get(id_, {}).get("tables", {})
                if any(named_orders(tables, table, call, key, names) for table in (ORDERS, RESOLVED)):
                    return id_
            return None


def question(read: str, asked: Iterable[str] = ()) -> str:
    """The name of a read's question about sessions: with the arguments that choose among them."""
    return f"{read}({', '.join(sorted(asked))})" if asked else read


def exact(shown: Any, known: Decimal | None) -> Decimal | None:
    """`shown`, a float of a read perhaps, as the exact amount: the known one where it is shown as that float."""
    found = number_or_none(shown)
    return known if isinstance(shown, float) and known is not None and float(known) == shown else found
