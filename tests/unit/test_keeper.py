"""The keeper stores the last view in which nothing is in doubt, and what is needed to fold the rest once more."""

from __future__ import annotations

import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from outbox import Entry, Outbox, Relay, StoreClosed
from outbox.integrations.manager.host import Host
from outbox.integrations.operations import NOTES, ManagerOperation
from outbox.integrations.outage import Outage
from outbox.integrations.upkeep.keeper import Keeper
from outbox.integrations.view.reads import Reads
from outbox.integrations.view.seen import Seen
from outbox.testing import InMemoryTarget
from tests.unit.fakes.rig import FakeClock
from tests.unit.fakes.waiting import LONG, until

IDS = {5: {"orders.id": [50]}, 7: {"orders.id": [70]}}


def keeper(box: Outbox, *operations: ManagerOperation) -> Keeper:
    host = Host(SimpleNamespace, box.clock)
    reserves: Any = SimpleNamespace(low=False, show=lambda: None)
    return Keeper(host, box, {one.name: one for one in operations}, Reads(), reserves, Outage(box, host))


def shown(one: Keeper, seq: int) -> None:
    """PostgreSQL shows session 1 as it is after entry `seq`."""
    one.view.seq = seq
    one.view.observe_session(1, 1.0, {"positions": {}, "orders": {}}, active=True)
    one.view.learning.version += 1


def test_a_view_in_doubt_is_stored_as_it_was_before(outbox_dir: Path) -> None:
    """A restart in an outage begins with it, not with an older one whose entries cannot be folded any more."""
    with Outbox.open(outbox_dir) as box:
        first = keeper(box)
        shown(first, 4)
        first.kept.checkpoint()
        shown(first, 5)
        first.kept._set_base(first.view.snapshot())
        first.view.seq = 7
        first.view.doubt(1, "orders", "a call that was never seen")
        first.view.learning.taken = dict(IDS)
        first.view.learning.version += 1
        first.kept.checkpoint()
        again = keeper(box)
        assert (again.view.seq, again.view.is_sure(1)) == (5, True)
        assert again.view.learning.taken == IDS


