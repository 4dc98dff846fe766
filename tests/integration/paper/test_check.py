"""The demo's checker must be able to fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import nullcontext
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
    engine = PaperEngine(manager, on_ack=recorder, on_begin=recorder.begin)
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

    assert [record["exit_order_id"] for record in read_record(path) if record["kind"] == "trade"] == ["a"]


class _Growing(type(Path())):  # type: ignore[misc]
    """A file whose last line is finished after its beginning was read."""

    def open(self, *_: Any, **__: Any) -> Any:
        return nullcontext(iter(['{"kind": "bar"}\n', '{"kind": "trade", "size": ', "12}\n"]))


def test_line_that_is_being_written_ends_the_record(tmp_path: Path) -> None:
    assert [record["kind"] for record in read_record(_Growing(tmp_path / "record.jsonl"))] == ["bar"]


class _Killed(BaseException):
    """Ends the engine as a kill does, between a call's return and its line in the record."""


def _killed_in_an_update(manager: DatabaseManager, record: Path) -> tuple[int, str]:
    """Trade until an update of a stop that was acknowledged before: applied, not acknowledged; position and stop."""
    recorder = Recorder(record)
    updated: set[int] = set()
    died_in: list[tuple[int, str]] = []

    def until_killed(kind: str, line: dict[str, Any]) -> None:
        if kind == "position_update" and line["position_id"] in updated:
            died_in.append((line["position_id"], line["stop_loss"]))
            raise _Killed
        if kind == "position_update":
            updated.add(line["position_id"])
        recorder(kind, line)

    engine = PaperEngine(manager, on_ack=until_killed, on_begin=recorder.begin)
    engine.start()
    with pytest.raises(_Killed):
        engine.run(load()[:150])
    recorder.close()
    return died_in[0]


@pytest.fixture
def killed(postgres_url: str, tmp_path: Path) -> Iterator[tuple[DatabaseManager, Path, int, str]]:
    """The manager and record of an engine that was killed in an update, and the position and stop of that."""
    manager, record = DatabaseManager(postgres_url), tmp_path / "record.jsonl"
    position_id, stop = _killed_in_an_update(manager, record)
    yield manager, record, position_id, stop
    manager.close()


def test_an_update_that_a_killed_engine_was_in_is_not_lost(killed: tuple[DatabaseManager, Path, int, str]) -> None:
    """The demo once called it lost: its record had the stop before, PostgreSQL the one of the call it died in."""
    manager, record, _, _ = killed

    at_the_kill = compare(read_record(record), manager.engine)
    Recorder(record).close()
    after_a_restart = compare(read_record(record), manager.engine)

    assert (at_the_kill.lost, at_the_kill.findings) == (0, [])
    assert (after_a_restart.lost, after_a_restart.findings) == (0, [])


def test_older_stop_than_acknowledged_counts_as_lost_after_a_kill(
    killed: tuple[DatabaseManager, Path, int, str],
) -> None:
    manager, record, position_id, stop = killed
    _execute(manager.engine, f"UPDATE positions SET stop_loss = stop_loss + 1 WHERE id = {position_id}")

    report = compare(read_record(record), manager.engine)

    assert (report.lost, report.ok, len(report.findings)) == (1, False, 1)
    assert report.findings[0].startswith(f"position {position_id} has stop ")
    assert stop not in report.findings[0]


def test_update_acknowledged_after_the_kill_alone_counts_as_lost(
    killed: tuple[DatabaseManager, Path, int, str],
) -> None:
    manager, record, position_id, _ = killed
    recorder = Recorder(record)
    recorder("position_update", {"position_id": position_id, "stop_loss": "1.00000000"})
    recorder.close()

    report = compare(read_record(record), manager.engine)

    assert (report.lost, len(report.findings)) == (1, 1)


def test_an_update_that_failed_and_is_in_the_database_is_reported(
    killed: tuple[DatabaseManager, Path, int, str],
) -> None:
    """A process that writes another line has survived the call: it was told that nothing was written."""
    manager, record, position_id, stop = killed
    lines = [*read_record(record), {"kind": "bar", "index": 1}]

    report = compare(lines, manager.engine)

    assert (report.lost, len(report.findings)) == (1, 1)
    assert f"position {position_id} has stop {stop} instead of" in report.findings[0]
    assert report.findings[0].endswith("which is that of a call that failed")
