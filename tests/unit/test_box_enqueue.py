"""What `enqueue` and `transaction` promise: recorded whole when they return, or refused and nothing changed."""

from __future__ import annotations

import enum
import sys
import threading
import tracemalloc
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from types import MappingProxyType
from typing import Any
from uuid import UUID

import pytest

from outbox import (
    ConfigError,
    EntryNotFound,
    EntryStatus,
    IdempotencyConflict,
    InvalidEntry,
    Operation,
    Outbox,
    OutboxConfig,
    OutboxError,
    StoreClosed,
    StoreLocked,
)
from outbox.store.ledger import Settlement
from outbox.store.writer import Rank
from tests.unit.fakes.rig import FakeClock
from tests.unit.fakes.waiting import LONG


def refuse_negative(args: Mapping[str, Any]) -> None:
    if (args.get("amount") or 0) < 0:
        raise ArithmeticError("amount is negative")


OPERATIONS = (
    Operation("log", table="log"),
    Operation("order", table="orders", identity="order_id", order_by="symbol", validate=refuse_negative),
)


class Unregistered(enum.Enum):
    A = 1


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def box(outbox_dir: Path, clock: FakeClock) -> Iterator[Outbox]:
    with Outbox.open(outbox_dir, OutboxConfig(max_entry_kb=4), OPERATIONS, clock=clock) as box:
        yield box


def state(box: Outbox) -> Any:
    """Changes with every committed transaction."""
    assert box.store._environment is not None
    return box.store._environment.env.info()["last_txnid"]


def settle_all(box: Outbox) -> None:
    box.store.settle(Settlement(completed=[(record, b"") for record in box.store.records("pending")]))


def order(**changes: Any) -> dict[str, Any]:
    return {"order_id": "o-1", "symbol": "BTC", "amount": Decimal("1.50"), **changes}


def test_an_entry_is_recorded_as_it_was_given(box: Outbox, clock: FakeClock) -> None:
    entry = box.enqueue("order", order(at=datetime(2024, 3, 1, tzinfo=UTC), tags=("a", b"b")))
    (stored,) = box.pending()
    assert entry == stored
    assert entry.seq == 1
    assert isinstance(entry.id, UUID)
    assert len(bytes.fromhex(entry.key)) == 16
    assert entry.operation == "order"
    assert entry.args == order(at=datetime(2024, 3, 1, tzinfo=UTC), tags=("a", b"b"))
    assert (entry.order_by, entry.group, entry.attempts) == ("BTC", None, 0)
    assert entry.captured_at == clock.now()
    assert (entry.status, entry.error, entry.settled_at) == (EntryStatus.PENDING, None, None)


@pytest.mark.parametrize("args", [OrderedDict(a=1), MappingProxyType({"a": 1})], ids=["OrderedDict", "proxy"])
def test_any_mapping_will_do(box: Outbox, args: Mapping[str, Any]) -> None:
    assert box.enqueue("log", args).args == {"a": 1}


def test_the_callers_arguments_may_change_afterwards(box: Outbox) -> None:
    args = {"a": [1]}
    entry = box.enqueue("log", args)
    args["a"].append(2)
    assert entry.args == {"a": [1]}


REFUSED: list[tuple[dict[str, Any], type[Exception], str]] = [
    ({"operation": "sell"}, InvalidEntry, "'sell' is not declared.*declared: log, order"),
    ({"operation": "a b"}, InvalidEntry, "'a b' is not a valid name"),
    ({"operation": None}, InvalidEntry, "None is not a valid name"),
    ({"args": [1]}, InvalidEntry, r"args of 'log' is \[1\].*a mapping with text keys"),
    ({"args": None}, InvalidEntry, "args of 'log' is None"),
    ({"args": {1: 2}}, InvalidEntry, "args of 'log' is {1: 2}"),
    ({"args": {"": 2}}, InvalidEntry, "args of 'log' is {'': 2}"),
    ({"args": {"price": float("nan")}}, InvalidEntry, "args.price is nan"),
    ({"args": {"price": Decimal("Infinity")}}, InvalidEntry, "args.price is Infinity"),
    ({"args": {"price": Decimal("1E+200000")}}, InvalidEntry, "args.price .*beyond PostgreSQL's numeric"),
    ({"args": {"note": "a\0"}}, InvalidEntry, "args.note contains a NUL"),
    ({"args": {"note": ["\ud800"]}}, InvalidEntry, r"args.note\[0\] contains a lone surrogate"),
    ({"args": {"side": Unregistered.A}}, InvalidEntry, "args.side .*register_enum"),
    ({"args": {"thing": object()}}, InvalidEntry, "args.thing has type builtins.object"),
    ({"args": {"note": "x" * 5000}}, InvalidEntry, "args of 'log' take 4 KiB.*at most max_entry_kb=4"),
    ({"key": ""}, InvalidEntry, "key is ''.*1 to 1024 characters"),
    ({"key": 5}, InvalidEntry, "key is 5"),
    ({"order_by": ""}, InvalidEntry, "order_by is ''"),
    ({"order_by": "x" * 256}, InvalidEntry, "order_by is 'xxx.*1 to 255 bytes"),
    ({"operation": "order", "args": order(amount=-1)}, ArithmeticError, "amount is negative"),
    ({"operation": "order", "args": {"symbol": "BTC"}}, InvalidEntry, "needs argument 'order_id' as its identity"),
    ({"operation": "order", "args": {"order_id": 1}}, InvalidEntry, "needs argument 'symbol' as its ordering key"),
]


