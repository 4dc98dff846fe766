"""The audit that ends every outage scenario can fail: each kind of loss, doubling and disorder is reported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from outbox import EntryRejected
from outbox.store.ledger import Settlement
from tests.unit.fakes.audit import query
from tests.unit.fakes.scene import Scene


@pytest.fixture
def scene(postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    scene = Scene(outbox_dir, postgres_url)
    scene.create()
    scene.trade(6, accounts=2)
    scene.audit.group(scene.box, 3)
    scene.trade(2, operation="booking")
    scene.finish()
    yield scene
    scene.relay.stop()
    scene.box.close()


@pytest.mark.parametrize(
    ("harm", "problem"),
    [
        ("DELETE FROM trades WHERE number = 3", "3 is completed and has 0 effects and 1 receipts"),
        (
            "INSERT INTO trades (number, account) SELECT number, account FROM trades WHERE number = 10",
            "10 is completed and has 2 effects and 1 receipts",
        ),
        ("DELETE FROM outbox_receipts WHERE seq = 2", "1 is completed and has 1 effects and 0 receipts"),
        ("UPDATE outbox_receipts SET seq = 99 WHERE seq = 2", "1 is completed and has 1 effects and 0 receipts"),
        ("INSERT INTO trades (number, account) VALUES (77, 'nobody')", "77 took effect and was never enqueued"),
        (
            "UPDATE trades SET id = 1000 WHERE number = 0",
            "account-0: 0 took effect after 9, and was enqueued before it",
        ),
    ],
)
def test_harm_done_in_postgresql_is_reported(scene: Scene, harm: str, problem: str) -> None:
    query(scene.url, harm)
    assert problem in scene.audit.problems(scene.box)


def test_an_entry_that_the_store_forgot_is_reported(scene: Scene) -> None:
    forgotten = replace(scene.audit.acknowledged[0], seq=12, key="0" * 32, args={"number": 11})
    scene.audit.acknowledged.append(forgotten)
    assert "11 was acknowledged and is nowhere" in scene.audit.problems(scene.box)


def test_an_entry_that_was_never_acknowledged_is_reported(scene: Scene) -> None:
    scene.audit.acknowledged.pop()
    assert "10 is in the store and was never enqueued" in scene.audit.problems(scene.box)


def test_a_dead_letter_with_a_row_is_reported(scene: Scene) -> None:
    scene.trade(1)
    [record] = scene.box.store.peek(0, 1).records
    query(scene.url, "INSERT INTO trades (number, account) VALUES (11, 'account-0')")
    scene.box.store.settle(Settlement(dead=[(record, str(EntryRejected("refused", permanent=True)))]))
    assert "11 is dead and has 1 effects and 0 receipts" in scene.audit.problems(scene.box)


def test_a_dead_letter_with_which_nothing_was_wrong_is_reported(scene: Scene) -> None:
    scene.trade(1)
    [record] = scene.box.store.peek(0, 1).records
    scene.box.store.settle(Settlement(dead=[(record, "tired")]))
    assert "11 is dead and nothing was wrong with it: tired" in scene.audit.problems(scene.box)
    scene.audit.refusable.add(11)
    assert scene.audit.problems(scene.box) == []


def test_pending_entry_is_no_problem_of_the_audit(scene: Scene) -> None:
    scene.trade(3)
    assert scene.audit.problems(scene.box) == []
