"""Handler operations: effect, receipt and result in one transaction, whatever the handler does wrong."""

from __future__ import annotations

import os
import socket
import threading
from asyncio import CancelledError
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg2
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DBAPIError, IntegrityError, InvalidRequestError

from outbox import (
    Entry,
    EntryStatus,
    Operation,
    Outbox,
    OutboxConfig,
    PostgresTarget,
    Reject,
    Relay,
    RetryLater,
    TargetMisconfigured,
    TargetUnavailable,
)
from outbox.testing import PostgresServer
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench, completed, parked, rejected
from tests.unit.fakes.waiting import LONG, until


@pytest.fixture
def url(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE effects (id serial PRIMARY KEY, n int UNIQUE)")
    return postgres_url


def insert(connection: Connection, entry: Entry) -> int:
    statement = text("INSERT INTO effects (n) VALUES (:n) RETURNING id")
    return int(connection.execute(statement, {"n": entry.args["n"]}).scalar_one())


def bench_with(directory: Path, url: str, handler: Callable[[Connection, Entry], Any], **settings: Any) -> Bench:
    """`special` does what `handler` does; `plain` inserts."""
    operations = (Operation("special", handler=handler), Operation("plain", handler=insert))
    return Bench(directory, url, *operations, **settings)


def effects(bench: Bench) -> list[int]:
    return [row[0] for row in bench.query("SELECT n FROM effects ORDER BY id")]


def test_the_result_is_kept_in_the_receipt_and_in_the_ledger(url: str, outbox_dir: Path) -> None:
    seen: list[Entry] = []

    def handler(connection: Connection, entry: Entry) -> dict[str, Any]:
        seen.append(entry)
        return {"id": insert(connection, entry), "token": UUID(int=5)}

    with bench_with(outbox_dir, url, handler) as bench:
        enqueued = bench.box.enqueue("special", {"n": 7}, order_by="account")
        with Relay(bench.box, bench.target) as relay:
            assert relay.drain(LONG)
        [entry] = bench.box.ledger()
        assert entry.result == {"id": 1, "token": UUID(int=5)}
        assert (entry.status, entry.args) == (EntryStatus.COMPLETED, {"n": 7})
        [(result,)] = bench.query("SELECT result->'$value'->>'id' FROM outbox_receipts")
        assert result == "1"
        # The handler sees the entry as it was enqueued, being applied.
        assert seen == [replace(enqueued, status=EntryStatus.SYNCING)]


@pytest.mark.parametrize("value", [None, 0, "text", [1, 2], {"a": None}])
def test_any_result_is_given_back_when_the_receipt_answers_instead(url: str, outbox_dir: Path, value: Any) -> None:
    calls = []

    def handler(connection: Connection, entry: Entry) -> Any:
        calls.append(insert(connection, entry))
        return value

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 1})
        bench.apply()
        bench.settle(bench.apply())
        [entry] = bench.box.ledger()
        assert entry.result == value
        assert len(calls) == 1


def test_a_result_that_cannot_be_stored_does_not_undo_the_effect(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> object:
        insert(connection, entry)
        return {"cursor": Bench, "nul": "\0"}

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 1})
        bench.settle(bench.apply())
        [entry] = bench.box.ledger()
        assert "Bench" in entry.result["repr"]
        assert effects(bench) == [1]


def test_handlers_and_tables_run_in_the_order_of_their_entries(url: str, outbox_dir: Path) -> None:
    operations = (Operation("row", table="effects"), Operation("call", handler=insert))
    with Bench(outbox_dir, url, *operations) as bench:
        for number in range(20):
            bench.enqueue("call" if number % 3 == 0 else "row", {"n": number})
        assert len(bench.apply().completed) == 20
        assert effects(bench) == list(range(20))