@pytest.mark.parametrize(
    ("call", "error", "message"), REFUSED, ids=[message[:30].replace("\\", "") for *_, message in REFUSED]
)
@pytest.mark.parametrize("grouped", [False, True], ids=["alone", "in a transaction"])
def test_a_refused_call_is_named_and_leaves_the_store_unchanged(
    box: Outbox, call: dict[str, Any], error: type[Exception], message: str, grouped: bool
) -> None:
    call = {"operation": "log", "args": {"a": 1}, **call}
    before = state(box)
    with pytest.raises(error, match=message):
        if grouped:
            with box.transaction() as tx:
                tx.enqueue("log", {"before": 1})
                tx.enqueue(**call)
        else:
            box.enqueue(**call)
    assert state(box) == before
    assert list(box.pending()) == []
    assert box.enqueue("log", {}).seq == 1


def test_without_declarations_every_name_and_argument_is_taken(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        assert box.enqueue("anything", {"a": 1}).operation == "anything"


def test_bad_declarations_are_refused_before_anything_is_created(outbox_dir: Path) -> None:
    with pytest.raises(ConfigError, match="declared twice"):
        Outbox.open(outbox_dir, operations=[OPERATIONS[0], OPERATIONS[0]])
    assert not outbox_dir.exists()


@pytest.mark.parametrize("opening", [Outbox.open, Outbox.attach])
def test_settings_in_the_place_of_the_path_are_refused(opening: Callable[..., Outbox]) -> None:
    with pytest.raises(ConfigError, match="settings are given as config"):
        opening(OutboxConfig())


# -- identity


def test_two_equal_calls_without_identity_are_two_entries(box: Outbox) -> None:
    one, other = box.enqueue("log", {"fee": 1}), box.enqueue("log", {"fee": 1})
    assert (one.seq, other.seq) == (1, 2)
    assert one.key != other.key


@pytest.mark.parametrize("settled", [False, True])
@pytest.mark.parametrize("reopened", [False, True])
def test_a_repeated_call_returns_the_first_entry(outbox_dir: Path, settled: bool, reopened: bool) -> None:
    box = Outbox.open(outbox_dir, operations=OPERATIONS)
    try:
        first = [box.enqueue("order", order()), box.enqueue("log", {"a": 1}, key="k")]
        if settled:
            settle_all(box)
        if reopened:
            box.close()
            box = Outbox.open(outbox_dir, operations=OPERATIONS)
        before = state(box)
        again = [box.enqueue("order", order()), box.enqueue("log", {"a": 1}, key="k")]
        assert [(entry.seq, entry.id, entry.key) for entry in again] == [
            (entry.seq, entry.id, entry.key) for entry in first
        ]
        expected = EntryStatus.COMPLETED if settled else EntryStatus.PENDING
        assert {entry.status for entry in again} == {expected}
        assert state(box) == before
        assert box.status().acknowledged == 2
    finally:
        box.close()


@pytest.mark.parametrize("settled", [False, True])
def test_the_same_key_with_other_arguments_is_a_conflict(box: Outbox, settled: bool) -> None:
    entry = box.enqueue("order", order())
    box.enqueue("log", {"a": 1}, key="k")
    if settled:
        settle_all(box)
    before = state(box)
    with pytest.raises(
        IdempotencyConflict, match=f"key {entry.key} of operation 'order' is used by entry 1 with other"
    ):
        box.enqueue("order", order(amount=Decimal("1.5")))
    with pytest.raises(IdempotencyConflict, match="is used by entry 2"):
        box.enqueue("log", {"a": 1.0}, key="k")
    assert state(box) == before


def test_one_key_in_two_operations_is_two_intents(box: Outbox) -> None:
    assert box.enqueue("log", {"a": 1}, key="k").seq == 1
    assert box.enqueue("order", order(), key="k").seq == 2


def test_a_callers_key_stands_for_the_declared_identity(box: Outbox) -> None:
    assert box.enqueue("order", order(), key="a").seq == 1
    assert box.enqueue("order", order(), key="b").seq == 2
    assert box.enqueue("order", order()).seq == 3


def test_a_key_cannot_be_mistaken_for_an_identity(outbox_dir: Path) -> None:
    operation = Operation("log", table="log", identity=lambda args: args["id"])
    with Outbox.open(outbox_dir, operations=[operation]) as box:
        assert box.enqueue("log", {"id": 1}).seq == 1
        assert box.enqueue("log", {"id": 2}, key="1").seq == 2
        assert box.enqueue("log", {"id": "1"}).seq == 3


def test_an_empty_identity_field_makes_every_call_its_own_intent(box: Outbox) -> None:
    assert [box.enqueue("order", order(order_id=None)).seq for _ in range(2)] == [1, 2]


@pytest.mark.parametrize(("namespace", "shared"), [(None, False), ("desk", True)])
def test_stores_share_their_keys_only_within_a_namespace(tmp_path: Path, namespace: str | None, shared: bool) -> None:
    config = OutboxConfig(namespace=namespace)
    with Outbox.open(tmp_path / "a", config) as one, Outbox.open(tmp_path / "b", config) as other:
        keys = {box.enqueue("log", {}, key="k").key for box in (one, other)}
    assert (len(keys) == 1) == shared


# -- order


def test_the_ordering_key_of_the_call_wins(box: Outbox) -> None:
    assert box.enqueue("order", order(), order_by="ETH").order_by == "ETH"
    assert box.enqueue("order", order(order_id=2), order_by=7).order_by == "7"
    assert box.enqueue("log", {}).order_by is None


@pytest.mark.slow
def test_entries_are_listed_in_the_order_of_their_calls(box: Outbox) -> None:
    for number in range(700):
        box.enqueue("log", {"number": number}) if number % 2 else box.enqueue("order", order(order_id=number))
    entries = list(box.pending())
    assert [entry.seq for entry in entries] == list(range(1, 701))
    assert [entry.args.get("number", entry.args.get("order_id")) for entry in entries] == list(range(700))


def test_stamps_strictly_increase_even_when_the_clock_does_not(outbox_dir: Path) -> None:
    clock = FakeClock()
    stamps = []
    for _ in range(2):
        with Outbox.open(outbox_dir, clock=clock) as box:
            for step in (0.0, 0.0, -3600.0, -1.0, 0.0):
                clock.advance(step)
                stamps.append(box.enqueue("log", {}).captured_at)
            with box.transaction() as tx:
                for _ in range(3):
                    tx.enqueue("log", {})
            stamps += [entry.captured_at for entry in tx.entries]
    assert stamps == sorted(set(stamps))
    assert stamps[-1] - stamps[0] == timedelta(microseconds=len(stamps) - 1)
    clock.advance(10_000)
    with Outbox.open(outbox_dir, clock=clock) as box:
        assert box.enqueue("log", {}).captured_at == clock.now()


def test_sequence_numbers_are_never_used_again(outbox_dir: Path) -> None:
    seen = []
    for _ in range(3):
        with Outbox.open(outbox_dir) as box:
            seen += [box.enqueue("log", {}).seq for _ in range(2)]
            settle_all(box)
            box.compact(timedelta(0))
            assert box.status().pending == 0
    assert seen == [1, 2, 3, 4, 5, 6]


# -- transactions


def test_a_transaction_records_all_of_its_entries_as_one_group(box: Outbox) -> None:
    box.enqueue("log", {})
    before = state(box)
    with box.transaction() as tx:
        tx.enqueue("log", {"a": 1}, order_by="k")
        tx.enqueue("order", order(), key="mine")
        assert list(box.pending())[1:] == []
        assert tx.entries == []
    assert state(box) == before + 1
    assert [(entry.seq, entry.group, entry.order_by) for entry in tx.entries] == [(2, 2, "k"), (3, 2, "BTC")]
    assert tx.entries == list(box.pending())[1:]
    assert [record.members for record in box.store.records("pending")] == [0, 2, 2]


def test_an_exception_inside_records_nothing(box: Outbox) -> None:
    before = state(box)
    with pytest.raises(KeyError), box.transaction() as tx:
        tx.enqueue("log", {"a": 1})
        raise KeyError("changed my mind")
    assert state(box) == before
    assert tx.entries == []


def test_an_empty_transaction_writes_nothing(box: Outbox) -> None:
    before = state(box)
    with box.transaction() as tx:
        pass
    assert (state(box), tx.entries) == (before, [])


def test_a_transaction_of_one_is_no_group(box: Outbox) -> None:
    with box.transaction() as tx:
        tx.enqueue("log", {})
    assert [entry.group for entry in tx.entries] == [None]


def test_a_call_repeated_inside_a_transaction_is_one_entry(box: Outbox) -> None:
    box.enqueue("log", {"old": 1}, key="old")
    with box.transaction() as tx:
        for _ in range(2):
            tx.enqueue("order", order())
        tx.enqueue("log", {"old": 1}, key="old")
        tx.enqueue("log", {"a": 1})
    assert [(entry.seq, entry.group) for entry in tx.entries] == [(2, 2), (2, 2), (1, None), (3, 2)]
    assert [record.members for record in box.store.records("pending")] == [0, 2, 2]


@pytest.mark.parametrize("where", ["inside", "before"])
def test_a_conflict_in_a_transaction_refuses_all_of_it(box: Outbox, where: str) -> None:
    if where == "before":
        box.enqueue("order", order())
    before = state(box)
    with (
        pytest.raises(IdempotencyConflict, match="entry above" if where == "inside" else "entry 1 "),
        box.transaction() as tx,
    ):
        tx.enqueue("log", {"a": 1})
        if where == "inside":
            tx.enqueue("order", order())
        tx.enqueue("order", order(amount=2))
    assert state(box) == before
    assert tx.entries == []


def test_a_transaction_that_has_ended_takes_no_more(box: Outbox) -> None:
    with box.transaction() as tx:
        tx.enqueue("log", {})
    with pytest.raises(InvalidEntry, match="the transaction has ended"):
        tx.enqueue("log", {})


def test_a_transaction_that_was_given_up_takes_no_more(box: Outbox) -> None:
    with pytest.raises(KeyError), box.transaction() as tx:
        raise KeyError("changed my mind")
    with pytest.raises(InvalidEntry, match="the transaction has ended"):
        tx.enqueue("log", {})


def test_a_transaction_is_bounded_in_bytes(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.enqueueing._MAX_GROUP_MIB", 1)
    row = {"note": "x" * (3 << 10)}
    with box.transaction() as tx:
        for _ in range(300):
            tx.enqueue("log", row)
    refused = r"the 350 entries of a transaction take \d+ KiB, at most 1024 \(use several transactions\)"
    with pytest.raises(InvalidEntry, match=refused), box.transaction() as tx:
        for _ in range(350):
            tx.enqueue("log", row)
    assert box.status().pending == 300


def test_a_transaction_is_bounded(box: Outbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outbox.calls._MAX_GROUP", 3)
    with pytest.raises(InvalidEntry, match="at most 3 entries"), box.transaction() as tx:
        for _ in range(4):
            tx.enqueue("log", {})
    assert list(box.pending()) == []


# -- listeners, memory


def test_listeners_hear_of_durable_entries_only(box: Outbox) -> None:
    heard: list[int] = []

    def listen() -> None:
        heard.append(box.status().pending)

    def all_told() -> list[int]:
        # The writer answers first, and does one thing after the other.
        assert box.store.writer is not None
        box.store.writer.run(Rank.MAINTAIN, lambda: None)
        return heard

    box.on_enqueue(listen)
    box.enqueue("log", {})
    assert all_told() == [1]
    with pytest.raises(InvalidEntry):
        box.enqueue("sell", {})
    with box.transaction() as tx:
        tx.enqueue("log", {})
        tx.enqueue("log", {})
    assert all_told() == [1, 3]
    box.off_enqueue(listen)
    box.off_enqueue(listen)
    box.enqueue("log", {})
    assert all_told() == [1, 3]


@pytest.mark.slow
def test_listing_takes_bounded_memory_and_holds_no_snapshot(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        with box.transaction() as tx:
            for number in range(5000):
                tx.enqueue("log", {"number": number, "text": "x" * 1000})
        del tx
        tracemalloc.start()
        try:
            listing = box.pending()
            first = next(listing)
            # Between two rows nothing is pinned: what is enqueued meanwhile is seen in the end.
            box.enqueue("log", {"late": True})
            count, last = 1, first
            for entry in listing:
                count, last = count + 1, entry
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert count == 5001
    assert last.args == {"late": True}
    assert peak < 2_000_000


# -- observers


def test_an_observer_cannot_enqueue(box: Outbox, outbox_dir: Path) -> None:
    box.enqueue("log", {})
    box.close()
    with Outbox.attach(outbox_dir) as observer:
        assert [entry.seq for entry in observer.pending()] == [1]
        with pytest.raises(StoreLocked, match="was attached, not opened, and cannot enqueue"):
            observer.enqueue("log", {})
        with pytest.raises(StoreLocked, match="cannot enqueue"), observer.transaction() as tx:
            tx.enqueue("log", {})
        assert [entry.seq for entry in observer.pending()] == [1]


def test_every_error_is_an_outbox_error_with_a_way_out(box: Outbox) -> None:
    with pytest.raises(OutboxError) as caught:
        box.enqueue("sell", {})
    assert caught.value.hint == "declared: log, order"
    assert str(caught.value) == f"{caught.value.message} ({caught.value.hint})"


@pytest.mark.parametrize("retention", [timedelta(-1), 5, "1h"])
def test_a_bad_retention_is_refused_by_value(box: Outbox, retention: Any) -> None:
    with pytest.raises(ConfigError, match="retention is .*a timedelta of zero or more"):
        box.compact(retention)


def test_a_retention_of_ages_prunes_nothing(box: Outbox) -> None:
    assert box.compact(timedelta.max) == 0


def test_lookup_finds_the_entry_that_a_call_would_repeat(box: Outbox) -> None:
    assert box.lookup("order", order()) is None
    first = box.enqueue("order", order())
    assert box.lookup("order", order(amount=Decimal(9))) == first
    assert box.lookup("order", order(order_id="o-2")) is None
    assert box.lookup("log", {}) is None
    assert box.lookup("log", {}, key="k") is None
    assert box.lookup("log", {}, key=None) is None
    with pytest.raises(InvalidEntry, match="not declared"):
        box.lookup("other", {})
    settle_all(box)
    again = box.lookup("order", order())
    assert again is not None
    assert (again.seq, again.status) == (first.seq, EntryStatus.COMPLETED)


def test_an_entry_is_found_by_its_sequence_number_wherever_it_is(box: Outbox) -> None:
    first = box.enqueue("log", {})
    assert box.entry(first.seq) == first
    settle_all(box)
    assert box.entry(first.seq).status is EntryStatus.COMPLETED
    with pytest.raises(EntryNotFound, match="entry 2"):
        box.entry(2)


def test_declarations_can_be_added_and_replaced(box: Outbox, outbox_dir: Path) -> None:
    box.declare([Operation("more", table="more", order_by="who"), Operation("log", table="logs", order_by="who")])
    assert box.enqueue("more", {"who": "a"}).order_by == "a"
    assert box.enqueue("log", {"who": "b"}).order_by == "b"
    with pytest.raises(InvalidEntry, match="not declared"):
        box.enqueue("other", {})


def test_an_outbox_without_declarations_goes_on_taking_any_name(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.declare([Operation("more", table="more", order_by="who")])
        assert box.enqueue("more", {"who": "a"}).order_by == "a"
        assert box.enqueue("other", {}).order_by is None


# -- signal handlers


def in_a_thread(call: Callable[[], object]) -> None:
    """Run `call`, and fail instead of waiting for ever where it does."""
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(LONG)
    assert not thread.is_alive()


def test_signal_handler_inside_a_read_can_close(box: Outbox) -> None:
    def close_in_a_read() -> None:
        with box.store._read() as (_, txn):
            box.close()
            assert txn.stat(box.store._closing.pending)["entries"] == 0  # type: ignore[union-attr]
        with pytest.raises(StoreClosed):
            box.status()

    in_a_thread(close_in_a_read)
    assert box.store._closing is None


def test_a_signal_handler_can_look_wherever_it_comes(box: Outbox) -> None:
    def look() -> None:
        with box.store._mutex:
            assert box.status().pending == 0

    in_a_thread(look)


def test_a_signal_handler_can_enqueue_at_any_line_of_a_look(box: Outbox) -> None:
    """It waits for the writer, which must not wait for the thread that the handler has interrupted."""
    met: set[tuple[str, int]] = set()

    def interrupted(frame: Any, event: str, _: Any) -> Any:
        place = frame.f_code.co_filename, frame.f_lineno
        if not place[0].endswith(("gate.py", "reads.py")):
            return None
        if event == "line" and place not in met:
            met.add(place)
            sys.settrace(None)
            box.enqueue("log", {})
            sys.settrace(interrupted)
        return interrupted

    def look() -> None:
        sys.settrace(interrupted)
        box.status()
        sys.settrace(None)

    in_a_thread(look)
    assert len(met) > 10
    assert box.status().pending == len(met)
