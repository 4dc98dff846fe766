"""The target's connection: how it is made, what the session is set to, who is kept out, and what is never told."""

from __future__ import annotations

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg2
import psycopg2.extensions
import psycopg2.extras
import pytest
from sqlalchemy import Connection, Engine, event, text

from outbox import (
    ConfigError,
    Entry,
    Health,
    Operation,
    OutboxError,
    PostgresTarget,
    Relay,
    TargetMisconfigured,
    TargetUnavailable,
)
from outbox.errors import ReceiptsGone
from outbox.postgres import receipts
from outbox.testing import PostgresServer
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench, completed
from tests.unit.fakes.proxy import Proxy
from tests.unit.fakes.waiting import LONG, until

ROW = Operation("row", table="effects")


@pytest.fixture
def url(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE effects (id serial PRIMARY KEY, n int)")
    return postgres_url


def sessions(url: str, waiting_for: str | None = None) -> int:
    """How many relay sessions the database has, or how many that wait for this kind of thing."""
    sql = (
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lmdb-outbox' AND datname = current_database()"
    )
    [(count,)] = query(url, sql if waiting_for is None else f"{sql} AND wait_event_type = '{waiting_for}'")
    return int(count)


def test_transaction_commits_synchronously_in_the_zone_of_the_role(url: str, outbox_dir: Path) -> None:
    database = url.rpartition("/")[2]
    query(url, f"ALTER DATABASE {database} SET synchronous_commit = off")
    query(url, f"ALTER DATABASE {database} SET timezone = 'America/New_York'")

    def settings(connection: Connection, entry: Entry) -> list[str]:
        names = ("synchronous_commit", "timezone", "statement_timeout", "idle_in_transaction_session_timeout")
        values = [*names, "application_name"]
        return [
            connection.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar_one() for name in values
        ]

    with Bench(outbox_dir, url, Operation("settings", handler=settings), stall_timeout=7) as bench:
        bench.enqueue("settings", {})
        bench.settle(bench.apply())
        [entry] = bench.box.ledger()
        assert entry.result == ["on", "America/New_York", "7s", "14s", "lmdb-outbox"]


def test_commit_that_waits_for_standbys_to_apply_stays_so(url: str, outbox_dir: Path) -> None:
    """A host whose reads go to a standby has chosen it; ours must not be weaker."""
    query(url, f"ALTER DATABASE {url.rpartition('/')[2]} SET synchronous_commit = remote_apply")

    def setting(connection: Connection, entry: Entry) -> str:
        connection.execute(text("SET synchronous_commit = off"))
        return str(connection.execute(text("SHOW synchronous_commit")).scalar_one())

    def show(connection: Connection, entry: Entry) -> str:
        return str(connection.execute(text("SHOW synchronous_commit")).scalar_one())

    operations = (Operation("setting", handler=setting), Operation("show", handler=show))
    with Bench(outbox_dir, url, *operations) as bench:
        for name in ("show", "setting", "show"):
            bench.enqueue(name, {})
        bench.settle(bench.apply())
        assert [entry.result for entry in bench.box.ledger()] == ["remote_apply", "off", "remote_apply"]


def test_setting_in_the_url_wins_over_our_default(url: str, outbox_dir: Path) -> None:
    def name(connection: Connection, entry: Entry) -> str:
        return str(connection.execute(text("SELECT current_setting('application_name')")).scalar_one())

    spelt = url.replace("postgresql://", "postgresql+psycopg2://") + "?application_name=desk&connect_timeout=3"
    with Bench(outbox_dir, spelt.replace("+psycopg2", ""), Operation("name", handler=name)) as bench:
        bench.target = PostgresTarget(spelt, [Operation("name", handler=name)])
        bench.enqueue("name", {})
        bench.settle(bench.apply())
        assert next(iter(bench.box.ledger())).result == "desk"


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("postgresql://u:secret@[::1/db", "database_url has a host or port that cannot be read"),
        ("postgresql://u:secret@h/db?nonsense=1", "database_url cannot be parsed"),
    ],
)
def test_a_url_that_cannot_be_parsed_is_refused_without_repeating_it(url: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        PostgresTarget(url, [ROW])
    assert "secret" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("url", ["mysql://u:secret@h/db", "mysql+asyncpg://u:secret@h/db", ""])
def test_a_url_of_something_else_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="database_url has (no )?scheme.* .allowed: postgresql://") as caught:
        PostgresTarget(url, [ROW])
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("scheme", ["postgres", "postgresql+asyncpg", "postgresql+pg8000", "postgresql+psycopg_async"])
def test_url_of_another_driver_delivers_and_is_not_repeated(
    url: str, outbox_dir: Path, scheme: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", "outbox")
    address = url.partition("://")[2]
    with Bench(outbox_dir, f"{scheme}://{address}", ROW) as bench:
        driver = scheme.partition("+")[2]
        said = [f"the URL of the database names driver {driver}: the outbox connects with psycopg2"] if driver else []
        assert [record.getMessage() for record in caplog.records if "names driver" in record.getMessage()] == said
        bench.enqueue("row", {"n": 1})
        assert completed(bench.apply()) == [1]
    assert address not in caplog.text


def test_no_connection_is_made_before_there_is_something_to_apply(url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, url, ROW) as bench:
        bench.target.interrupt()
        bench.target.close()
        assert bench.target.apply(bench.box.store.identity.store_id, []).completed == []
        assert sessions(url) == 0


def test_one_connection_is_kept_and_closed(url: str, outbox_dir: Path) -> None:
    before = set(threading.enumerate())
    with Bench(outbox_dir, url, ROW) as bench:
        for number in range(3):
            bench.apply(bench.enqueue("row", {"n": number}))
            assert sessions(url) == 1
        bench.target.close()
        until(lambda: sessions(url) == 0)
        # It may be used again.
        assert len(bench.apply().completed) == 3
        bench.target.close()
        bench.target.close()
        assert not [one for one in set(threading.enumerate()) - before if one.name == "outbox-watchdog"]


def test_connection_that_ended_while_idle_is_replaced_unnoticed(url: str, outbox_dir: Path) -> None:
    """Servers, poolers and firewalls end idle connections: each entry after a pause would meet an outage."""
    with Bench(outbox_dir, url, ROW) as bench:
        for number in range(3):
            bench.enqueue("row", {"n": number})
            outcome = bench.apply()
            assert outcome.interruption is None
            bench.settle(outcome)
            [(backend, _)] = query(
                url,
                "SELECT pid, pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE application_name = 'lmdb-outbox' AND datname = current_database()",
            )
            until(partial(_has_ended, backend))
    assert query(url, "SELECT n FROM effects ORDER BY n") == [(0,), (1,), (2,)]


def _has_ended(pid: int) -> bool:
    """Whether a process is gone, and with it the last of its sockets."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


def test_the_receipts_table_is_made_on_first_use(url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, url, ROW) as bench:
        assert bench.query("SELECT to_regclass('outbox_receipts')") == [(None,)]
        bench.apply(bench.enqueue("row", {"n": 1}))
        columns = bench.query(
            "SELECT attname, format_type(atttypid, atttypmod) FROM pg_attribute "
            "WHERE attrelid = 'outbox_receipts'::regclass AND attnum > 0 ORDER BY attnum"
        )
        assert columns == [
            ("idempotency_key", "uuid"),
            ("store_id", "uuid"),
            ("seq", "bigint"),
            ("operation", "text"),
            ("payload_hash", "uuid"),
            ("result", "json"),
            ("applied_at", "timestamp with time zone"),
        ]


@pytest.fixture
def clerk(url: str) -> Iterator[str]:
    """The URL of a role that may use tables but not create any."""
    role = f"clerk_{url.rpartition('_')[2]}"
    query(
        url,
        f"CREATE ROLE {role} LOGIN; GRANT INSERT ON effects TO {role}; "
        f"GRANT USAGE ON SEQUENCE effects_id_seq TO {role}",
    )
    parts = urlsplit(url)
    yield urlunsplit(parts._replace(netloc=f"{role}@{parts.hostname}:{parts.port}"))
    query(url, f"DROP OWNED BY {role}; DROP ROLE {role}")


def test_role_without_create_rights_uses_the_existing_receipts_table(
    url: str, clerk: str, outbox_dir: Path, tmp_path: Path
) -> None:
    with Bench(outbox_dir, clerk, ROW) as bench:
        bench.enqueue("row", {"n": 1})
        outcome = bench.apply()
        # Without it, a person must help; nothing is rejected.
        assert isinstance(outcome.interruption, TargetMisconfigured)
        assert str(outcome.interruption).startswith("42501")
        assert "outbox_receipts" in str(outcome.interruption)
        assert outcome.rejected == []
        with Bench(tmp_path / "owner", url, ROW) as owner:
            owner.apply(owner.enqueue("row", {"n": 0}))
        query(url, f"GRANT SELECT, INSERT, UPDATE ON outbox_receipts, outbox_watermarks TO {urlsplit(clerk).username}")
        assert completed(bench.apply()) == [1]


def test_two_stores_creating_the_receipts_table_at_once_lose_no_entry(url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, url, ROW) as bench, closing(psycopg2.connect(url)) as other:
        other.cursor().execute("CREATE TABLE outbox_receipts (LIKE effects)")
        other.rollback()
        with other.cursor() as cursor:
            cursor.execute(receipts._CREATE)
        bench.enqueue("row", {"n": 1})
        outcomes: list[Any] = []
        applying = threading.Thread(target=lambda: outcomes.append(bench.apply()))
        applying.start()
        until(lambda: sessions(url, "Lock") == 1)
        other.commit()
        applying.join(LONG)
        [outcome] = outcomes
        assert outcome.rejected == []
        assert completed(bench.apply()) == [1]


def test_two_relays_of_one_store_fence_each_other_in_postgresql(url: str, outbox_dir: Path) -> None:
    inside, go = threading.Event(), threading.Event()

    def slow(connection: Connection, entry: Entry) -> None:
        inside.set()
        assert go.wait(LONG)

    with Bench(outbox_dir, url, ROW, Operation("slow", handler=slow)) as bench:
        bench.enqueue("slow", {})
        bench.enqueue("row", {"n": 1})
        store_id, records = bench.box.store.identity.store_id, bench.box.store.peek(0, 10).records
        other = PostgresTarget(url, [ROW])
        outcomes: list[Any] = []
        applying = threading.Thread(target=lambda: outcomes.append(bench.target.apply(store_id, records[:1])))
        applying.start()
        assert inside.wait(LONG)
        blocked = other.apply(store_id, records[1:])
        assert isinstance(blocked.interruption, TargetUnavailable)
        assert "another relay" in str(blocked.interruption)
        assert (blocked.completed, blocked.rejected) == ([], [])
        go.set()
        applying.join(LONG)
        assert completed(outcomes[0]) == [1]
        assert completed(other.apply(store_id, records[1:])) == [2]
        other.close()


def test_relays_of_different_stores_do_not_fence_each_other(url: str, tmp_path: Path) -> None:
    with Bench(tmp_path / "other", url, ROW) as other:
        other.enqueue("row", {"n": 2})

        def nested(connection: Connection, entry: Entry) -> int:
            return len(other.apply().completed)

        with Bench(tmp_path / "one", url, Operation("nested", handler=nested)) as one:
            other.target.apply(other.box.store.identity.store_id, [])
            one.enqueue("nested", {})
            query(url, receipts._CREATE)
            one.settle(one.apply())
            assert next(iter(one.box.ledger())).result == 1


def test_several_hosts_are_tried_in_turn(url: str, outbox_dir: Path) -> None:
    parts = urlsplit(url)
    several = url.replace(f"{parts.hostname}:{parts.port}", f"127.0.0.1:1,{parts.hostname}:{parts.port}")
    with Bench(outbox_dir, url, ROW) as bench:
        bench.target = PostgresTarget(several, [ROW])
        bench.enqueue("row", {"n": 1})
        assert completed(bench.apply()) == [1]


@pytest.fixture(scope="module")
def locked() -> Iterator[PostgresServer]:
    """A server that asks for a password."""
    with PostgresServer(fsync=False, password="right") as server:
        query(server.url(), "CREATE TABLE effects (id serial PRIMARY KEY, n int)")
        yield server


def wrong_password(server: PostgresServer, directory: Path) -> Bench:
    bench = Bench(directory, server.url(password="wr0ng-s3cret"), ROW)
    bench.enqueue("row", {"n": 1})
    bench.enqueue("row", {"n": 2})
    return bench


def test_a_wrong_password_rejects_nothing_and_is_alarmed(
    locked: PostgresServer, outbox_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with wrong_password(locked, outbox_dir) as bench:
        relay = Relay(bench.box, bench.target)
        assert not relay.drain(1.0)
        relay.step(bench.box.clock.monotonic())
        status = bench.box.status()
        assert (status.pending, status.dead_letters) == (2, 0)
        assert {entry.attempts for entry in bench.box.pending()} == {0}
        assert status.health is not Health.HEALTHY
        assert "password authentication failed" in (status.relay.last_error or "")
        assert "wr0ng-s3cret" not in caplog.text + repr(status)
        relay.stop()
        right = PostgresTarget(locked.url(), [ROW])
        with Relay(bench.box, right) as relay:
            assert relay.drain(LONG)
        assert bench.box.status().health is Health.HEALTHY


def test_a_wrong_password_stops_the_line_and_calls_an_operator(locked: PostgresServer, outbox_dir: Path) -> None:
    with wrong_password(locked, outbox_dir) as bench:
        relay = Relay(bench.box, bench.target)
        assert not relay.drain(1.0)
        relay.step(bench.box.clock.monotonic())
        status = bench.box.status()
        relay.stop()
        assert status.relay.stopped
        assert status.health is Health.NEEDS_OPERATOR


@pytest.mark.parametrize(
    ("user", "rest", "text"),
    [
        ("busy", "/postgres", "too many connections for role"),
        # No server of the cluster takes writes for now: a failover.
        ("postgres", "/postgres?target_session_attrs=standby", "not in hot standby mode"),
    ],
)
def test_login_that_fails_behind_the_password_is_an_outage(
    locked: PostgresServer, outbox_dir: Path, user: str, rest: str, text: str
) -> None:
    query(locked.url(), "DROP ROLE IF EXISTS busy; CREATE ROLE busy LOGIN PASSWORD 'right' CONNECTION LIMIT 0")
    with Bench(outbox_dir, f"postgresql://{user}:right@127.0.0.1:{locked.port}{rest}", ROW) as bench:
        bench.enqueue("row", {"n": 1})
        interruption = bench.apply().interruption
        assert isinstance(interruption, TargetUnavailable)
        assert text in str(interruption)


@pytest.mark.parametrize(
    ("password", "rest"),
    [(":right", "/absent"), (":wrong", "/postgres"), ("", "/postgres"), (":wrong", "/postgres?sslmode=disable")],
)
def test_login_refused_by_the_host_that_answers_stops_the_line(
    locked: PostgresServer, outbox_dir: Path, password: str, rest: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        dead = listener.getsockname()[1]
    hosts = f"127.0.0.1:{dead},127.0.0.1:{locked.port}"
    with Bench(outbox_dir, f"postgresql://postgres{password}@{hosts}{rest}", ROW) as bench:
        bench.enqueue("row", {"n": 1})
        assert isinstance(bench.apply().interruption, TargetMisconfigured)


def test_the_password_of_the_environment_is_the_logins(
    locked: PostgresServer, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", "right")
    url = f"postgresql://postgres@127.0.0.1:{locked.port}/postgres?target_session_attrs=standby"
    with Bench(outbox_dir, url, ROW) as bench:
        bench.enqueue("row", {"n": 1})
        assert isinstance(bench.apply().interruption, TargetUnavailable)


def test_sslmode_of_the_environment_holds_for_the_second_login(
    locked: PostgresServer, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proof of the password went out in plain text, and the server's refusal of it stopped the line."""
    monkeypatch.setenv("PGSSLMODE", "require")
    with Bench(outbox_dir, f"postgresql://postgres:wrong@127.0.0.1:{locked.port}/postgres", ROW) as bench:
        bench.enqueue("row", {"n": 1})
        interruption = bench.apply().interruption
        assert isinstance(interruption, TargetUnavailable)
        assert "SSL" in str(interruption)


@pytest.fixture
def every_engine_in_autocommit() -> Iterator[None]:
    """The host sets autocommit on each connection of every engine in its process."""

    def set_it(raw: Any, _: object) -> None:
        raw.autocommit = True

    event.listen(Engine, "connect", set_it)
    yield
    event.remove(Engine, "connect", set_it)


@pytest.mark.usefixtures("every_engine_in_autocommit")
def test_relay_keeps_transactions_where_the_host_commits_alone(url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, url, ROW) as bench:
        bench.enqueue("row", {"n": 1})
        assert completed(bench.apply()) == [1]


@pytest.fixture
def waiting_by_callback() -> Iterator[None]:
    """The host has the driver wait in a function of its own, as with gevent or to react to Ctrl-C."""
    psycopg2.extensions.set_wait_callback(psycopg2.extras.wait_select)
    yield
    psycopg2.extensions.set_wait_callback(None)


@pytest.mark.usefixtures("waiting_by_callback")
def test_silent_host_is_left_where_the_host_program_waits(url: str, outbox_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hosts = f"@127.0.0.1:{silent.getsockname()[1]},"
        several = url.replace("@", hosts)
        with Bench(outbox_dir, several, ROW, stall_timeout=0.4, connect_timeout=1) as bench:
            bench.enqueue("row", {"n": 1})
            records, store_id = bench.box.store.peek(0, 1).records, bench.box.store.identity.store_id
            outcomes: list[Any] = []
            applying = threading.Thread(
                target=lambda: outcomes.extend(bench.target.apply(store_id, records) for _ in range(2)), daemon=True
            )
            applying.start()
            applying.join(20)
            first, second = outcomes
            assert isinstance(first.interruption, TargetUnavailable)
            assert completed(second) == [1]


@pytest.mark.parametrize(
    ("reconnecting", "slow_login_s"),
    [
        (False, 0.0),
        (False, 0.7),
        (True, 0.0),
        (True, 0.7),
    ],
)
def test_a_server_that_falls_silent_right_after_the_login_is_given_up(
    url: str, outbox_dir: Path, reconnecting: bool, slow_login_s: float
) -> None:
    with Proxy(url) as proxy, Bench(outbox_dir, proxy.url, ROW, stall_timeout=0.2) as bench:
        bench.enqueue("row", {"n": 1})
        records, store_id = bench.box.store.peek(0, 1).records, bench.box.store.identity.store_id
        if reconnecting:
            # On a loaded machine a sound server may be silent for so long, too.
            until(lambda: completed(bench.apply()) == [1])
            proxy.disconnect()
        proxy.slow_login_s = slow_login_s
        proxy.silent_after_login.set()
        outcomes: list[Any] = []
        applying = threading.Thread(target=lambda: outcomes.append(bench.target.apply(store_id, records)))
        applying.start()
        assert proxy.silent.wait(LONG)
        applying.join(LONG)
        gave_up = not applying.is_alive()
        proxy.disconnect()
        applying.join(LONG)
        assert gave_up
        assert isinstance(outcomes[0].interruption, TargetUnavailable)


def _given_up(bench: Bench, proxy: Proxy, seq: int) -> Any:
    """What interrupted a delivery whose connection is silent; it must end by itself."""
    outcomes: list[Any] = []
    applying = threading.Thread(target=lambda: outcomes.append(bench.apply(seq)))
    applying.start()
    applying.join(LONG / 2)
    gave_up = not applying.is_alive()
    proxy.stall.clear()
    proxy.disconnect()
    applying.join(LONG)
    assert gave_up
    return outcomes[0].interruption


def test_stall_behind_a_second_connection_of_a_handler_is_given_up(url: str, outbox_dir: Path) -> None:
    """The watchdog watched the handler's own connection from then on, which was closed long ago."""

    def handler(conn: Connection, entry: Entry) -> None:
        with conn.engine.connect() as other:
            other.execute(text("SELECT 1"))
        conn.execute(text("INSERT INTO effects (n) VALUES (:n)"), dict(entry.args))

    operation = Operation("handled", handler=handler)
    with Proxy(url) as proxy, Bench(outbox_dir, proxy.url, operation, ROW, stall_timeout=1.0) as bench:
        bench.enqueue("handled", {"n": 1})
        assert completed(bench.apply()) == [1]
        bench.settle(bench.apply())
        bench.enqueue("row", {"n": 2})
        proxy.stall.set()
        assert isinstance(_given_up(bench, proxy, 2), TargetUnavailable)


def test_stall_of_a_second_connection_of_a_handler_is_given_up(url: str, outbox_dir: Path) -> None:
    with Proxy(url) as proxy:

        def handler(conn: Connection, entry: Entry) -> None:
            with conn.engine.connect() as other:
                proxy.stall.set()
                other.execute(text("SELECT 1"))

        with Bench(outbox_dir, proxy.url, Operation("handled", handler=handler), stall_timeout=1.0) as bench:
            bench.enqueue("handled", {"n": 1})
            assert isinstance(_given_up(bench, proxy, 1), TargetUnavailable)


@pytest.mark.parametrize("table", ["outbox_receipts", "outbox_watermarks"])
def test_lock_on_the_relays_own_tables_blames_no_entry(url: str, outbox_dir: Path, table: str) -> None:
    with Bench(outbox_dir, url, ROW, stall_timeout=0.3) as bench:
        bench.enqueue("row", {"n": 1})
        bench.settle(bench.apply())
        bench.enqueue("row", {"n": 2})
        with closing(psycopg2.connect(url)) as maintenance, maintenance.cursor() as cursor:
            cursor.execute(f"LOCK {table} IN ACCESS EXCLUSIVE MODE")
            outcome = bench.apply(2)
        assert isinstance(outcome.interruption, TargetUnavailable)
        # A smaller batch may help, but no entry is to blame.
        assert (outcome.interruption.too_much, outcome.interruption.stalled, outcome.stalled) == (True, False, [])
        assert "look who locks outbox_receipts" in str(outcome.interruption)
        assert completed(bench.apply(2)) == [2]


def test_commit_that_waits_for_a_standby_is_named_and_done_once(own_postgres: PostgresServer, outbox_dir: Path) -> None:
    url = own_postgres.url()
    query(url, "CREATE TABLE effects (id serial PRIMARY KEY, n int)")
    with Bench(outbox_dir, url, ROW, stall_timeout=0.4) as bench:
        bench.enqueue("row", {"n": 1})
        bench.settle(bench.apply())
        own_postgres.execute("ALTER SYSTEM SET synchronous_standby_names = 'absent'")
        own_postgres.execute("SELECT pg_reload_conf()")
        interruptions: list[OutboxError | None] = [None]

        def waits() -> bool:
            # Commits wait when the checkpointer has read the setting, which nothing shows.
            last = bench.enqueue("row", {"n": len(interruptions) + 1})
            interruptions.append(bench.apply(last).interruption)
            return interruptions[-1] is not None

        until(waits)
        last = len(interruptions)
        # The backend may not have come to its wait yet.
        said = re.compile(r"at work in PostgreSQL: backend .*, active, waits for SyncRep \(")
        until(lambda: said.search(str(bench.apply(last).interruption)) is not None)
        own_postgres.execute("ALTER SYSTEM RESET synchronous_standby_names")
        own_postgres.execute("SELECT pg_reload_conf()")
        until(lambda: completed(bench.apply(last)) == [last])
    assert query(url, "SELECT n FROM effects ORDER BY n") == [(number,) for number in range(1, last + 1)]


def test_hosts_named_as_sqlalchemy_does_are_tried_in_turn(url: str, outbox_dir: Path) -> None:
    parts = urlsplit(url)
    several = f"postgresql+psycopg2://{parts.username}@{parts.path}?host=127.0.0.1:1&host={parts.hostname}:{parts.port}"
    with Bench(outbox_dir, several, ROW) as bench:
        bench.enqueue("row", {"n": 1})
        assert completed(bench.apply()) == [1]
        assert bench.target._lanes[0]._link.several_hosts


@pytest.mark.parametrize("several", [True, False])
def test_several_hosts_of_a_service_are_known_as_such(
    url: str, outbox_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: bool
) -> None:
    """A change of the primary is then part of the plan, and what it lost is put back without an operator."""
    parts = urlsplit(url)
    hosts = f"{parts.hostname},127.0.0.2" if several else parts.hostname
    service = f"[desk]\nhost={hosts}\nport={parts.port}\nuser={parts.username}\ndbname={parts.path[1:]}\n"
    (tmp_path / "services").write_text(service, encoding="utf-8")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    with Bench(outbox_dir, "postgresql://?service=desk", ROW) as bench:
        bench.enqueue("row", {"n": 1})
        assert completed(bench.apply()) == [1]
        assert bench.target._lanes[0]._link.several_hosts is several


def test_a_refused_connection_after_a_stall_is_no_stall(url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, url, ROW, stall_timeout=0.2) as bench:
        with Proxy(url) as proxy:
            target = PostgresTarget(proxy.url, [ROW], config=bench.box.config)
            bench.enqueue("row", {"n": 1})
            records = bench.box.store.peek(0, 1).records
            store_id = bench.box.store.identity.store_id
            target.apply(store_id, records)
            proxy.silent_after_login.set()
            stalled = target.apply(store_id, records).interruption
            assert isinstance(stalled, TargetUnavailable)
            assert stalled.stalled
        refused = target.apply(store_id, records).interruption
        target.close()
        assert isinstance(refused, TargetUnavailable)
        assert not refused.stalled


def test_a_commit_whose_answer_is_lost_is_settled_by_the_receipts(url: str, outbox_dir: Path) -> None:
    with Proxy(url) as proxy, Bench(outbox_dir, proxy.url, ROW) as bench:
        for number in range(5):
            bench.enqueue("row", {"n": number})
        bench.target.apply(bench.box.store.identity.store_id, [])
        # The first COMMIT is the one that makes the receipts table.
        bench.apply(1)
        proxy.cut_at_commit.set()
        outcome = bench.apply(2, 3, 4, 5)
        assert proxy.cut.is_set()
        assert isinstance(outcome.interruption, TargetUnavailable)
        assert (outcome.completed, outcome.rejected) == ([], [])
        assert bench.receipts() == [1, 2, 3, 4, 5]
        assert completed(bench.apply()) == [1, 2, 3, 4, 5]
        assert bench.query("SELECT n FROM effects ORDER BY id") == [(number,) for number in range(5)]


def test_receipts_that_somebody_dropped_stop_the_line(url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, url, ROW) as bench:
        bench.enqueue("row", {"n": 1})
        assert completed(bench.apply()) == [1]
        bench.target.close()
        query(url, "DROP TABLE outbox_receipts")
        outcome = bench.apply()
        assert isinstance(outcome.interruption, TargetMisconfigured)
        assert "table outbox_receipts is gone" in str(outcome.interruption)
        assert query(url, "SELECT to_regclass('outbox_receipts') IS NULL") == [(True,)]
        assert query(url, "SELECT count(*) FROM effects") == [(1,)]


@pytest.mark.parametrize("connected", [True, False])
def test_emptied_receipts_stop_the_line(url: str, outbox_dir: Path, connected: bool) -> None:
    """An entry is applied and not yet settled: to deliver it again would double it."""
    with Bench(outbox_dir, url, ROW) as bench:
        bench.enqueue("row", {"n": 1})
        assert completed(bench.apply()) == [1]
        if not connected:
            bench.target.close()
        query(url, "TRUNCATE outbox_receipts")
        for _ in range(2):
            outcome = bench.apply()
            assert isinstance(outcome.interruption, ReceiptsGone)
            assert "table outbox_receipts is empty" in str(outcome.interruption)
        assert query(url, "SELECT count(*) FROM effects") == [(1,)]


def test_receipts_deleted_one_by_one_do_not_stop_the_line(url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, url, ROW) as bench:
        for number in (1, 2):
            bench.enqueue("row", {"n": number})
            assert number in completed(bench.apply())
        query(url, "DELETE FROM outbox_receipts WHERE seq = 2; DELETE FROM effects WHERE n = 2")
        assert completed(bench.apply()) == [1, 2]
        assert query(url, "SELECT n FROM effects ORDER BY n") == [(1,), (2,)]


@pytest.mark.parametrize(("lanes", "waits"), [(1, True), (2, True), (1, False)])
def test_locked_row_keeps_only_its_own_key_waiting(url: str, outbox_dir: Path, lanes: int, waits: bool) -> None:
    def set_balance(connection: Connection, entry: Entry) -> None:
        if not waits:
            connection.execute(text("SELECT FROM accounts WHERE name = :name FOR UPDATE NOWAIT"), entry.args)
        connection.execute(text("UPDATE accounts SET n = :n WHERE name = :name"), entry.args)

    query(url, "CREATE TABLE accounts (name text PRIMARY KEY, n int); INSERT INTO accounts VALUES ('a', 0), ('b', 0)")
    operation = Operation("set_balance", handler=set_balance, order_by="name")
    with closing(psycopg2.connect(url)) as somebody, somebody.cursor() as cursor:
        cursor.execute("SELECT * FROM accounts WHERE name = 'a' FOR UPDATE")
        settings = {"stall_timeout": 0.3, "backoff_base": 0.01, "backoff_cap": 0.01, "batch_size": 8, "lanes": lanes}
        with Bench(outbox_dir, url, operation, **settings) as bench, Relay(bench.box, bench.target) as relay:
            for name in ("a", "b"):
                for number in range(1, 11):
                    bench.enqueue("set_balance", {"name": name, "n": number})
            until(lambda: query(url, "SELECT n FROM accounts WHERE name = 'b'") == [(10,)])
            until(lambda: bench.box.status().relay.slow == 1 and bench.box.status().pending == 10)
            status = bench.box.status()
            assert status.health is Health.NEEDS_OPERATOR
            assert any(finding.startswith("entry 1 takes too long") for finding in status.needs_operator)
            assert status.dead_letters == 0
            somebody.rollback()
            assert relay.drain(timeout=LONG)
            assert bench.box.status().relay.slow is None
    assert query(url, "SELECT name, n FROM accounts ORDER BY name") == [("a", 10), ("b", 10)]