def test_entry_that_its_handler_rejects_is_a_dead_letter(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        insert(connection, entry)
        raise Reject("no such side: 'hold'")

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("plain", {"n": 1})
        bad = bench.enqueue("special", {"n": 2})
        bench.enqueue("plain", {"n": 3})
        with Relay(bench.box, bench.target) as relay:
            assert relay.drain(LONG)
        [letter] = bench.box.dead_letters()
        assert letter.seq == bad
        assert letter.error == "Reject: no such side: 'hold'"
        assert effects(bench) == [1, 3]
        assert bench.receipts() == [1, 3]


def test_a_handler_that_no_longer_fits_the_program_buries_nothing(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        insert(connection, entry, "an argument that is no longer taken")  # type: ignore[call-arg]

    with bench_with(outbox_dir, url, handler) as bench:
        for number in range(5):
            bench.enqueue("special", {"n": number})
        outcome = bench.apply()
        assert "special: every entry of 'special' fails: TypeError" in parked(outcome)
        assert outcome.rejected == []


def test_a_constraint_that_a_handler_breaks_is_a_dead_letter(url: str, outbox_dir: Path) -> None:
    with bench_with(outbox_dir, url, insert) as bench:
        for number in (1, 1, 2):
            bench.enqueue("special", {"n": number})
        outcome = bench.apply()
        assert (completed(outcome), rejected(outcome)) == ([1, 3], [2])
        assert str(outcome.rejected[0][1]).startswith("23505")
        assert outcome.rejected[0][1].permanent


def test_an_unknown_error_of_a_handler_may_pass(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        raise RuntimeError("who knows")

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 1})
        bench.enqueue("plain", {"n": 2})
        outcome = bench.apply()
        assert (completed(outcome), rejected(outcome)) == ([2], [1])
        assert not outcome.rejected[0][1].permanent


@pytest.mark.parametrize("error", [ValueError, ZeroDivisionError, RuntimeError])
def test_error_of_a_handler_that_passes_is_no_dead_letter(url: str, outbox_dir: Path, error: type[Exception]) -> None:
    errors = [error("a service hiccups once")]

    def handler(connection: Connection, entry: Entry) -> int:
        if errors:
            raise errors.pop()
        return insert(connection, entry)

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 1})
        with Relay(bench.box, bench.target) as relay:
            assert relay.drain(LONG)
        assert bench.box.status().dead_letters == 0
        assert effects(bench) == [1]


class _Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("a defect of the class")

    __repr__ = __str__


@pytest.mark.parametrize("error", [SystemExit, CancelledError, GeneratorExit, KeyboardInterrupt, _Mute])
def test_odd_exception_of_a_handler_concerns_its_entry_only(
    url: str, outbox_dir: Path, error: type[BaseException]
) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        raise error("of something that the handler called")

    with bench_with(outbox_dir, url, handler, max_retries=0) as bench:
        bench.enqueue("special", {"n": 1})
        bench.enqueue("plain", {"n": 2})
        with Relay(bench.box, bench.target) as relay:
            assert relay.drain(LONG)
            assert relay.died is None
        [dead] = bench.box.dead_letters()
        assert error.__name__ in (dead.error or "")
        assert effects(bench) == [2]


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_exit_that_is_raised_in_the_main_thread_ends_the_program(
    url: str, outbox_dir: Path, error: type[BaseException]
) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        raise error("as a signal handler does")

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 1})
        with pytest.raises(error):
            bench.apply()
        assert bench.receipts() == []


def test_retry_later_counts_no_attempt_and_holds_its_key(url: str, outbox_dir: Path) -> None:
    left = [3]

    def handler(connection: Connection, entry: Entry) -> int:
        if entry.args["n"] == 1 and left[0]:
            left[0] -= 1
            raise RetryLater("the exchange is closed")
        return insert(connection, entry)

    with bench_with(outbox_dir, url, handler, max_retries=1, backoff_base=0.01, backoff_cap=0.02) as bench:
        for number in (1, 2):
            bench.enqueue("special", {"n": number}, order_by="k")
        bench.enqueue("special", {"n": 3}, order_by="other")
        with Relay(bench.box, bench.target) as relay:
            assert relay.drain(LONG)
        assert (bench.box.status().dead_letters, left) == (0, [0])
        assert effects(bench) == [3, 1, 2]


def test_entry_that_waits_for_retry_later_needs_an_operator(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        raise RetryLater("the exchange is closed")

    with bench_with(outbox_dir, url, handler, backoff_base=0.01, backoff_cap=0.02) as bench:
        bench.enqueue("special", {"n": 1}, order_by="k")
        with Relay(bench.box, bench.target) as relay:
            assert not relay.drain(timeout=0.3)
            said = bench.box.status().needs_operator
    assert said == ["entry 1 waits, and its ordering key: the exchange is closed"]


def test_operation_with_only_unknown_errors_is_parked(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        raise RuntimeError("the handler itself is broken")

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 1})
        bench.enqueue("special", {"n": 2})
        outcome = bench.apply()
        assert "every entry of 'special' fails" in parked(outcome)
        assert (outcome.rejected, outcome.interruption) == ([], None)


def test_unknown_errors_beside_a_success_reject_only_their_entries(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        raise RuntimeError("who knows")

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 1})
        bench.enqueue("special", {"n": 2})
        bench.enqueue("plain", {"n": 3})
        outcome = bench.apply()
        assert outcome.interruption is None
        assert (completed(outcome), rejected(outcome)) == ([3], [1, 2])


@pytest.mark.parametrize("members", [1, 2])
def test_unknown_error_of_a_single_unit_rejects_it_and_parks_nothing(url: str, outbox_dir: Path, members: int) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        raise RuntimeError("who knows")

    with bench_with(outbox_dir, url, handler) as bench:
        with bench.box.transaction() as transaction:
            for number in range(members):
                transaction.enqueue("special", {"n": number})
        outcome = bench.apply()
        assert outcome.interruption is None
        assert rejected(outcome) == list(range(1, members + 1))


