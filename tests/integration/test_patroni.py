"""Engines with a store each write into one PostgreSQL that Patroni runs, and its leader is killed under load."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import psycopg2
import pytest

from outbox import Outbox, OutboxConfig, PostgresTarget, Relay
from tests.unit.fakes.audit import OPERATIONS, SCHEMA
from tests.unit.fakes.patroni import PatroniCluster
from tests.unit.fakes.waiting import LONG, until

pytestmark = pytest.mark.slow
ENGINES = 3
# For each engine and each time: with the first leader, with none, with the next one.
ENTRIES = 150


class Engine:
    """A store with its relay, and the numbers that it was told are durable."""

    def __init__(self, name: str, folder: Path, url: str) -> None:
        self.name, self.acknowledged = name, list[int]()
        # Behind HAProxy a failover looks like one server that was set back.
        config = OutboxConfig(backoff_base=0.01, backoff_cap=0.2, connect_timeout=2.0, batch_size=10, reconcile="auto")
        self.box = Outbox.open(folder / name, config, OPERATIONS)
        self.relay = Relay(self.box, PostgresTarget(url, OPERATIONS, config=config))

    def __enter__(self) -> Engine:
        self.relay.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.relay.stop()
        self.box.close()

    def trade(self) -> None:
        for number in range(len(self.acknowledged), len(self.acknowledged) + ENTRIES):
            self.box.enqueue("trade", {"number": number, "account": self.name})
            self.acknowledged.append(number)


@pytest.fixture(params=[True, False], ids=["synchronous", "asynchronous"])
def cluster(request: pytest.FixtureRequest, no_leftovers: None) -> Iterator[PatroniCluster]:
    with PatroniCluster(synchronous=request.param) as cluster:
        with closing(psycopg2.connect(cluster.url)) as connection:
            connection.cursor().execute(SCHEMA)
            connection.commit()
        yield cluster


def test_leader_killed_under_load_loses_and_doubles_nothing(cluster: PatroniCluster, tmp_path: Path) -> None:
    # The one finds its primary itself, the other lets HAProxy do that.
    urls = [cluster.multi_host_url, cluster.url]
    with ExitStack() as stack:
        engines = [
            stack.enter_context(Engine(f"engine-{number}", tmp_path, urls[number % 2])) for number in range(ENGINES)
        ]
        threads = [threading.Thread(target=engine.trade) for engine in engines]
        for thread in threads:
            thread.start()
        until(lambda: any(engine.box.status().completed for engine in engines))
        cluster.kill_leader()
        for thread in threads:
            thread.join()
        for engine in engines:
            engine.trade()
        cluster.wait_for_leader()
        for engine in engines:
            engine.trade()
            assert engine.relay.drain(LONG), engine.box.status()
        with closing(psycopg2.connect(cluster.url)) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT account, array_agg(number ORDER BY id) FROM trades GROUP BY account")
            assert dict(cursor.fetchall()) == {engine.name: engine.acknowledged for engine in engines}
        for engine in engines:
            # The nodes may still be at the change of their roles.
            until(lambda named=engine: named.box.status().health.name == "HEALTHY")  # type: ignore[misc]
            assert len(engine.acknowledged) == 3 * ENTRIES
