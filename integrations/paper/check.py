"""An independent record of the calls that the engine saw succeed, compared with PostgreSQL.

The record is a file of JSON lines written by the engine's process right after each critical call returned; the
outbox has no part in it.  The comparison counts what is missing or different (lost) and what is there more than once
(duplicated).

A kill may come between a call's commit and the line that acknowledges it.  An added row without such a line is simply
not looked for, but an update replaces a value that was acknowledged before.  So a line is written before each update
too, and the value of the update that the process died in is as good as the acknowledged one.
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
# Lines that acknowledge nothing: a process began to write, a call began.
_START, _BEGUN = "start", "begun"


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
    """Appends one line for each acknowledged call; a line that was written survives the death of the process.

    One object for each process and file: its first line ends what the process before it had begun.
    """

    def __init__(self, path: Path) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        self(_START, {})

    def begin(self, kind: str, record: Mapping[str, Any]) -> None:
        """Note a call before it is made; `record` is what acknowledges it, if it succeeds."""
        self(_BEGUN, {"call": kind, **record})

    def __call__(self, kind: str, record: Mapping[str, Any]) -> None:
        os.write(self._fd, json.dumps({"kind": kind, **record}, default=str).encode() + b"\n")

    def close(self) -> None:
        os.close(self._fd)


def read_record(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a record; a last line cut short by a kill is left out, since its call was not acknowledged."""
    with path.open() as lines:
        for line in lines:
            if not line.endswith("\n"):
                # It may be written just now, and its rest is no line.
                return
            yield json.loads(line)


def compare(records: Iterable[Mapping[str, Any]], engine: Engine) -> Report:
    """Compare what was acknowledged with what PostgreSQL holds.  Raises `SQLAlchemyError`."""
    report = Report()
    rows = {kind: _rows(engine, sql, identity) for kind, (sql, identity, _) in _PROOFS.items()}
    stops = _Stops()
    for record in records:
        kind = record["kind"]
        stops.read(record)
        if kind in _PROOFS:
            report.acknowledged += 1
            _check(report, kind, record, rows[kind])
    stops.check(report, engine)
    for kind in _ONCE:
        for key, found in rows[kind].items():
            if len(found) > 1 and None not in key[:1]:
                report.duplicated += len(found) - 1
                report.findings.append(f"{kind} {_name(key)} is there {len(found)} times")
    return report


class _Stops:
    """Which stops the positions may have, from the record's lines in their order."""

    def __init__(self) -> None:
        # The last acknowledged one of each position, since an update replaces the one before.
        self._acknowledged: dict[Any, Any] = {}
        # Newer ones: of the call that a process died in, and of calls that failed.
        self._unanswered: dict[Any, list[Any]] = {}
        self._failed: dict[Any, list[Any]] = {}
        self._begun: Mapping[str, Any] | None = None

    def read(self, record: Mapping[str, Any]) -> None:
        """Take one line into account."""
        kind, begun, self._begun = record["kind"], self._begun, None
        if kind == "position_update":
            position_id = record["position_id"]
            self._acknowledged[position_id] = record["stop_loss"]
            self._unanswered.pop(position_id, None)
            self._failed.pop(position_id, None)
        elif begun is not None:
            # A process that lives writes the acknowledgement next, or the call has failed.
            self._keep(begun, self._unanswered if kind == _START else self._failed)
        if kind == _BEGUN:
            self._begun = record

    def check(self, report: Report, engine: Engine) -> None:
        """Compare the acknowledged stops with those in PostgreSQL."""
        if self._begun is not None:
            self._keep(self._begun, self._unanswered)
            self._begun = None
        with engine.connect() as connection:
            found = {row.id: row.stop_loss for row in connection.execute(text("SELECT id, stop_loss FROM positions"))}
        for position_id, acknowledged in self._acknowledged.items():
            report.acknowledged += 1
            stop = found.get(position_id)
            if any(_same(one, stop) for one in (acknowledged, *self._unanswered.get(position_id, ()))):
                report.applied += 1
                continue
            report.lost += 1
            failed = any(_same(one, stop) for one in self._failed.get(position_id, ()))
            why = ", which is that of a call that failed" if failed else ""
            report.findings.append(f"position {position_id} has stop {stop} instead of {acknowledged}{why}")

    @staticmethod
    def _keep(begun: Mapping[str, Any], stops: dict[Any, list[Any]]) -> None:
        stops.setdefault(begun["position_id"], []).append(begun["stop_loss"])


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
    counts = Counter(record["kind"] for record in records if record["kind"] not in (_START, _BEGUN))
    return ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
