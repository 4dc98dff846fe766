"""What is written: a trade of 600 bytes, and one of 25 typed columns for draining."""

from __future__ import annotations

import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from itertools import islice
from typing import Any
from uuid import UUID

import psycopg2

from outbox import Operation, Outbox, OutboxConfig
from outbox.store.appending import Append

START = datetime(2024, 5, 1, 9, 30, tzinfo=UTC)
# Of one bulk commit of `fill`.
_CHUNK = 2000

TRADE_COLUMNS = """
    client_order_id text PRIMARY KEY, symbol text, side text, price numeric(18, 8), quantity numeric(18, 8),
    fee numeric(18, 8), fee_currency text, traded_at timestamptz, exchange text, order_type text, strategy text,
    session_id bigint, position_id bigint, realized_pnl numeric(18, 8), notes text"""
WIDE_COLUMNS = """
    id bigint PRIMARY KEY, client_order_id text, symbol text, side text, order_type text, status text,
    price numeric(18, 8), quantity numeric(18, 8), filled numeric(18, 8), fee numeric(18, 8), fee_currency text,
    traded_at timestamptz, captured_at timestamptz, trade_day date, exchange text, strategy text, session_id bigint,
    position_id integer, leverage real, slippage double precision, is_maker boolean, realized_pnl numeric(18, 8),
    reference uuid, tags json, notes text"""
TICK_COLUMNS = "id bigint PRIMARY KEY, symbol text, price numeric(18, 8), traded_at timestamptz"

TRADE = Operation("log_trade", table="trades", identity="client_order_id", order_by="symbol")
TICK = Operation("log_tick", table="ticks", identity="id", order_by="symbol")
# For `OUTBOX_OPERATIONS=benchmarks.workload:OPERATIONS`.
OPERATIONS = [TRADE, TICK]


def trade(number: int) -> dict[str, Any]:
    """Arguments of 600 bytes of JSON."""
    return {
        "client_order_id": f"ORD-{number:012d}",
        "symbol": f"SYM{number % 50:02d}-USDT",
        "side": "buy" if number % 2 else "sell",
        "price": Decimal("64250.10"),
        "quantity": Decimal("0.01250000"),
        "fee": Decimal("0.03210000"),
        "fee_currency": "USDT",
        "traded_at": START + timedelta(microseconds=number),
        "exchange": "example",
        "order_type": "limit",
        "strategy": "momentum-breakout-v3",
        "session_id": 17,
        "position_id": 1_000_000 + number,
        "realized_pnl": Decimal("12.50"),
        "notes": ("signal 0.82, spread 0.4 bp; " * 9)[:247],
    }


def wide(number: int) -> dict[str, Any]:
    """Arguments for the 25 columns of `WIDE_COLUMNS`."""
    at = START + timedelta(milliseconds=number)
    return {
        "id": number,
        "client_order_id": f"ORD-{number:012d}",
        "symbol": f"SYM{number % 50:02d}-USDT",
        "side": "buy" if number % 2 else "sell",
        "order_type": "limit",
        "status": "filled",
        "price": Decimal(6_425_010 + number % 1000) / 100,
        "quantity": Decimal("0.01250000"),
        "filled": Decimal("0.01250000"),
        "fee": Decimal("0.03210000"),
        "fee_currency": "USDT",
        "traded_at": at,
        "captured_at": at + timedelta(microseconds=250),
        "trade_day": at.date(),
        "exchange": "example",
        "strategy": "momentum-breakout-v3",
        "session_id": 17,
        "position_id": number % 10_000,
        "leverage": 2.5,
        "slippage": 0.00042,
        "is_maker": number % 3 == 0,
        "realized_pnl": Decimal("12.50"),
        "reference": UUID(int=number),
        "tags": ["swing", "auto"],
        "notes": "signal 0.82, spread 0.4 bp",
    }


def tick(number: int) -> dict[str, Any]:
    """Small arguments, for stores with very many entries."""
    return {
        "id": number,
        "symbol": f"SYM{number % 50:02d}-USDT",
        "price": Decimal(6_425_010 + number % 1000) / 100,
        "traded_at": START + timedelta(milliseconds=number),
    }


def fill(box: Outbox, operation: Operation, rows: Iterable[dict[str, Any]]) -> int:
    """Enqueue many entries quickly, each a unit of its own; returns how many.

    One commit for many submissions is what the group commit does when many threads enqueue at once.
    """
    total, source = 0, iter(rows)
    while chunk := list(islice(source, _CHUNK)):
        box.store.append([Append([box._prepare(operation.name, args, None, None)[0]]) for args in chunk])
        total += len(chunk)
    return total


def config(**settings: Any) -> OutboxConfig:
    """Settings of a benchmark's store: the defaults, with room for any backlog."""
    return OutboxConfig(**{"max_size_mb": 64 * 1024, **settings})


def create_table(url: str, name: str, columns: str) -> None:
    """Drop and create a table."""
    execute(url, f"DROP TABLE IF EXISTS {name}; CREATE TABLE {name} ({columns})")


def execute(url: str, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    """Run SQL on a connection of its own; returns the rows, if any."""
    connection = psycopg2.connect(url)
    try:
        with connection, connection.cursor() as cursor:
            cursor.execute(sql, parameters or None)
            return list(cursor.fetchall()) if cursor.description else []
    finally:
        connection.close()


def wal_flushes(url: str) -> int | None:
    """How often PostgreSQL's client sessions have flushed its log, by its own count; None where it does not say."""
    columns = execute(url, "SELECT 1 FROM pg_attribute WHERE attrelid = 'pg_stat_io'::regclass AND attname = 'fsyncs'")
    version = int(execute(url, "SHOW server_version_num")[0][0])
    if not columns or version < 180_000:
        return None
    # A session's counts arrive when it ends.
    time.sleep(0.1)
    sql = "SELECT sum(fsyncs)::bigint FROM pg_stat_io WHERE object = 'wal' AND backend_type = 'client backend'"
    return int(execute(url, sql)[0][0] or 0)