def test_a_swallowed_database_error_is_no_success(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> bool:
        insert(connection, entry)
        try:
            connection.execute(text("SELECT 1 / 0"))
        except DBAPIError:
            return False
        return True

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 1})
        bench.enqueue("plain", {"n": 2})
        outcome = bench.apply()
        assert (completed(outcome), rejected(outcome)) == ([2], [1])
        assert "swallowed a database error" in str(outcome.rejected[0][1])
        assert effects(bench) == [2]
        assert bench.receipts() == [2]


def test_an_error_caught_in_a_savepoint_is_the_handlers_own_affair(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> str:
        insert(connection, entry)
        try:
            with connection.begin_nested():
                insert(connection, entry)
        except IntegrityError:
            return "once is enough"
        return "twice"

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 1})
        bench.settle(bench.apply())
        assert next(iter(bench.box.ledger())).result == "once is enough"
        assert effects(bench) == [1]


@pytest.mark.parametrize(
    "end",
    [
        "commit",
        "rollback",
        "close",
        "begin anew",
    ],
)
def test_a_handler_that_ends_the_transaction_parks_its_operation(url: str, outbox_dir: Path, end: str) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        insert(connection, entry)
        if end == "close":
            connection.close()
        else:
            connection.commit() if end == "commit" else connection.rollback()
        if end == "begin anew":
            connection.execute(text("SELECT 1"))

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("plain", {"n": 1})
        bench.enqueue("special", {"n": 2})
        bench.enqueue("plain", {"n": 3})
        outcome = bench.apply()
        if end != "commit":
            assert "the handler of 'special' ended the relay's transaction" in parked(outcome)
            assert completed(outcome) == [1, 3]
        # What was committed too early has its receipt.
        assert sorted(effects(bench)) == bench.receipts()
        assert outcome.rejected == []


def commit(connection: Connection) -> None:
    connection.commit()


def commit_elsewhere(connection: Connection) -> None:
    with connection.engine.begin() as other:
        other.exec_driver_sql("INSERT INTO effects (n) VALUES (7)")


ENDS: list[tuple[Callable[[Connection], object], str]] = [
    (commit, "ended the relay's transaction: it called commit()"),
    (commit_elsewhere, "commits on a connection of its own, made by conn.engine"),
    (lambda connection: connection.rollback(), "ended the relay's transaction: it called rollback()"),
    (lambda connection: connection.close(), "ended the relay's transaction: it closed conn"),
    (
        lambda connection: connection.exec_driver_sql("ROLLBACK"),
        "ended the relay's transaction: it sent ROLLBACK",
    ),
]


@pytest.mark.parametrize(("end", "reason"), ENDS)
def test_reason_of_a_parked_handler_names_how_it_ended(
    url: str, outbox_dir: Path, end: Callable[[Connection], object], reason: str
) -> None:
    with bench_with(outbox_dir, url, lambda connection, entry: end(connection) and None) as bench:
        bench.enqueue("special", {"n": 1})
        assert f"the handler of 'special' {reason}" in parked(bench.apply())
        assert effects(bench) == bench.receipts() == []


@pytest.mark.parametrize(
    ("begin", "called"),
    [
        (lambda connection: connection.begin(), "begin()"),
        (lambda connection: connection.begin_twophase(), "begin_twophase()"),
        (
            lambda connection: connection.execution_options(isolation_level="SERIALIZABLE"),
            "execution_options(isolation_level=...)",
        ),
    ],
    ids=["begin", "begin_twophase", "isolation_level"],
)
def test_handler_that_begins_is_told_to_leave_it_out(
    url: str, outbox_dir: Path, begin: Callable[[Connection], object], called: str
) -> None:
    """A single entry became a dead letter, with SQLAlchemy's words, after ten retries that could not help."""
    with bench_with(outbox_dir, url, lambda connection, entry: begin(connection) and None) as bench:
        bench.enqueue("special", {"n": 1})
        good = bench.enqueue("plain", {"n": 2})
        outcome = bench.apply()
        assert f"the handler of 'special' called conn.{called}" in parked(outcome)
        assert good in completed(outcome)


