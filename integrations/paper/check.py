"""The independent record of what the engine was told was durable, and its comparison with PostgreSQL.

The record is a file of JSON lines written by the engine's process right after each critical call returned; the
outbox has no part in it.  The comparison counts what is missing or different (lost) and what is there more than once
(duplicated).
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, text

_Row = Mapping[str, Any]
_Key = tuple[Any, ...]

# kind of record -> the rows that prove it, what identifies one, and what must be equal (record's name -> column).
_PROOFS: dict[str, tuple[str, tuple[str, ...], dict[str, str]]] = {
    "session": (
        "SELECT id AS session_id, symbol, initial_balance FROM trading_sessions",
        ("session_id",),
        {"symbol": "symbol", "initial_balance": "initial_balance"},
    ),
    "order": (
        "SELECT id AS order_id, client_order_id, session_id, symbol, side, quantity FROM orders",
        ("client_order_id",),
        {name: name for name in ("order_id", "session_id", "symbol", "side", "quantity")},
    ),
    "fill": (
        "SELECT client_order_id, exchange_order_id, status, fill_price, fill_quantity, commission FROM orders",
        ("client_order_id",),
        {name: name for name in ("exchange_order_id", "status", "fill_price", "fill_quantity", "commission")},
    ),
    "position": (
        "SELECT id AS position_id, client_order_id, session_id, symbol, side, entry_price, quantity FROM positions",
        ("client_order_id",),
        {name: name for name in ("position_id", "session_id", "symbol", "side", "entry_price", "quantity")},
    ),
    "trade": (
        """SELECT t.id AS trade_id, t.position_id, t.exit_order_id, t.session_id, t.side, t.entry_price, t.exit_price,
        t.quantity, t.pnl, p.status AS position_status FROM trades t LEFT JOIN positions p ON p.id = t.position_id""",
        ("exit_order_id",),
        {
            name: name
            for name in (
                "trade_id",
                "position_id",
                "session_id",
                "side",
                "entry_price",
                "exit_price",
                "quantity",
                "pnl",
            )
        },
    ),
    "balance": (
        "SELECT session_id, correlation_id, update_reason AS reason, total_balance, change FROM account_balances",
        ("session_id", "correlation_id", "reason"),
        {"balance": "total_balance", "change": "change"},
    ),
}
# Rows that the engine itself writes once per key, whatever was recorded: a second one is a duplicate.
_ONCE = ("session", "order", "position", "trade", "balance")


@dataclass
class Report:
    """The outcome of a comparison; counts of acknowledged calls, and one sentence for each finding."""

    acknowledged: int = 0
    applied: int = 0
    lost: int = 0
    duplicated: int = 0
    findings: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether nothing is lost and nothing is there twice."""
        return self.lost == 0 and self.duplicated == 0


class Recorder:
    """Appends one line for each acknowledged call; a line that was written survives the death of the process."""

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def __call__(self, kind: str, record: Mapping[str, Any]) -> None:
        os.write(self._fd, json.dumps({"kind": kind, **record}, default=str).encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)


def read_record(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a record; a last line cut short by a kill is left out, since its call was not acknowledged."""
    with path.open() as lines:
        for line in lines:
            if line.endswith("\n"):
                yield json.loads(line)


def compare(records: Iterable[Mapping[str, Any]], engine: Engine) -> Report:
    """Compare what was acknowledged with what PostgreSQL holds.  Raises `SQLAlchemyError`."""
    report = Report()
    rows = {kind: _rows(engine, sql, identity) for kind, (sql, identity, _) in _PROOFS.items()}
    stops: dict[Any, Mapping[str, Any]] = {}
    for record in records:
        kind = record["kind"]
        if kind == "position_update":
            stops[record["position_id"]] = record  # only the last one can be seen
        elif kind in _PROOFS:
            report.acknowledged += 1
            _check(report, kind, record, rows[kind])
    _check_stops(report, stops, engine)
    for kind in _ONCE:
        for key, found in rows[kind].items():
            if len(found) > 1 and None not in key[:1]:
                report.duplicated += len(found) - 1
                report.findings.append(f"{kind} {_name(key)} is there {len(found)} times")
    return report


def _check(report: Report, kind: str, record: Mapping[str, Any], rows: Mapping[_Key, list[_Row]]) -> None:
    _, identity, equal = _PROOFS[kind]
    key = tuple(record[name] for name in identity)
    found = rows.get(key)
    if not found:
        report.lost += 1
        report.findings.append(f"{kind} {_name(key)} is missing")
        return
    wrong = [
        f"{name} is {found[0][column]} instead of {record[name]}"
        for name, column in equal.items()
        if not _same(record[name], found[0][column])
    ]
    if kind == "trade" and record["position_id"] is not None and found[0]["position_status"] != "closed":
        wrong.append(f"position {record['position_id']} is {found[0]['position_status']} instead of closed")
    if wrong:
        report.lost += 1
        report.findings.append(f"{kind} {_name(key)}: {'; '.join(wrong)}")
        return
    report.applied += 1


def _check_stops(report: Report, stops: Mapping[Any, Mapping[str, Any]], engine: Engine) -> None:
    with engine.connect() as connection:
        found = {row.id: row.stop_loss for row in connection.execute(text("SELECT id, stop_loss FROM positions"))}
    for position_id, record in stops.items():
        report.acknowledged += 1
        if _same(record["stop_loss"], found.get(position_id)):
            report.applied += 1
        else:
            report.lost += 1
            stop = found.get(position_id)
            report.findings.append(f"position {position_id} has stop {stop} instead of {record['stop_loss']}")


def _rows(engine: Engine, sql: str, identity: tuple[str, ...]) -> dict[_Key, list[_Row]]:
    found: dict[_Key, list[_Row]] = {}
    with engine.connect() as connection:
        for row in connection.execute(text(sql)).mappings():
            found.setdefault(tuple(row[name] for name in identity), []).append(dict(row))
    return found


def _same(recorded: Any, stored: Any) -> bool:
    if isinstance(stored, Decimal) and recorded is not None:
        return Decimal(recorded) == stored
    return bool(recorded == stored)


def _name(key: _Key) -> str:
    return " ".join(str(part) for part in key if part is not None)


def summary(records: Iterable[Mapping[str, Any]]) -> str:
    """How many calls of each kind were acknowledged, for people."""
    counts = Counter(record["kind"] for record in records)
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
