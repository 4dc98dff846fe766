"""The wire to PostgreSQL is slow, silent, cut or gone, at the worst moments: all arrives, in order, once."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from outbox import Health, TargetUnavailable
from tests.faults.drill import Drill
from tests.unit.fakes.database import query
from tests.unit.fakes.proxy import Proxy
from tests.unit.fakes.scene import Scene
from tests.unit.fakes.waiting import LONG, until


@pytest.fixture
def proxy(postgres_url: str) -> Iterator[Proxy]:
    with Proxy(postgres_url) as proxy:
        yield proxy


@pytest.fixture
def stall_timeout() -> float:
    """Where nothing stalls, a slow server must not look as if it did."""
    return LONG


@pytest.fixture
def scene(proxy: Proxy, postgres_url: str, outbox_dir: Path, stall_timeout: float) -> Iterator[Scene]:
    """A relay that goes through the proxy and has delivered before; in the end all is delivered and audited."""
    limits = {"stall_timeout": stall_timeout, "connect_timeout": LONG}
    with Scene(outbox_dir, postgres_url, relay_url=proxy.url, **limits) as scene:
        scene.create()
        scene.trade(3)
        assert scene.relay.drain(LONG)
        yield scene


def rows(scene: Scene) -> int:
    [(count,)] = query(scene.url, "SELECT count(*) FROM trades")
    return int(count)


def test_a_slow_wire_only_takes_longer(scene: Scene, proxy: Proxy) -> None:
    proxy.delay_s = 0.01
    scene.trade(25)
    assert scene.relay.drain(LONG)
    assert scene.target.interruptions() == []
    assert proxy.struck["delay"] > 10


@pytest.mark.parametrize("stall_timeout", [1.0])
def test_wire_stalled_in_a_batch_is_an_outage_without_attempts(scene: Scene, proxy: Proxy) -> None:
    scene.relay.start()
    scene.trade(1)
    assert scene.relay.drain(LONG)
    proxy.stall.set()
    scene.trade(12)
    assert proxy.stalled.wait(LONG)
    scene.target.wait_for_interruptions(1)
    assert all(isinstance(error, TargetUnavailable) for error in scene.target.interruptions())
    assert scene.target.interruptions()[0].stalled
    proxy.stall.clear()
    assert {entry.attempts for entry in scene.box.pending()} <= {0}


def test_wire_reset_in_a_batch_is_an_outage_without_attempts(scene: Scene, proxy: Proxy) -> None:
    with scene.batch_in_flight():
        proxy.reset()
        scene.target.wait_for_interruptions(1)
    assert proxy.struck["reset"] >= 1
    assert {entry.attempts for entry in scene.box.pending()} <= {0}


def test_host_that_refuses_connections_degrades_without_attempts(scene: Scene, proxy: Proxy) -> None:
    proxy.refuse()
    proxy.disconnect()
    scene.trade(12)
    scene.relay.start()
    scene.target.wait_for_interruptions(3)
    assert "Connection refused" in str(scene.target.interruptions()[-1])
    until(lambda: scene.box.status().health is Health.DEGRADED)
    assert {entry.attempts for entry in scene.box.pending()} == {0}
    assert rows(scene) == 3
    proxy.accept()


@pytest.mark.parametrize("operation", ["trade", "booking"])
@pytest.mark.parametrize(("where", "applied"), [("before", 0), ("after", 8)])
def test_wire_cut_around_the_commit_loses_and_doubles_nothing(
    scene: Scene, proxy: Proxy, where: str, applied: int, operation: str
) -> None:
    for _ in range(3):
        before, failed = rows(scene), len(scene.target.interruptions())
        proxy.cut.clear()
        (proxy.cut_before_commit if where == "before" else proxy.cut_at_commit).set()
        scene.trade(8, operation=operation)
        assert not scene.relay.drain(0.0)
        assert proxy.cut.is_set()
        assert len(scene.target.interruptions()) == failed + 1
        # Nobody was told, and the store knows of nothing.
        assert scene.box.status().pending == 8
        assert rows(scene) - before == applied
        assert scene.audit.problems(scene.box) == []
        assert scene.relay.drain(LONG)
        assert rows(scene) - before == 8
    assert proxy.struck[f"cut {'before' if where == 'before' else 'at'} COMMIT"] == 3


def test_commit_unknown_to_a_killed_relay_is_not_repeated(proxy: Proxy, outbox_dir: Path) -> None:
    drill = Drill(outbox_dir, proxy.url).create()
    drill.run([("open",), ("enqueue", 0, 6)])
    proxy.cut_at_commit.set()
    relay = drill.start([("arm", "before a batch", 2), ("attach",), ("drain",)])
    assert proxy.cut.wait(LONG)
    assert relay.join().killed
    # Two batches of four: PostgreSQL has the first one.
    assert query(proxy.url, "SELECT count(*) FROM trades") == [(4,)]
    drill.finish()
    assert proxy.struck["cut at COMMIT"] == 1


def test_storm_of_faults_on_the_wire_loses_and_doubles_nothing(scene: Scene, proxy: Proxy) -> None:
    """Faults at random moments, always of every kind, while trading goes on."""
    dice = random.Random(20240501)
    scene.relay.start()
    for number in range(40):
        scene.trade(dice.randrange(1, 12), operation=dice.choice(["trade", "booking"]))
        if number % 5 == 0:
            scene.audit.group(scene.box, 4)
        fault = number % 6
        seen = len(scene.target.interruptions())
        if fault == 0:
            proxy.cut_at_commit.set()
        elif fault == 1:
            proxy.cut_before_commit.set()
        elif fault == 2:
            proxy.reset()
        elif fault == 3:
            proxy.refuse()
            proxy.disconnect()
            # All before may have been delivered already.
            scene.trade(1)
            scene.target.wait_for_interruptions(seen + 1)
            proxy.accept()
        elif fault == 4:
            proxy.stalled.clear()
            proxy.stall.set()
            scene.trade(1)
            assert proxy.stalled.wait(LONG)
            proxy.stall.clear()
        else:
            proxy.delay_s = dice.choice([0.0, 0.002])
    proxy.delay_s = 0.0
    scene.finish()
    assert {"cut at COMMIT", "cut before COMMIT", "reset", "stall", "delay"} <= set(proxy.struck)
    assert len(scene.audit.acknowledged) > 200
