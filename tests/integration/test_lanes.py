"""Several connections that deliver side by side: order within a key, one effect per key, and losses on any of them."""

from __future__ import annotations

import threading
from pathlib import Path

import psycopg2
import pytest
from sqlalchemy import Connection, text

from outbox import Entry, Operation, Outbox, OutboxConfig, PostgresTarget, Relay, TargetUnavailable
from outbox.errors import HistoryRewound
from outbox.postgres.lane import Lane
from outbox.relay.delivery import Step
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench, completed, rejected
from tests.unit.fakes.waiting import LONG, until

ROW = Operation("row", table="effects", order_by="k")


@pytest.fixture
def url(postgres_url: str) -> str:
    query(
        postgres_url,
        "CREATE TABLE effects (id serial PRIMARY KEY, k text, n int, backend int DEFAULT pg_backend_pid())",
    )
    return postgres_url


def fill(box: Outbox, count: int, keys: int = 5) -> None:
    for number in range(count):
        box.enqueue("row", {"k": f"k{number % keys}", "n": number})


def warm(bench: Bench) -> None:
    """The first batch goes on one connection; from then on there are several."""
    bench.settle(bench.apply(bench.enqueue("row", {"k": "w", "n": -1})))
    bench.query("DELETE FROM effects")


def test_backlog_on_two_connections_keeps_the_order_of_each_key(url: str, outbox_dir: Path) -> None:
    config = OutboxConfig(lanes=2, batch_size=20)
    with Outbox.open(outbox_dir, config, [ROW]) as box:
        fill(box, 400)
        assert Relay(box, PostgresTarget(url, [ROW], config=config)).drain(timeout=LONG)
        assert box.status().completed == 400
    assert query(url, "SELECT count(*), count(DISTINCT n) FROM effects") == [(400, 400)]
    assert query(url, "SELECT count(DISTINCT backend) FROM effects") == [(2,)]
    wrong = "SELECT count(*) FROM effects a JOIN effects b USING (k) WHERE a.id < b.id AND a.n > b.n"
    assert query(url, wrong) == [(0,)]


def test_status_tells_what_each_lane_has_delivered(url: str, outbox_dir: Path) -> None:
    config = OutboxConfig(lanes=2, batch_size=20)
    with Outbox.open(outbox_dir, config, [ROW]) as box:
        relay = Relay(box, PostgresTarget(url, [ROW], config=config))
        fill(box, 400)
        assert relay.drain(timeout=LONG)
        first, second = box.status().relay.lanes
        assert first + second == 400
        # All but the first batch is split in halves.
        assert second > 100


def test_status_of_one_lane_names_none(url: str, outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir, None, [ROW]) as box:
        fill(box, 4)
        assert Relay(box, PostgresTarget(url, [ROW], config=box.config)).drain(timeout=LONG)
        assert box.status().relay.lanes == []


def test_handlers_run_in_the_callers_thread_one_at_a_time(url: str, outbox_dir: Path) -> None:
    threads: set[int] = set()

    def handler(connection: Connection, entry: Entry) -> None:
        threads.add(threading.get_ident())
        connection.execute(text("INSERT INTO effects (k, n) VALUES (:k, :n)"), entry.args)

    special = Operation("special", handler=handler, order_by="k")
    with Bench(outbox_dir, url, ROW, special, lanes=3) as bench:
        warm(bench)
        for number in range(30):
            bench.enqueue(("row", "special")[number % 2], {"k": f"k{number % 7}", "n": number})
        outcome = bench.apply()
        assert sorted(completed(outcome)) == list(range(2, 32))
        assert threads == {threading.get_ident()}
        wrong = "SELECT count(*) FROM effects a JOIN effects b USING (k) WHERE a.id < b.id AND a.n > b.n"
        assert bench.query(wrong) == [(0,)]


def test_a_refused_row_in_one_lane_leaves_the_other_alone(url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, url, ROW, lanes=2) as bench:
        warm(bench)
        first = bench.enqueue("row", {"k": "a", "n": 1})
        bad = bench.enqueue("row", {"k": "a", "n": "seven"})
        behind = bench.enqueue("row", {"k": "a", "n": 2})
        other = [bench.enqueue("row", {"k": "b", "n": number}) for number in range(3, 6)]
        outcome = bench.apply()
        assert rejected(outcome) == [bad]
        assert sorted(completed(outcome)) == [first, *other]
        assert behind not in completed(outcome)