def test_handler_that_catches_a_refused_begin_is_applied(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        try:
            transaction: Any = connection.begin()
        except InvalidRequestError:
            transaction = connection.begin_nested()
        with transaction:
            insert(connection, entry)

    with bench_with(outbox_dir, url, handler) as bench:
        assert bench.enqueue("special", {"n": 1}) in completed(bench.apply())
        assert effects(bench) == [1]


@pytest.mark.parametrize("forgotten", [True, False])
def test_connections_that_a_handler_never_closes_are_logged(
    url: str, outbox_dir: Path, caplog: pytest.LogCaptureFixture, forgotten: bool
) -> None:
    """PostgreSQL had too many clients in the end, and nothing named the handler as the cause."""
    made: list[Connection] = []

    def handler(connection: Connection, entry: Entry) -> None:
        other = connection.engine.connect()
        made.append(other)
        other.execute(text("SELECT 1"))
        if not forgotten:
            other.close()

    with bench_with(outbox_dir, url, handler) as bench:
        for n in range(12):
            bench.enqueue("special", {"n": n})
        assert len(completed(bench.apply())) == 12
        for other in made:
            other.close()
    said = [record.message for record in caplog.records if "conn.engine open: 10" in record.message]
    assert len(said) == forgotten


def test_open_connections_of_handlers_are_not_logged_again_and_again(
    url: str, outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Their number goes up and down where a handler closes the one of an earlier entry."""
    made: list[Connection] = []

    def handler(connection: Connection, entry: Entry) -> None:
        if len(made) == 10:
            made.pop().close()
        other = connection.engine.connect()
        made.append(other)
        other.execute(text("SELECT 1"))

    with bench_with(outbox_dir, url, handler) as bench:
        for n in range(15):
            bench.enqueue("special", {"n": n})
        assert len(completed(bench.apply())) == 15
        for other in made:
            other.close()
    assert sum("conn.engine open" in record.message for record in caplog.records) == 1


def test_commit_by_a_handler_leaves_no_receipt_without_its_effect(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        insert(connection, entry)
        connection.commit()

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 1})
        good = bench.enqueue("plain", {"n": 2})
        bench.apply()
        outcome = bench.apply()
        assert (good in completed(outcome)) == (effects(bench).count(2) == 1)
        assert set(bench.receipts()) <= set(effects(bench))


def test_connection_loss_swallowed_by_a_handler_counts_as_an_outage(url: str, outbox_dir: Path) -> None:
    lost: list[int] = []

    def handler(connection: Connection, entry: Entry) -> bool:
        if not lost:
            lost.append(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
            query(url, "SELECT pg_terminate_backend(%s, 10000)", [lost[0]])
        try:
            insert(connection, entry)
        except DBAPIError:
            return False
        return True

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("plain", {"n": 1})
        bench.enqueue("special", {"n": 2})
        outcome = bench.apply()
        assert isinstance(outcome.interruption, TargetUnavailable)
        assert (outcome.completed, outcome.rejected) == ([], [])
        assert completed(bench.apply()) == [1, 2]
        assert effects(bench) == [1, 2]


def _crash(connection: Connection) -> None:
    connection.execute(text("SELECT pg_terminate_backend(pg_backend_pid())"))


def test_entry_whose_commit_crashes_its_backend_holds_back_no_other(url: str, outbox_dir: Path) -> None:
    """As by a deferred trigger, or a commit for which the server has no memory: it was an outage for all."""
    query(
        url,
        """CREATE FUNCTION crash() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN IF new.n = 3 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF; RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER crash AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION crash()""",
    )
    quick: dict[str, Any] = {"backoff_base": 0.01, "backoff_cap": 0.05}
    with bench_with(outbox_dir, url, insert, **quick) as bench, Relay(bench.box, bench.target):
        for number in range(6):
            bench.enqueue("plain", {"n": number})
        until(lambda: bench.box.status().pending == 1 and bool(bench.box.status().needs_operator))
        assert "by itself: OperationalError: server closed the connection" in bench.box.status().needs_operator[0]
        assert sorted(effects(bench)) == [0, 1, 2, 4, 5]
        query(url, "DROP TRIGGER crash ON effects")
        until(lambda: bench.box.status().pending == 0)
        assert sorted(effects(bench)) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("end", [_crash, Connection.invalidate, lambda one: one.connection.dbapi_connection.close()])
def test_entry_that_ends_its_connection_each_time_holds_only_its_key(
    url: str, outbox_dir: Path, end: Callable[[Connection], Any]
) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        end(connection)

    settings = {"batch_size": 4, "backoff_base": 0.001, "backoff_cap": 0.002}
    with bench_with(outbox_dir, url, handler, **settings) as bench:
        bench.enqueue("special", {"n": 1}, order_by="a")
        bench.enqueue("plain", {"n": 2}, order_by="a")
        bench.enqueue("plain", {"n": 3}, order_by="b")
        with Relay(bench.box, bench.target):
            until(lambda: effects(bench) == [3])
            until(lambda: bench.box.status().relay.slow == 1)
        assert bench.box.status().pending == 2


def test_data_error_on_a_lost_connection_leaves_a_working_target(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
        query(url, "SELECT pg_terminate_backend(%s, 10000)", [pid])
        raise ValueError("no such side: 'hold'")

    with bench_with(outbox_dir, url, handler) as bench:
        bad = bench.enqueue("special", {"n": 1})
        good = bench.enqueue("plain", {"n": 2})
        outcome = bench.apply(bad)
        assert outcome.completed == []
        assert completed(bench.apply(good)) == [good]
        assert effects(bench) == [2]


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("stalled", [True, False])
def test_only_a_unit_that_took_too_long_alone_is_called_slow(
    url: str, outbox_dir: Path, count: int, stalled: bool
) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        raise TargetUnavailable("later", stalled=stalled)

    with bench_with(outbox_dir, url, handler) as bench:
        for number in range(count):
            bench.enqueue("special", {"n": number})
        outcome = bench.apply()
        assert isinstance(outcome.interruption, TargetUnavailable)
        assert [record.seq for record in outcome.stalled] == ([1] if stalled and count == 1 else [])


def is_open(raw: Any) -> bool:
    """Whether the watchdog has not shut the connection yet."""
    with socket.socket(fileno=os.dup(raw.fileno())) as own:
        own.setblocking(False)
        try:
            return own.recv(1, socket.MSG_PEEK) != b""
        except BlockingIOError:
            return True


def test_handler_that_takes_too_long_itself_lets_others_go_on(
    url: str, outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """PostgreSQL is not at work meanwhile, so it is neither silent nor to blame."""
    ends = threading.Event()

    def handler(connection: Connection, entry: Entry) -> None:
        if not ends.is_set():
            until(lambda: not is_open(connection.connection.dbapi_connection))
        insert(connection, entry)

    with bench_with(outbox_dir, url, handler, stall_timeout=0.5, batch_size=2) as bench:
        slow = bench.enqueue("special", {"n": 1})
        bench.enqueue("plain", {"n": 2})
        with Relay(bench.box, bench.target) as relay:
            until(lambda: effects(bench) == [2])
            until(lambda: bench.box.status().relay.slow == slow)
            assert "delivery failed: a transaction took longer than 0.5 s here, not in PostgreSQL" in caplog.text
            ends.set()
            assert relay.drain(timeout=LONG)
        assert effects(bench) == [2, 1]


@pytest.mark.parametrize("how", ["in PostgreSQL", "before a statement", "behind its last statement"])
def test_slow_handler_of_a_batch_is_named_at_once(url: str, outbox_dir: Path, how: str) -> None:
    """It was found by halving the batch, each half as slow as the time limit."""
    tries: list[int] = []

    def handler(connection: Connection, entry: Entry) -> None:
        tries.append(entry.seq)
        if how != "before a statement":
            insert(connection, entry)
        if how == "in PostgreSQL":
            connection.execute(text("SELECT pg_sleep(600)"))
        else:
            until(lambda: not is_open(connection.connection.dbapi_connection))
        if how == "before a statement":
            insert(connection, entry)

    with bench_with(outbox_dir, url, handler, stall_timeout=1.0, batch_size=100) as bench:
        for number in range(100):
            bench.enqueue("special" if number == 70 else "plain", {"n": number})
        outcome = bench.apply()
        assert isinstance(outcome.interruption, TargetUnavailable)
        assert [record.seq for record in outcome.stalled] == [71]
        tries.clear()
        with Relay(bench.box, bench.target):
            until(lambda: len(effects(bench)) == 99)
            assert len(tries) < 6
            until(lambda: bench.box.status().relay.slow == 71)


def test_a_handler_may_say_itself_that_the_database_is_not_fit(url: str, outbox_dir: Path) -> None:
    errors: list[Exception] = [TargetUnavailable("later"), TargetMisconfigured("no session table")]

    def handler(connection: Connection, entry: Entry) -> int:
        if errors:
            raise errors.pop()
        return insert(connection, entry)

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 1})
        assert parked(bench.apply()) == "special: no session table"
        assert isinstance(bench.apply().interruption, TargetUnavailable)
        assert completed(bench.apply()) == [1]


def test_an_operation_that_is_not_declared_waits_until_it_is(url: str, outbox_dir: Path) -> None:
    with bench_with(outbox_dir, url, insert) as bench:
        bench.enqueue("plain", {"n": 1})
        bench.enqueue("special", {"n": 2})
        records, store_id = bench.box.store.peek(0, 2).records, bench.box.store.identity.store_id
        old = PostgresTarget(url, [Operation("plain", handler=insert)])
        for _ in range(2):
            outcome = old.apply(store_id, records)
            assert "'special', which is not declared here (declared: plain)" in parked(outcome)
            assert (completed(outcome), outcome.rejected) == ([1], [])
        old.close()
        assert completed(bench.apply()) == [1, 2]


def test_an_entry_with_an_enum_that_is_not_registered_is_rejected(url: str, outbox_dir: Path) -> None:
    with bench_with(outbox_dir, url, insert) as bench:
        bench.enqueue("special", {"n": 1})
        [record] = bench.box.store.peek(0, 1).records
        foreign = replace(record, types=b'{"dict":{"n":["enum","engine.sides:Side","BUY"]}}')
        outcome = bench.target.apply(bench.box.store.identity.store_id, [foreign])
        [(rejected, why)] = outcome.rejected
        assert rejected.seq == record.seq
        assert "engine.sides:Side" in str(why)


def test_a_group_becomes_visible_all_at_once(url: str, outbox_dir: Path) -> None:
    inside, go = threading.Event(), threading.Event()

    def handler(connection: Connection, entry: Entry) -> int:
        inside.set()
        assert go.wait(LONG)
        return insert(connection, entry)

    with bench_with(outbox_dir, url, handler, batch_size=1) as bench:
        with bench.box.transaction() as transaction:
            transaction.enqueue("plain", {"n": 1})
            transaction.enqueue("special", {"n": 2})
            transaction.enqueue("plain", {"n": 3})
        with Relay(bench.box, bench.target) as relay:
            assert inside.wait(LONG)
            assert effects(bench) == []
            assert bench.receipts() == []
            go.set()
            assert relay.drain(LONG)
        assert effects(bench) == [1, 2, 3]
        [count] = bench.query("SELECT count(DISTINCT xmin::text) FROM effects")
        assert count == (1,)


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_a_group_with_a_refused_member_leaves_nothing(url: str, outbox_dir: Path, bad: int) -> None:
    with bench_with(outbox_dir, url, insert) as bench:
        bench.enqueue("plain", {"n": 100})
        with bench.box.transaction() as transaction:
            for number in range(3):
                transaction.enqueue("plain", {"n": 100 if number == bad else number})
        bench.enqueue("plain", {"n": 101})
        with Relay(bench.box, bench.target) as relay:
            assert relay.drain(LONG)
        assert effects(bench) == [100, 101]
        assert [letter.seq for letter in bench.box.dead_letters()] == [2, 3, 4]
        assert bench.receipts() == [1, 5]


@pytest.mark.parametrize("statement", ["COMMIT", "ROLLBACK"])
def test_transaction_ended_past_sqlalchemy_loses_and_doubles_nothing(
    statement: str, postgres_url: str, outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(connection: Connection, entry: Entry) -> None:
        connection.exec_driver_sql(f"INSERT INTO seen VALUES ({entry.args['n']})")
        if entry.args["n"] == 2:
            connection.connection.cursor().execute(statement)

    operations = [Operation("seen", handler=handle)]
    with psycopg2.connect(postgres_url) as plain, plain.cursor() as cursor:
        cursor.execute("CREATE TABLE seen (n int)")
    with Outbox.open(outbox_dir, OutboxConfig(), operations) as box:
        for number in range(1, 5):
            box.enqueue("seen", {"n": number})
        drained = statement == "COMMIT"
        with Relay(box, PostgresTarget(postgres_url, operations)):
            until(lambda: box.status().pending == (0 if drained else 1))
            if not drained:
                until(lambda: bool(box.status().needs_operator))
            status = box.status()
        # What was committed too early has its receipt; what was rolled back is tried again for ever.
        assert status.dead_letters == 0
        assert drained or "ended the relay's transaction" in status.needs_operator[0]
    with plain, plain.cursor() as cursor:
        cursor.execute("SELECT n FROM seen ORDER BY n")
        assert cursor.fetchall() == ([(1,), (2,), (3,), (4,)] if drained else [(1,), (3,), (4,)])
    plain.close()


ANEW = {
    "by hand": ("ROLLBACK", "BEGIN"),
    "by a chain": ("ROLLBACK AND CHAIN",),
}


@pytest.mark.parametrize("returns", [None, 7])
@pytest.mark.parametrize("how", ANEW)
def test_handler_that_rolls_back_and_begins_anew_is_parked(
    url: str, outbox_dir: Path, how: str, returns: int | None
) -> None:
    """Its receipt is gone: what it writes afterwards would be written again, and a loss was reported."""

    def anew(connection: Connection, entry: Entry) -> int | None:
        for statement in ANEW[how]:
            connection.exec_driver_sql(statement)
        insert(connection, entry)
        return returns

    with bench_with(outbox_dir, url, anew) as bench:
        bench.enqueue("plain", {"n": 1})
        bench.enqueue("special", {"n": 2})
        bench.enqueue("plain", {"n": 3})
        outcome = bench.apply()
        assert (completed(outcome), rejected(outcome)) == ([1, 3], [])
        assert "the handler of 'special' ended the relay's transaction" in parked(outcome)
        bench.settle(outcome)
        assert effects(bench) == [1, 3]
        outcome = bench.apply()
        assert outcome.interruption is None
        assert completed(outcome) == []
        assert effects(bench) == [1, 3]


@pytest.mark.parametrize("together", [True, False])
def test_commit_behind_close_all_loses_nothing_of_its_batch(url: str, outbox_dir: Path, together: bool) -> None:
    """The cursor that makes a commit fail was closed with the others: receipts came without their effects."""

    def commits(connection: Connection, entry: Entry) -> None:
        insert(connection, entry)
        for statement in ["CLOSE ALL; COMMIT; BEGIN"] if together else ["close  all", "COMMIT", "BEGIN"]:
            connection.exec_driver_sql(statement)

    with bench_with(outbox_dir, url, commits) as bench:
        for number, operation in enumerate(("plain", "special", "plain"), 1):
            bench.enqueue(operation, {"n": number})
        for _ in range(3):
            bench.settle(bench.apply())
        assert bench.box.status().pending == 0
        assert effects(bench) == [1, 2, 3]


def test_close_all_is_possible_where_nothing_shares_the_transaction(url: str, outbox_dir: Path) -> None:
    def closes(connection: Connection, entry: Entry) -> None:
        insert(connection, entry)
        connection.exec_driver_sql("CLOSE ALL")

    with bench_with(outbox_dir, url, closes) as bench:
        for number, operation in enumerate(("plain", "special", "plain"), 1):
            bench.enqueue(operation, {"n": number})
        assert completed(bench.apply()) == [1, 2, 3]
        assert effects(bench) == [1, 2, 3]


def test_transaction_that_a_handler_prepares_is_named(outbox_dir: Path, own_postgres: PostgresServer) -> None:
    """It holds the relay's lock until somebody ends it, and belongs to no backend."""
    own_postgres.stop()
    own_postgres.options["max_prepared_transactions"] = 1
    own_postgres.start()
    url = own_postgres.url()
    query(url, "CREATE TABLE effects (id serial PRIMARY KEY, n int UNIQUE)")

    def prepares(connection: Connection, entry: Entry) -> None:
        insert(connection, entry)
        connection.exec_driver_sql("PREPARE TRANSACTION 'mine'")

    with bench_with(outbox_dir, url, prepares) as bench:
        bench.enqueue("special", {"n": 1})
        bench.apply()
        outcome = bench.apply()
        assert "pg_prepared_xacts" in str(outcome.interruption)
        connection = psycopg2.connect(url)
        connection.autocommit = True
        connection.cursor().execute("COMMIT PREPARED 'mine'")
        connection.close()
        assert completed(bench.apply()) == [1]
        assert effects(bench) == [1]


def test_receipts_that_a_trigger_keeps_out_stop_the_line(postgres_url: str, outbox_dir: Path) -> None:
    operations = [Operation("note", table="notes")]
    with Outbox.open(outbox_dir, OutboxConfig(), operations) as box:
        with psycopg2.connect(postgres_url) as plain, plain.cursor() as cursor:
            cursor.execute("CREATE TABLE notes (n int)")
        relay = Relay(box, PostgresTarget(postgres_url, operations))
        box.enqueue("note", {"n": 1})
        assert relay.drain(LONG)
        with plain, plain.cursor() as cursor:
            cursor.execute("CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END'")
            cursor.execute("CREATE TRIGGER t BEFORE INSERT ON outbox_receipts FOR EACH ROW EXECUTE FUNCTION nothing()")
        plain.close()
        box.enqueue("note", {"n": 2})
        assert not relay.drain(timeout=1.0)
        assert box.status().pending == 1
        assert "neither written nor found" in (box.status().relay.last_error or "")


KEEPS_OUT = {
    "trigger": """
CREATE FUNCTION same() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW := OLD; RETURN NEW; END';
CREATE TRIGGER t BEFORE UPDATE ON outbox_receipts FOR EACH ROW EXECUTE FUNCTION same()""",
    "refusal": """
CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
CREATE TRIGGER t BEFORE UPDATE ON outbox_receipts FOR EACH ROW EXECUTE FUNCTION nothing()""",
}


@pytest.mark.parametrize("how", KEEPS_OUT)
def test_results_that_a_trigger_keeps_out_stop_the_line(url: str, outbox_dir: Path, how: str) -> None:
    """After a lost reply the receipt gives the result: it would be None."""
    with bench_with(outbox_dir, url, insert) as bench:
        bench.enqueue("plain", {"n": 1})
        bench.settle(bench.apply())
        query(url, KEEPS_OUT[how])
        bench.enqueue("plain", {"n": 2})
        outcome = bench.apply()
        assert completed(outcome) == []
        assert isinstance(outcome.interruption, TargetMisconfigured)
        assert "a trigger, a rule or a policy on outbox_receipts" in str(outcome.interruption)
        assert effects(bench) == [1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("synchronous_commit", "off"),
        ("statement_timeout", "'1h'"),
        ("TimeZone", "'Asia/Tokyo'"),
        ("search_path", "nowhere"),
        ("role", "pg_read_all_data"),
        ("session_authorization", "somebody"),
    ],
)
def test_setting_of_a_handler_reaches_no_later_statement(url: str, outbox_dir: Path, name: str, value: str) -> None:
    seen: list[str] = []

    def handler(connection: Connection, entry: Entry) -> int:
        seen.append(connection.execute(text(f"SHOW {name}")).scalar_one())
        number = insert(connection, entry)
        connection.execute(text(f"SET {name} = {value}"))
        return number

    query(url, "DROP ROLE IF EXISTS somebody; CREATE ROLE somebody")
    try:
        with bench_with(outbox_dir, url, handler) as bench:
            numbers = [bench.enqueue("special", {"n": number}) for number in range(3)]
            for part in (numbers[:2], numbers[2:]):
                outcome = bench.apply(*part)
                assert completed(outcome) == part
            assert len(seen) == 3
            assert len(set(seen)) == 1
            assert bench.receipts() == numbers
    finally:
        query(url, "DROP ROLE somebody")


def test_temporary_table_of_a_handler_takes_no_rows_of_others(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        connection.execute(text("CREATE TEMP TABLE IF NOT EXISTS effects (n int)"))
        connection.execute(text("INSERT INTO effects VALUES (:n)"), {"n": entry.args["n"]})

    operations = (Operation("special", handler=handler), Operation("row", table="effects"))
    with Bench(outbox_dir, url, *operations) as bench:
        for number in range(3):
            bench.enqueue("special", {"n": number})
            bench.enqueue("row", {"n": number})
        assert completed(bench.apply(1, 2)) == [1, 2]
        assert completed(bench.apply(3, 4, 5)) == [3, 4, 5]
        assert completed(bench.apply(6)) == [6]
        assert effects(bench) == [0, 1, 2]


def test_execution_options_of_a_handler_do_not_reach_the_next_entry(url: str, outbox_dir: Path) -> None:
    seen = []

    def handler(connection: Connection, entry: Entry) -> None:
        seen.append(dict(connection.get_execution_options()))
        connection.execution_options(schema_translate_map={None: "elsewhere"}, stream_results=True)

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 1})
        bench.enqueue("special", {"n": 2})
        assert completed(bench.apply()) == [1, 2]
        assert seen[0] == seen[1]


