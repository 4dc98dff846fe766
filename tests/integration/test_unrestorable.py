"""An entry whose Python types cannot be restored concerns itself only: it is shown, discarded, or a dead letter."""

from __future__ import annotations

import enum
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, text

from outbox import Entry, EntryStatus, Operation, Relay, codec, register_enum, registered
from outbox.operation import payload_hash
from outbox.store import entry_json
from outbox.store.envelope import pack, seq_key
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench, parked
from tests.unit.fakes.waiting import LONG

QUICK: dict[str, Any] = {"backoff_base": 0.01, "backoff_cap": 0.05, "max_retries": 3}


def _write(connection: Connection, entry: Entry) -> None:
    row = {"n": entry.args["n"], "side": entry.args["side"].value}
    connection.execute(text("INSERT INTO trades (n, side) VALUES (:n, :side)"), row)


TRADE = Operation("trade", handler=_write, order_by="k")
FEE = Operation("fee", table="fees", order_by="k")


def _forget() -> None:
    """A new process, which has registered nothing."""
    for name in [name for name in registered.enums if name.startswith("bot.")]:
        del registered.enums[name]


def _version(members: dict[str, str], module: str = "bot.enums") -> Any:
    """A new process, with its version of the Enum."""
    _forget()
    made = enum.Enum("Side", members, module=module)  # type: ignore[misc]
    made.__qualname__ = "Side"
    return register_enum(made)


def _renamed() -> Any:
    return _version({"LONG": "buy", "SELL": "sell"})


def _moved() -> Any:
    return _version({"LONG": "buy", "SELL": "sell"}, "bot.domain.enums")


@pytest.fixture
def bench(postgres_url: str, outbox_dir: Path) -> Iterator[Bench]:
    query(postgres_url, "CREATE TABLE trades (n int, side text)")
    query(postgres_url, "CREATE TABLE fees (k text, n int)")
    with Bench(outbox_dir, postgres_url, TRADE, FEE, **QUICK) as made:
        yield made
    _forget()


def _drain(bench: Bench) -> None:
    with Relay(bench.box, bench.target) as relay:
        assert relay.drain(timeout=LONG)


@pytest.mark.parametrize("deploy", [_renamed, _moved])
def test_unrestorable_entry_is_a_dead_letter_and_others_go_on(bench: Bench, deploy: Callable[[], Any]) -> None:
    side = _version({"BUY": "buy", "SELL": "sell"})
    old = bench.enqueue("trade", {"k": "a", "n": 1, "side": side.BUY})
    behind = bench.enqueue("fee", {"k": "a", "n": 1})
    other = bench.enqueue("fee", {"k": "b", "n": 2})
    new = deploy()
    good = bench.enqueue("trade", {"k": "c", "n": 3, "side": new.LONG})

    assert dict(bench.box.entry(old).args) == {"k": "a", "n": 1, "side": "buy"}
    _drain(bench)

    [letter] = bench.box.dead_letters()
    assert letter.seq == old
    assert "Side" in (letter.error or "")
    assert [entry.seq for entry in bench.box.pending()] == [behind]
    assert bench.box.entry(other).status is bench.box.entry(good).status is EntryStatus.COMPLETED

    # The old name is back, and nothing was lost.
    _version({"BUY": "buy", "SELL": "sell"})
    bench.box.requeue(old)
    _drain(bench)
    assert bench.query("SELECT n, side FROM trades ORDER BY n") == [(1, "buy"), (3, "buy")]
    assert bench.query("SELECT n FROM fees ORDER BY n") == [(1,), (2,)]


def test_many_entries_of_an_unknown_class_park_their_operation(bench: Bench) -> None:
    side = _version({"BUY": "buy"})
    for number in range(20):
        bench.enqueue("trade", {"k": str(number), "n": number, "side": side.BUY})
    _forget()
    outcome = bench.apply()
    assert "not registered in this process" in parked(outcome)
    assert (outcome.rejected, len(outcome.waiting)) == ([], 20)
    _version({"BUY": "buy"})
    _drain(bench)
    assert bench.query("SELECT count(*) FROM trades") == [(20,)]


def test_many_old_entries_beside_a_new_one_are_dead_letters(bench: Bench) -> None:
    side = _version({"BUY": "buy"})
    for number in range(20):
        bench.enqueue("trade", {"k": str(number), "n": number, "side": side.BUY})
    new = _moved()
    bench.enqueue("trade", {"k": "z", "n": 99, "side": new.LONG})
    _drain(bench)
    assert bench.box.status().dead_letters == 20
    assert bench.query("SELECT n FROM trades") == [(99,)]


@pytest.mark.parametrize("operation", ["trade", "fee"])
@pytest.mark.parametrize("types", [{"dict": {"n": "nonsense"}}, {"dict": {"n": ["enum"]}}, {"odd": {}}, [1], "x", {}])
def test_entry_with_malformed_types_concerns_itself_only(bench: Bench, operation: str, types: Any) -> None:
    seq = bench.enqueue(operation, {"k": "a", "n": 1, "side": "buy"} if operation == "trade" else {"k": "a", "n": 1})
    good = bench.enqueue("fee", {"k": "b", "n": 2})
    [record, _] = bench.box.store.records("pending")
    line = entry_json.to_object(record, entry_json.State.PENDING)
    line["types"] = types
    hashed = payload_hash(operation, codec.to_json(line["args"]), codec.to_json(types))
    broken, _ = entry_json.from_object({**json.loads(json.dumps(line)), "payload_hash": hashed.hex()})
    _replace(bench, broken)

    assert [entry.args["n"] for entry in bench.box.pending()] == [1, 2]
    _drain(bench)
    assert bench.box.entry(good).status is EntryStatus.COMPLETED
    assert [entry.seq for entry in bench.box.dead_letters()] in ([seq], [])
    assert bench.box.entry(seq).status in (EntryStatus.FAILED, EntryStatus.COMPLETED)


def _replace(bench: Bench, record: Any) -> None:
    bench.box.store.maintain(
        "replace an entry",
        lambda environment, txn, counters: txn.put(seq_key(record.seq), pack(record), db=environment.pending),
    )
