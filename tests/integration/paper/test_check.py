"""The demo's checker must be able to fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, text

from outbox.integrations.paper import DatabaseManager, PaperEngine, load
from outbox.integrations.paper.check import Recorder, compare, read_record


@pytest.fixture
def traded(postgres_url: str, tmp_path: Path) -> Iterator[tuple[list[dict[str, Any]], Engine]]:
    """A short session of the plain engine, recorded."""
    record = tmp_path / "record.jsonl"
    recorder = Recorder(record)
    manager = DatabaseManager(postgres_url)
    engine = PaperEngine(manager, on_ack=recorder)
    engine.start()
    engine.run(load()[:60])
    recorder.close()
    yield list(read_record(record)), manager.engine
    manager.close()


def _execute(engine: Engine, statement: str) -> None:
    with engine.begin() as connection:
        assert connection.execute(text(statement)).rowcount >= 1


def test_an_untouched_database_agrees_with_the_record(traded: tuple[list[dict[str, Any]], Engine]) -> None:
    records, engine = traded

    report = compare(records, engine)

    assert report.acknowledged > 100
    assert (report.applied, report.lost, report.duplicated, report.findings) == (report.acknowledged, 0, 0, [])


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM trades WHERE id = (SELECT min(id) FROM trades)",
        "DELETE FROM account_balances WHERE id = (SELECT max(id) FROM account_balances)",
        "UPDATE trades SET pnl = pnl + 0.00000001 WHERE id = (SELECT min(id) FROM trades)",
        "UPDATE positions SET quantity = quantity * 2 WHERE id = (SELECT max(id) FROM positions)",
        "UPDATE orders SET exchange_order_id = 'x' WHERE id = (SELECT min(id) FROM orders)",
    ],
)
def test_a_removed_or_changed_row_is_lost(traded: tuple[list[dict[str, Any]], Engine], statement: str) -> None:
    records, engine = traded
    _execute(engine, statement)

    report = compare(records, engine)

    assert (report.lost, report.duplicated, report.ok) == (1, 0, False)
    assert report.applied == report.acknowledged - 1
    assert len(report.findings) == 1


@pytest.mark.parametrize("table", ["trades", "account_balances", "positions"])
def test_a_doubled_row_is_a_duplicate(traded: tuple[list[dict[str, Any]], Engine], table: str) -> None:
    records, engine = traded
    with engine.connect() as connection:
        columns = connection.execute(
            text("SELECT column_name FROM information_schema.columns WHERE table_name = :t AND column_name <> 'id'"),
            {"t": table},
        ).scalars()
        names = ", ".join(f'"{name}"' for name in columns)
    _execute(
        engine,
        f"INSERT INTO {table} ({names}) SELECT {names} FROM {table} WHERE id = (SELECT max(id) FROM {table})",
    )

    report = compare(records, engine)

    assert (report.lost, report.duplicated, report.ok) == (0, 1, False)
    assert len(report.findings) == 1


def test_a_record_cut_short_by_a_kill_is_read_to_its_last_whole_line(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    recorder = Recorder(path)
    recorder("trade", {"exit_order_id": "a"})
    recorder.close()
    with path.open("a") as file:
        file.write(json.dumps({"kind": "trade", "exit_order_id": "b"})[:20])

    assert [record["exit_order_id"] for record in read_record(path)] == ["a"]