def test_lost_connection_keeps_the_commits_of_the_other_connection(
    url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Bench(outbox_dir, url, ROW, lanes=2) as bench:
        warm(bench)
        for number in range(10):
            bench.enqueue("row", {"k": f"k{number % 2}", "n": number})
        transact = Lane._transact

        def fail_in_the_second(lane: Lane, *args: object) -> object:
            if lane._number == 1:
                raise TargetUnavailable("connection lost")
            return transact(lane, *args)  # type: ignore[arg-type]

        with monkeypatch.context() as patched:
            patched.setattr(Lane, "_transact", fail_in_the_second)
            outcome = bench.apply()
        assert isinstance(outcome.interruption, TargetUnavailable)
        assert len(completed(outcome)) == 5
        bench.settle(outcome)
        again = bench.apply()
        assert again.interruption is None
        assert bench.query("SELECT count(*), count(DISTINCT n) FROM effects") == [(10, 10)]


def backends(bench: Bench) -> set[int]:
    """The server's processes that wrote what is there, which is deleted."""
    return {row[0] for row in bench.query("DELETE FROM effects RETURNING backend")}


def two_keys(bench: Bench) -> None:
    """Work for two lanes."""
    for number in range(4):
        bench.enqueue("row", {"k": f"k{number % 2}", "n": number})


@pytest.mark.parametrize(
    "error", [TargetUnavailable("lost"), HistoryRewound("lost", settled_seq=0, same_database=True)]
)
@pytest.mark.parametrize("failing", [0, 1])
def test_after_an_interruption_no_lane_goes_on_without_having_looked(
    url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, failing: int, error: Exception
) -> None:
    with Bench(outbox_dir, url, ROW, lanes=2) as bench:
        warm(bench)
        two_keys(bench)
        bench.settle(bench.apply())
        first, second = (lane._link.current for lane in bench.target._lanes)
        assert first is not None
        assert second is not None
        before = backends(bench)
        assert len(before) == 2
        transact = Lane._transact

        def fail(lane: Lane, *args: object) -> object:
            if lane._number == failing:
                raise error
            return transact(lane, *args)  # type: ignore[arg-type]

        two_keys(bench)
        with monkeypatch.context() as patched:
            patched.setattr(Lane, "_transact", fail)
            outcome = bench.apply()
        assert outcome.interruption is error
        bench.settle(outcome)
        assert backends(bench) <= before
        # Where something is known to be lost, all of them look, the first one first.
        kept = bench.target._lanes[0]._link.current
        assert kept is (None if isinstance(error, HistoryRewound) else first)
        assert bench.target._lanes[1]._link.current is None
        assert bench.apply().interruption is None


def test_a_comparison_needs_no_connection_besides_the_first(url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, url, ROW, lanes=2) as bench:
        assert bench.target.compare(bench.box.store.identity.store_id).loss is None
        bench.enqueue("row", {"k": "a", "n": 1})
        assert completed(bench.apply()) == [1]
        mine = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'lmdb-outbox'"
        assert bench.query(f"{mine} AND datname = current_database()") == [(1,)]


def test_the_thread_of_a_lane_has_its_name(url: str, outbox_dir: Path) -> None:
    before = set(threading.enumerate())
    with Bench(outbox_dir, url, ROW, lanes=2) as bench:
        warm(bench)
        two_keys(bench)
        bench.apply()
        made = set(threading.enumerate()) - before
        names = [thread.name for thread in made if thread.name.startswith("outbox-lane")]
        assert names == ["outbox-lane-1"]


def test_a_loss_in_any_lane_is_noticed_when_the_relay_connects_again(url: str, outbox_dir: Path) -> None:
    """As after a failover to a standby that lacks only what the second lane had committed."""
    config = OutboxConfig(lanes=2, batch_size=5)
    with Outbox.open(outbox_dir, config, [ROW]) as box:
        fill(box, 40)
        relay = Relay(box, PostgresTarget(url, [ROW], config=config))
        assert relay.drain(timeout=LONG)
        assert [mark.lane for mark in box.store.marks()] == [0, 1]
        query(url, "UPDATE outbox_watermarks SET position = position - 1 WHERE lane = 1")
        target = PostgresTarget(url, [ROW], config=config)
        target.follow(box.store)
        loss = target.compare(box.store.identity.store_id).loss
        assert isinstance(loss, HistoryRewound)
        target.close()


def test_all_lanes_belong_to_one_history(url: str, outbox_dir: Path) -> None:
    """So that a standby that lacks what one of them had committed is known as a copy of the same database."""
    config = OutboxConfig(lanes=3, batch_size=5)
    with Outbox.open(outbox_dir, config, [ROW]) as box:
        fill(box, 120)
        assert Relay(box, PostgresTarget(url, [ROW], config=config)).drain(timeout=LONG)
    assert query(url, "SELECT count(*), count(DISTINCT lineage) FROM outbox_watermarks") == [(3, 1)]


def test_fewer_lanes_than_before_lose_nothing(url: str, outbox_dir: Path) -> None:
    for lanes in (3, 1, 2):
        config = OutboxConfig(lanes=lanes, batch_size=10)
        with Outbox.open(outbox_dir, config, [ROW]) as box:
            fill(box, 60)
            assert Relay(box, PostgresTarget(url, [ROW], config=config)).drain(timeout=LONG), lanes
            assert not box.status().alarms
    assert query(url, "SELECT count(*) FROM effects") == [(180,)]


def test_a_stop_shuts_every_lane_that_hangs(url: str, outbox_dir: Path) -> None:
    config = OutboxConfig(lanes=2, stall_timeout=600, sync_interval=3600)
    with Outbox.open(outbox_dir, config, [ROW]) as box:
        relay = Relay(box, PostgresTarget(url, [ROW], config=config))
        between_steps, step = threading.Lock(), relay._delivery.step

        def locked_step(now: float) -> Step:
            with between_steps:
                return step(now)

        relay._delivery.step = locked_step  # type: ignore[method-assign]
        relay.start()
        fill(box, 1)
        assert relay.drain(timeout=LONG)
        query(url, "DELETE FROM effects")
        # Both lanes wait for this lock.
        blocker = psycopg2.connect(url)
        try:
            blocker.cursor().execute("LOCK TABLE effects IN ACCESS EXCLUSIVE MODE")
            # No step begins before there is work for both.
            with between_steps:
                fill(box, 10)
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'effects'::regclass"
            until(lambda: query(url, waiting) == [(2,)])
            # Long before `stall_timeout`.
            until(lambda: relay.stop(timeout=2))
        finally:
            blocker.close()
        assert len(list(box.pending())) == 10
        assert relay.drain(timeout=LONG)
    assert query(url, "SELECT count(*), count(DISTINCT n) FROM effects") == [(10, 10)]