def test_a_handler_that_makes_the_transaction_read_only_waits(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        insert(connection, entry)
        connection.execute(text("SET TRANSACTION READ ONLY"))

    with bench_with(outbox_dir, url, handler) as bench:
        bench.enqueue("special", {"n": 1})
        # It is no outage, which would pass by itself.
        assert "read-only" in parked(bench.apply())
        assert bench.receipts() == []


@pytest.mark.parametrize("together", [True, False])
def test_text_behind_a_handler_that_set_an_encoding_is_as_it_was(url: str, outbox_dir: Path, together: bool) -> None:
    """PostgreSQL read the next statement in the encoding of the handler before it, and stored other characters."""

    def set_it(connection: Connection, entry: Entry) -> None:
        connection.execute(text("SET client_encoding TO 'LATIN1'; SET standard_conforming_strings = off"))

    def write(connection: Connection, entry: Entry) -> dict[str, Any]:
        connection.execute(text("INSERT INTO texts VALUES (:written)"), dict(entry.args))
        return dict(entry.args)

    query(url, "CREATE TABLE texts (written text)")
    operations = [Operation("set", handler=set_it), Operation("write", handler=write), Operation("row", table="texts")]
    with Bench(outbox_dir, url, *operations) as bench:
        for name in ("set", "write", "set", "row", "set", "write"):
            bench.enqueue(name, {} if name == "set" else {"written": "Zürich \\ 5 €"})
        for seqs in [range(1, 7)] if together else [[seq] for seq in range(1, 7)]:
            assert completed(bench.apply(*seqs)) == list(seqs)
        assert bench.query("SELECT DISTINCT written FROM texts") == [("Zürich \\ 5 €",)]


def test_commit_waits_for_the_disk_against_the_setting_of_a_handler(url: str, outbox_dir: Path) -> None:
    def handler(connection: Connection, entry: Entry) -> None:
        insert(connection, entry)
        connection.execute(text("SET LOCAL synchronous_commit = off"))
        # Speaks at the end of the transaction, with what holds for its COMMIT.
        connection.execute(text("INSERT INTO last_words VALUES (1)"))

    query(
        url,
        """
        CREATE TABLE last_words (n int);
        CREATE TABLE heard (setting text);
        CREATE FUNCTION hear() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO heard VALUES (current_setting('synchronous_commit')); RETURN NULL; END $$;
        CREATE CONSTRAINT TRIGGER at_commit AFTER INSERT ON last_words DEFERRABLE INITIALLY DEFERRED
            FOR EACH ROW EXECUTE FUNCTION hear();
        """,
    )
    with bench_with(outbox_dir, url, handler) as bench:
        entry = bench.enqueue("special", {"n": 1})
        assert completed(bench.apply()) == [entry]
        assert bench.query("SELECT setting FROM heard") == [("on",)]