def test_ids_of_entries_behind_the_stored_view_are_kept(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        first = keeper(box)
        first.view.learning.taken = dict(IDS)
        shown(first, 5)
        first.kept._set_base(first.view.snapshot())
        assert first.view.learning.taken == IDS
        first.kept.checkpoint()
        assert first.view.learning.taken == {7: IDS[7]}


def test_a_view_in_doubt_is_not_tried_at_each_call(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage may be long, and each try holds up the calls."""
    monkeypatch.setattr("outbox.integrations.upkeep.kept_view._EVERY", 3)
    order = ManagerOperation("order", like="create_order_journal_entry")
    with Outbox.open(outbox_dir) as box:
        first = keeper(box, order)
        shown(first, 0)
        woken = []
        for number in range(7):
            first._wake.clear()
            first.follow(box.enqueue("order", {"client_order_id": str(number), NOTES: {"session": 1}}), soon=False)
            woken.append(first._wake.is_set())
            first.kept.checkpoint() if woken[-1] else None
        assert not first.view.is_sure(1)
        assert woken == [True, False, False, True, False, False, True]


def test_low_reserves_of_ids_are_not_asked_for_in_an_outage(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each call would wake the background thread, and where the relay is another process, try to connect."""

    def fill(_: Any) -> None:
        raise OperationalError("SELECT 1", {}, Exception("connection refused"))

    monkeypatch.setattr("outbox.integrations.upkeep.keeper.engine_of", lambda _: None)
    clock = FakeClock()
    order = ManagerOperation("order", like="create_order_journal_entry")
    with Outbox.open(outbox_dir, clock=clock) as box:
        first = keeper(box, order)
        reserves: Any = first._reserves
        reserves.low, reserves.fill = True, fill
        first._host.manager()

        def is_woken(number: int) -> bool:
            first._wake.clear()
            first.follow(box.enqueue("order", {"client_order_id": str(number), NOTES: {"session": None}}), soon=False)
            return first._wake.is_set()

        assert is_woken(0)
        box.progress.report(delivering=False)
        assert not is_woken(1)
        box.progress.report(delivering=None)
        first._work()
        assert not is_woken(2)
        clock.advance(5)
        assert is_woken(3)


def test_status_shows_before_an_outage_what_it_does_not_answer(outbox_dir: Path) -> None:
    close = ManagerOperation("close_position", like="close_position")
    with Outbox.open(outbox_dir) as box:
        first = keeper(box, close)
        shown(first, 4)
        first._tend()
        notice = box.status().notices["unanswerable"]
        assert notice.message == "an outage does not answer: rows after the first call of close_position (never seen)"
        assert not notice.degraded
        first.view.learning.learn(Seen(close, {"position_id": 5}, {}, {"positions": {5: {"id": 5}}}), {"positions": {}})
        first._tend()
        assert "unanswerable" not in box.status().notices


def test_reads_of_sessions_are_asked_where_no_delivery_teaches(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay in another process asks nothing; what was asked is kept at once."""
    begins = ManagerOperation("create_trading_session", like="create_trading_session", handler=lambda *_: None)
    with Outbox.open(outbox_dir, operations=[begins]) as box:
        first = keeper(box, begins)
        first._host.manager()
        first.follow(box.enqueue("create_trading_session", {NOTES: {"session": 1, "id": 1}}), soon=False)
        Relay(box, InMemoryTarget([begins])).drain(timeout=LONG)
        tables: Any = {"positions": {}, "orders": {}}
        look = SimpleNamespace(
            balance=1.0, shows_balance=True, tables=tables, unknown={}, answers={"get_active_session_id": 1}
        )
        monkeypatch.setattr(first, "_shown", lambda _: look)
        first._tend()
        first._tend()
        assert first.view.active_session_id() == 1
        assert first._wake.is_set()


def test_keeper_goes_on_after_a_fold_that_failed(outbox_dir: Path) -> None:
    order = ManagerOperation("order", like="create_order_journal_entry")
    with Outbox.open(outbox_dir) as box:
        first, tries = keeper(box, order), list[int]()
        fold_one = first.view.fold

        def fails_once(entry: Entry) -> object:
            tries.append(entry.seq)
            if len(tries) == 1:
                raise StoreClosed("the outbox is closed")
            return fold_one(entry)

        first.view.fold = fails_once
        first.start()
        try:
            first.follow(box.enqueue("order", {"client_order_id": "a", NOTES: {"session": 1}}), soon=True)
            until(lambda: bool(tries))
            first.follow(box.enqueue("order", {"client_order_id": "b", NOTES: {"session": 1}}), soon=True)
            until(lambda: first.view._seq == 2)
        finally:
            first.stop()
        assert tries == [1, 1, 2]


def test_keeper_outlives_an_outbox_that_is_closed_under_it(outbox_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Outbox.open(outbox_dir) as box:
        one = keeper(box)
        shown(one, 4)
        one.kept.checkpoint()
    one._tend()
    assert "the local view was not kept" in caplog.text


def test_call_in_the_middle_of_a_fold_is_folded_behind_the_others(outbox_dir: Path) -> None:
    """A signal handler makes it, and waits for its delivery; others before it are not folded in yet."""
    order = ManagerOperation("order", like="create_order_journal_entry")
    with Outbox.open(outbox_dir) as box:
        first, folded = keeper(box, order), list[int]()
        made = [box.enqueue("order", {"client_order_id": name, NOTES: {"session": 1}}) for name in "abc"]
        fold_one = first.view.fold

        def interrupted(entry: Entry) -> object:
            folded.append(entry.seq)
            if len(folded) == 1:
                first.follow(made[2], soon=False)
            return fold_one(entry)

        first.view.fold = interrupted
        first.follow(made[0], soon=True)
        first.follow(made[1], soon=True)
        assert first.view.seq == 3
        assert folded == [1, 2, 3]


def test_handler_may_call_while_the_keeper_is_woken(outbox_dir: Path) -> None:
    """It has interrupted a thread that wakes the keeper for a call of its own, and neither may wait for the other."""
    order = ManagerOperation("order", like="create_order_journal_entry")
    with Outbox.open(outbox_dir) as box:
        first, left = keeper(box, order), list("abcdefgh")

        def follow() -> None:
            first.follow(box.enqueue("order", {"client_order_id": left.pop(), NOTES: {"session": 1}}), soon=True)

        def interrupted(frame: Any, event: str, _: Any) -> Any:
            """Call before each line of what wakes it."""
            if frame.f_code.co_name != "set":
                return interrupted if event == "call" else None
            if event == "line" and left:
                sys.settrace(None)
                follow()
                sys.settrace(interrupted)
            return interrupted

        def call() -> None:
            sys.settrace(interrupted)
            follow()
            sys.settrace(None)

        caller = threading.Thread(target=call, daemon=True)
        caller.start()
        caller.join(LONG)
        assert not caller.is_alive()
        assert first.view.seq == 8 - len(left) > 1
