"""LocalView: balances, open positions, sessions and unresolved orders, known without PostgreSQL.

The last state that PostgreSQL showed, and every durable call since then folded into it.  It is a fold over entries in
their order, checkpointed in the store, so that it is the same again after a restart in the middle of an outage.
What it does not know it refuses with `UnknownLocally`: an engine must never take silence for "nothing there".
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from copy import deepcopy
from datetime import UTC, datetime, timedelta
from decimal import Decimal, InvalidOperation
from enum import Enum
from typing import Any

from .. import OutboxError
from ..codec import decode_result, encode_result

_FORMAT = 1

Row = dict[str, Any]


class UnknownLocally(OutboxError, LookupError):
    """PostgreSQL is away and the local view does not know what was asked for."""


class LocalView:
    """State of one store's trading.  Thread-safe."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        # Sequence number of the last entry folded in.
        self.seq = 0
        self.sessions: dict[int, Row] = {}
        self.positions: dict[int, Row] = {}
        self.orders: dict[str, Row] = {}

    # -- durability

    def dump(self) -> bytes:
        """The state, to be stored."""
        with self.lock:
            state = {
                "format": _FORMAT, "seq": self.seq, "sessions": self.sessions, "positions": self.positions,
                "orders": self.orders,
            }  # fmt: skip
            return encode_result(state)

    def load(self, data: bytes) -> None:
        """Take over a state that `dump` gave; one of another format is left alone, and the fold starts anew."""
        state = decode_result(data)
        if state.get("format") != _FORMAT:
            return
        with self.lock:
            self.seq = state["seq"]
            self.sessions, self.positions, self.orders = state["sessions"], state["positions"], state["orders"]

    # -- what PostgreSQL showed

    def observe_session(
        self, session_id: int, balance: Any, positions: list[Row], orders: list[Row], *, active: bool
    ) -> None:
        """Replace what is known of a session by what PostgreSQL shows, when nothing of it is pending.

        `active` is taken for a session that is new to the view.  Managers answer 0 for a session that does not exist,
        so one of which nothing but that is shown stays unknown.
        """
        with self.lock:
            if session_id not in self.sessions:
                if not (balance or positions or orders):
                    return
                self.sessions[session_id] = {**new_session(), "active": active}
            session = self.sessions[session_id]
            session["balance"] = exact(balance, session["balance"])
            for id_ in [id_ for id_, row in self.positions.items() if row["session_id"] == session_id]:
                del self.positions[id_]
            for row in positions:
                self.positions[row["id"]] = {"session_id": session_id, **plain(row)}
            for key in [key for key, row in self.orders.items() if row["session_id"] == session_id]:
                del self.orders[key]
            for row in orders:
                self.orders[str(row.get("client_order_id") or row["id"])] = {"session_id": session_id, **plain(row)}

    # -- answers

    def active_session_id(self) -> int | None:
        """The session begun last among those not ended.  Raises `UnknownLocally` where none was ever seen."""
        with self.lock:
            self._require_history()
            return max((id_ for id_, row in self.sessions.items() if row["active"]), default=None)

    def last_session_id(
        self, now: datetime, within_hours: float = 24.0, strategy_name: str | None = None, symbol: str | None = None
    ) -> int | None:
        """The session begun last within the given hours, of that strategy and symbol."""
        since = now.astimezone(UTC).replace(tzinfo=None) - timedelta(hours=within_hours)
        with self.lock:
            self._require_history()
            return max(
                (
                    id_
                    for id_, row in self.sessions.items()
                    if (row["start_time"] is None or row["start_time"] >= since)
                    and strategy_name in (None, row["strategy_name"])
                    and symbol in (None, row["symbol"])
                ),
                default=None,
            )

    def balance(self, session_id: int | None) -> Decimal:
        """The balance of a session.  Raises `UnknownLocally`."""
        with self.lock:
            session = self.sessions.get(session_id) if session_id is not None else None
            if session is None or session["balance"] is None:
                raise UnknownLocally(
                    f"the balance of session {session_id} is not known while PostgreSQL is away",
                    hint="the local view knows sessions that this outbox has seen",
                )
            balance: Decimal = session["balance"]
            return balance

    def open_positions(self, session_id: int | None) -> list[Row]:
        """Open positions, oldest first, shaped as the manager's; of every session where `session_id` is None."""
        with self.lock:
            self._require_session(session_id)
            return deepcopy([row for _, row in sorted(self.positions.items()) if _of(row, session_id)])

    def unresolved_orders(self, session_id: int | None) -> list[Row]:
        """Orders neither filled nor dead, oldest first; of every session where `session_id` is None."""
        with self.lock:
            self._require_session(session_id)
            rows = [row for row in self.orders.values() if _of(row, session_id)]
            return deepcopy(sorted(rows, key=lambda row: row["id"]))

    def _require_session(self, session_id: int | None) -> None:
        self._require_history()
        if session_id is not None and session_id not in self.sessions:
            raise UnknownLocally(f"session {session_id} is not known while PostgreSQL is away")

    def _require_history(self) -> None:
        if not self.sessions:
            raise UnknownLocally(
                "no trading session is known while PostgreSQL is away",
                hint="run once with PostgreSQL up: then a restart in the middle of an outage can resume",
            )

    def session_of_position(self, position_id: Any) -> int | None:
        """The session of an open position, or None where the view does not know it."""
        with self.lock:
            row = self.positions.get(position_id)
            return None if row is None else row["session_id"]


def plain(value: Any) -> Any:
    """`value` in types that can be stored exactly: enum members by value, containers copied."""
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(item) for item in value]
    return value


def number(value: Any) -> Decimal:
    """An amount of any type that callers use.  Raises `ValueError`."""
    value = value.item() if hasattr(value, "item") else value
    try:
        found = value if isinstance(value, Decimal) else Decimal(str(value))
    except InvalidOperation:
        raise ValueError(f"{value!r} is not a number") from None
    if not found.is_finite():
        raise ValueError(f"{value!r} is not a finite number")
    return found


def exact(shown: Any, known: Decimal | None) -> Decimal | None:
    """`shown`, a float of a read perhaps, as the exact amount; the known one where they agree."""
    if shown is None:
        return None
    if known is not None and float(known) == float(shown):
        return known
    return number(shown)


def _of(row: Row, session_id: int | None) -> bool:
    return session_id is None or row["session_id"] == session_id


def new_session(
    strategy_name: Any = None,
    symbol: Any = None,
    balance: Decimal | None = None,
    start_time: datetime | None = None,
) -> Row:
    """What is known of a session; None for what is not."""
    return {
        "strategy_name": strategy_name, "symbol": symbol, "balance": balance, "start_time": start_time,
        "active": True,
    }  # fmt: skip
