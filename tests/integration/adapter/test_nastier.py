"""The nastier habits: as without us while PostgreSQL is up, and right, refused or stopping the line after a delay."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DataError, StatementError

from outbox import (
    ConfigError,
    EntryStatus,
    IdempotencyConflict,
    InvalidEntry,
    Outbox,
    OutboxConfig,
    PostgresTarget,
    Relay,
)
from outbox.integrations.durable import DurableDatabaseManager, ManagerOperation
from outbox.testing import PostgresServer
from tests.unit.fakes.waiting import LONG, until

from .nastier import NASTIER_OPERATIONS, Kind, NastierManager

CONFIG = OutboxConfig(backoff_base=0.05, backoff_cap=0.3, max_retries=2)


@dataclass
class Scene:
    """A wrapped manager, in its session 1, whose calls are delivered when `deliver` is called."""

    manager: Any
    box: Outbox
    relay: Relay
    plain: NastierManager

    def deliver(self) -> bool:
        return self.relay.drain(timeout=LONG)

    def rows(self, sql: str) -> list[Any]:
        with self.plain.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(text(sql))]

    def dead(self) -> list[tuple[str, str]]:
        return [(entry.operation, str(entry.error)) for entry in self.box.dead_letters()]


@contextmanager
def scene(url: str, folder: Path, *, online: bool = False, **options: Any) -> Iterator[Scene]:
    factory = functools.partial(NastierManager, url, **options)
    plain = factory()
    with Outbox.open(folder, CONFIG) as box:
        durable = DurableDatabaseManager(factory, box, NASTIER_OPERATIONS)
        relay = Relay(box, PostgresTarget(url, durable.outbox_operations, config=CONFIG))
        if online:
            relay.start()
        durable.create_trading_session("day")
        try:
            yield Scene(durable, box, relay, plain)
        finally:
            relay.stop()
            durable.detach_outbox()
            durable._host.built.close()
            plain.close()


@pytest.fixture
def late(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    """Nothing is delivered before `deliver`."""
    with scene(postgres_url, outbox_dir) as made:
        yield made


CASES: dict[str, Callable[[Any], Any]] = {
    "positional_only": lambda m: m.positional_only("a", more="b"),
    "positional_only, by name": lambda m: m.positional_only(name="a"),
    "starred": lambda m: m.starred("a", "b", "c", suffix="!", other="d"),
    "starred, by their own name": lambda m: m.starred("a", others="d"),
    "starred, one": lambda m: m.starred(first="a"),
    "savepoint_object": lambda m: m.savepoint_object("a"),
    "begin_block": lambda m: m.begin_block("a"),
    "text_insert": lambda m: m.text_insert("a"),
    "bulk": lambda m: m.bulk("a"),
    "commits_and_then_violates": lambda m: m.commits_and_then_violates("a"),
    "swallows_and_goes_on": lambda m: m.swallows_and_goes_on("a"),
    "tries_again": lambda m: [m.tries_again("a") for _ in range(4)],
    "asks_its_dialect": lambda m: m.asks_its_dialect("a"),
    "only_once": lambda m: [m.only_once("a"), m.only_once("b"), m.only_once("a")],
    "note": lambda m: m.note(Kind.ENTRY, {"a": [1, {"b": "c"}]}),
    "note, by name": lambda m: m.note("ENTRY"),
    "note, no member": lambda m: m.note("exit"),
    "note, not for JSON": lambda m: m.note(Kind.ENTRY, {"a": Decimal(1)}),
    "swallowed_refusal": lambda m: [m.swallowed_refusal(1), m.swallowed_refusal(Decimal(10) ** 12)],
    "answers_with_its_own_error": lambda m: m.answers_with_its_own_error("a"),
    "core_position": lambda m: m.core_position(1),
    "core_position_by_parameters": lambda m: m.core_position_by_parameters(1),
    "found_position": lambda m: [m.found_position(1, "a"), m.found_position(2, "a")],
    "touch": lambda m: m.touch(),
    "in_another_zone": lambda m: m.in_another_zone("a"),
}
TABLES = (
    # A row that a Core statement makes on the side gets its id behind the reserved ones.
    "SELECT regexp_replace(session_name, '[0-9:.]{15}', 'T') FROM trading_sessions ORDER BY id",
    "SELECT id, side, size, client_order_id FROM positions ORDER BY id",
    "SELECT name, value FROM counters ORDER BY name",
    "SELECT regexp_replace(message, '[0-9:.]{15}', 'T') FROM system_events ORDER BY message",
    "SELECT id, kind, details::text FROM notes ORDER BY id",
)


def outcome(call: Callable[[Any], Any], manager: Any) -> Any:
    try:
        return call(manager)
    except Exception as exc:  # noqa: BLE001 - what is raised is what is compared
        return type(exc)


@pytest.mark.parametrize("name", CASES)
def test_while_postgresql_is_up_it_is_as_without_us(
    name: str, postgres_url: str, postgres_server: PostgresServer, outbox_dir: Path
) -> None:
    other = postgres_url.rpartition("/")[2] + "_plain"
    plain = NastierManager(postgres_server.create_database(other))
    plain.create_trading_session("day")
    with scene(postgres_url, outbox_dir, online=True) as here:
        assert outcome(CASES[name], here.manager) == outcome(CASES[name], plain)
        with plain.engine.connect() as connection:
            expected = [[tuple(row) for row in connection.execute(text(sql))] for sql in TABLES]
        assert [here.rows(sql) for sql in TABLES] == expected
        assert here.dead() == []
        # A call is answered before its delivery is recorded.
        until(lambda: here.box.status().pending == 0)
    plain.close()
    postgres_server.drop_database(other)


@pytest.mark.parametrize(
    "name", ["check_then_bump", "go_around", "by_second_engine", "by_driver", "by_session_of_the_engine"]
)
def test_connection_of_its_own_is_refused_at_the_call(name: str, late: Scene) -> None:
    before = late.box.status().acknowledged
    with pytest.raises(ConfigError, match="connection of its own"):
        getattr(late.manager, name)("a")
    assert late.box.status().acknowledged == before
    assert late.rows("SELECT * FROM counters") == []


def test_connection_of_its_own_waits_after_an_outage(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    """While PostgreSQL is away a rehearsal cannot see whose connection the method asks for."""
    with scene(own_postgres.url(), outbox_dir) as here:
        own_postgres.kill()
        here.manager._host.built.engine.dispose()
        assert here.manager.go_around("a") is True
        own_postgres.start()
        assert not here.relay.drain(timeout=2.0)
        status = here.box.status()
        assert (status.pending, status.dead_letters) == (1, 0)
        assert "connection of its own" in (status.relay.last_error or "")
        here.manager._host.built.engine.dispose()
        here.plain.engine.dispose()
        assert here.rows("SELECT * FROM counters") == []


@pytest.mark.parametrize("name", ["serializable", "serializable_by_option"])
def test_isolation_level_of_its_own_waits_and_writes_nothing(name: str, late: Scene) -> None:
    assert getattr(late.manager, name)("a") is True
    assert not late.relay.drain(timeout=1.0)
    status = late.box.status()
    assert (status.pending, status.dead_letters) == (1, 0)
    assert "isolation level" in (status.relay.last_error or "")
    assert late.rows("SELECT * FROM counters") == []


def test_another_database_is_none_of_our_business(postgres_server: PostgresServer, late: Scene) -> None:
    other = postgres_server.create_database("elsewhere")
    elsewhere = NastierManager(other)
    late.manager._host.built.second_engine = elsewhere.engine
    assert late.manager.by_second_engine("a") is True
    assert late.deliver()
    # It wrote nothing here, so it is not taken for applied where rows are asked for; its answer counts.
    assert late.dead() == []
    with elsewhere.engine.connect() as connection:
        assert connection.execute(text("SELECT name FROM counters")).scalars().all() == ["a"]
    elsewhere.close()
    postgres_server.drop_database("elsewhere")


def test_ids_given_without_postgresql_are_those_of_core_inserts_too(late: Scene) -> None:
    given = [late.manager.core_position(1), late.manager.log_position("long", 2)]
    given += [late.manager.core_position_by_parameters(3), late.manager.found_position(4, "c")]
    given += [late.manager.text_position(5)]
    assert late.deliver()
    assert late.dead() == []
    assert late.rows("SELECT id, size FROM positions ORDER BY size") == [
        (id_, Decimal(size)) for size, id_ in enumerate(given, 1)
    ]


def test_id_that_cannot_be_given_parks_its_operation(late: Scene) -> None:
    late.manager.selected_position(1)
    assert not late.relay.drain(timeout=1.0)
    error = late.box.status().relay.last_error or ""
    assert "past the ORM" in error
    assert "without creates=" in error
    assert late.rows("SELECT * FROM positions") == []
    assert late.box.status().dead_letters == 0


def test_an_id_that_is_not_the_callers_is_reported(late: Scene) -> None:
    there = late.plain.found_position(1, "c")
    given = late.manager.found_position(2, "c")
    assert given != there
    assert late.deliver()
    (alarm,) = late.box.status().alarms.values()
    assert f"id {given} of positions" in alarm
    assert f"answered with {there}" in alarm


def test_times_in_core_statements_are_those_of_the_call(late: Scene) -> None:
    before = datetime.now(UTC)
    late.manager.log_position("long", 1)
    late.manager.touch()
    late.manager.end_trading_session(late.manager._current_session_id)
    after = datetime.now(UTC)
    assert late.deliver()
    times = late.rows(
        "SELECT entry_time, updated_at, started.start_time AT TIME ZONE 'UTC', ended.end_time AT TIME ZONE 'UTC' "
        "FROM positions, trading_sessions AS started, trading_sessions AS ended "
        "WHERE started.session_name = 'touched' AND ended.end_time IS NOT NULL"
    )[0]
    assert all(before < time < after for time in times), (before, times, after)


def test_a_zone_of_one_call_does_not_reach_the_next(late: Scene) -> None:
    late.manager.in_another_zone("a")
    late.manager.zone()
    assert late.deliver()
    assert late.rows("SELECT message FROM system_events WHERE message NOT LIKE 'session%' ORDER BY id") == [
        ("a",),
        *late.rows("SHOW timezone"),
    ]


def test_value_unfit_for_its_column_is_refused_before_it_is_stored(late: Scene) -> None:
    before = late.box.status().acknowledged
    with pytest.raises(StatementError):
        late.manager.note(Kind.ENTRY, {"a": Decimal(1)})
    with pytest.raises(StatementError):
        late.manager.note("exit")
    with pytest.raises(DataError):
        late.manager.log_position("sideways and far too long", 1)
    assert late.manager.swallowed_refusal(Decimal(10) ** 12) is False
    assert late.box.status().acknowledged == before
    assert late.manager.note("ENTRY") == 1


def test_keyword_with_a_name_that_python_takes_by_position_is_refused(late: Scene) -> None:
    assert late.manager.positional_only("a", more="b") is True
    assert late.manager.starred("a", others="b") is True
    with pytest.raises(InvalidEntry, match="'names' as a further keyword"):
        late.manager.starred("a", names=["b"])
    assert late.deliver()
    assert late.rows("SELECT name, value FROM counters ORDER BY name") == [("a", 1), ("ab", 1), ("b", 1)]


def test_json_functions_of_the_managers_engine_are_used(postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, lenient_json=True) as here:
        details = {"price": Decimal("1.50"), "at": datetime(2024, 1, 2, tzinfo=UTC), "deep": [{"er": Decimal(2)}]}
        here.manager.note(Kind.ENTRY, details)
        assert here.deliver()
        assert here.dead() == []
        assert here.rows("SELECT details FROM notes") == [(json.loads(json.dumps(details, default=str)),)]


def test_the_managers_own_memory_is_touched_once(late: Scene) -> None:
    assert late.manager.only_once("a") is True
    assert late.manager._host.built.seen == {"a"}
    assert late.deliver()
    assert late.dead() == []
    assert late.manager._host.built.seen == {"a"}
    assert late.rows("SELECT name FROM counters") == [("a",)]


def test_refused_call_is_a_dead_letter_and_holds_its_session_back(late: Scene) -> None:
    manager = late.manager
    first = manager.log_position("long", 1)
    assert manager.update_position(99, stop_loss=1) is True
    assert manager.update_position(first, stop_loss=2) is True
    other = manager.create_trading_session("other")
    second = manager.log_position("short", 1)
    assert late.deliver()
    ((operation, error),) = late.dead()
    assert operation == "update_position"
    assert "answered False" in error
    assert late.rows("SELECT id, session_id, stop_loss FROM positions ORDER BY id") == [
        (first, 1, None),
        (second, other, None),
    ]
    # Whose answer is known: the rest of its session follows.
    (entry,) = late.box.dead_letters()
    late.box.discard(entry.seq, "there is no such position")
    assert late.deliver()
    assert late.rows(f"SELECT stop_loss FROM positions WHERE id = {first}") == [(Decimal(2),)]


def test_writes_of_a_dead_letter_before_its_failure_are_undone(late: Scene) -> None:
    late.manager.commits_and_then_violates("a")
    late.manager.tries_again("b")
    late.manager.swallowed_refusal("1; DROP")
    assert late.deliver()
    # It had committed when it raised: that stays, as without us.
    assert [operation for operation, _ in late.dead()] == ["swallowed_refusal"]
    assert late.rows("SELECT name FROM counters") == [("b 0",)]
    assert late.rows("SELECT count(*) FROM system_events WHERE message = 'a'") == [(1,)]
    applied = [entry for entry in late.box.ledger() if entry.operation == "commits_and_then_violates"]
    assert [entry.status for entry in applied] == [EntryStatus.COMPLETED]


def test_the_same_intent_twice_in_one_block_is_one(late: Scene) -> None:
    manager = late.manager
    manager.update_balance(102)
    for change in (3, -5):
        with manager.atomic_balance_update(change, "seen"):
            pass
    assert late.deliver()
    with manager.atomic_balance_update(-1, "fee", correlation_id="outer"):
        first = manager.log_position("long", 1, client_order_id="c")
        assert manager.log_position("long", 1, client_order_id="c") == first
        with pytest.raises(IdempotencyConflict, match="in this block"):
            manager.log_position("long", 2, client_order_id="c")
        for _ in range(2):
            with manager.atomic_balance_update(-2, "inner", correlation_id="inner") as told:
                assert (told["old_balance"], told["new_balance"]) == (99, 97)
    assert late.deliver()
    assert late.dead() == []
    assert late.rows("SELECT id, size FROM positions") == [(first, Decimal(1))]
    assert late.plain.get_current_balance(1) == 97.0


@pytest.mark.parametrize("online", [False, True])
def test_threads_change_one_balance_and_every_change_counts(postgres_url: str, outbox_dir: Path, online: bool) -> None:
    with scene(postgres_url, outbox_dir, online=online) as here:
        here.manager.update_balance(100)

        def work(name: int) -> None:
            for _ in range(5):
                with here.manager.atomic_balance_update(1, "tick"):
                    here.manager.bump(f"by {name}")

        with ThreadPoolExecutor(6) as pool:
            list(pool.map(work, range(6)))
        assert here.deliver()
        assert (here.dead(), here.box.status().alarms) == ([], {})
        assert here.plain.get_current_balance(1) == 130.0
        assert here.rows("SELECT name, value FROM counters ORDER BY name") == [(f"by {name}", 5) for name in range(6)]


def test_the_class_can_be_used_as_a_class(postgres_url: str) -> None:
    durable_class: Any = DurableDatabaseManager.of(NastierManager)
    assert durable_class.LIMIT == 7
    assert durable_class.helper(1) == 2
    assert inspect.signature(durable_class(postgres_url).helper) == inspect.signature(NastierManager.helper)
    with pytest.raises(AttributeError, match="nothing"):
        _ = durable_class.nothing
    with durable_class.connected_to(postgres_url) as durable:
        assert type(durable).__mro__[2] is DurableDatabaseManager
        assert isinstance(durable, NastierManager)
        assert durable.LIMIT == 7
        assert durable.get_current_balance(1) == 0.0


class Asynchronous(NastierManager):
    async def bump(self, name: str) -> bool:  # type: ignore[override]
        return True


@pytest.mark.parametrize(
    ("manager_class", "name", "why"),
    [
        (Asynchronous, "bump", "asynchronous"),
        (NastierManager, "helper", "staticmethod"),
        (NastierManager, "connected_to", "classmethod"),
    ],
)
def test_declaring_a_method_that_cannot_be_replayed_is_refused(
    postgres_url: str, outbox_dir: Path, manager_class: Any, name: str, why: str
) -> None:
    manager = manager_class(postgres_url)
    with Outbox.open(outbox_dir) as box, pytest.raises(ConfigError, match=why):
        DurableDatabaseManager(manager, box, [ManagerOperation(name)])
    manager.close()
