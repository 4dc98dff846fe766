"""`atb outbox reconcile` touches no PostgreSQL in a pause, and names the pause that keeps it from going on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from outbox import Outbox
from outbox.cli import reconcile as command
from outbox.cli.common import Refused
from outbox.clock import Patience
from outbox.relay.reconcile_orders import ReconcileOrder, Reconciliation, ordered, place_order
from tests.unit.fakes.rig import Rig


@pytest.fixture
def rig(outbox_dir: Path) -> Iterator[Rig]:
    with Rig(outbox_dir) as rig:
        yield rig


class Reconciled:
    """A relay that has put one entry back; an operator pauses its deliveries."""

    def __init__(self, box: Outbox, target: Any) -> None:
        self._box = box
        self.running = True
        self.drains = 0
        self.made.append(self)

    made: list[Reconciled] = []  # noqa: RUF012 - of the class, so that a test can find what the command made

    def reconcile(self, **_: Any) -> Reconciliation:
        return Reconciliation(compared=1, put_back=1, first_seq=1, last_seq=1)

    def __enter__(self) -> Reconciled:
        return self

    def __exit__(self, *_: object) -> None:
        self.running = False

    def drain(self, timeout: float) -> bool:
        self._box.pauses.begin("migration 42")
        self.drains += 1
        assert self.drains < 100, "the command spins"
        return False


def test_pause_while_the_command_delivers_ends_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command, "Relay", Reconciled)
    monkeypatch.setattr(command, "database_of", lambda box: "postgresql://127.0.0.1:1/x")
    monkeypatch.setattr(Reconciled, "made", [])
    rig.enqueue("a")
    patience = Patience(60, rig.clock.monotonic)
    done = command._here(rig.box, ReconcileOrder(), "tests.unit.fakes.rig:OPERATIONS", patience)
    assert [relay.drains for relay in Reconciled.made] == [1]
    assert command._report(rig.box, done, patience) == 1
    assert "migration 42 (`atb outbox resume` ends it); pending: 1" in capsys.readouterr().out


def test_pause_that_begins_after_the_order_withdraws_it(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.step()  # takes the relay's role

    def place(box: Outbox, order: ReconcileOrder) -> bytes:
        placed = place_order(box, order)
        box.pauses.begin("migration 42")
        return placed

    monkeypatch.setattr(command, "place_order", place)
    with pytest.raises(Refused, match="nothing was put back: delivery is paused .*migration 42"):
        command._by_relay(rig.box, ReconcileOrder(), Patience(60, rig.clock.monotonic))
    assert not ordered(rig.box)


def test_what_an_earlier_call_has_put_back_is_reported(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    rig.enqueue("a")
    patience = Patience(60, rig.clock.monotonic)
    nothing = Reconciliation(needed=False)
    assert command._report(rig.box, nothing, patience) == 1
    assert "1 entry is pending; start the engine, or run `atb outbox drain" in capsys.readouterr().out
    assert command._report(rig.box, nothing, patience, accepted=True) == 0
    assert "pending" not in capsys.readouterr().out
