"""Batches with something wrong in them: the culprit is found with few transactions, everything else is applied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from outbox import Health, Operation, Relay, TargetUnavailable
from outbox.postgres.receipts import Cursor
from outbox.postgres.watermarks import RelaySession
from tests.unit.fakes.audit import query
from tests.unit.fakes.bench import Bench, completed, parked, rejected
from tests.unit.fakes.waiting import LONG, until


class Transactions:
    """Counts the transactions of a target: each takes the fence once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        enter = RelaySession.enter

        def counted(session: RelaySession, cursor: Cursor) -> None:
            self.count += 1
            enter(session, cursor)

        monkeypatch.setattr(RelaySession, "enter", counted)


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> Transactions:
    return Transactions(monkeypatch)


@pytest.fixture
def url(postgres_url: str) -> str:
    query(postgres_url, "CREATE TABLE effects (id serial PRIMARY KEY, n int UNIQUE)")
    return postgres_url


def rows(directory: Path, url: str) -> Bench:
    return Bench(
        directory, url, Operation("row", table="effects"), Operation("note", table="effects", best_effort=True)
    )


def effects(bench: Bench) -> list[int]:
    return [row[0] for row in bench.query("SELECT n FROM effects ORDER BY id")]


def test_a_good_batch_is_one_transaction(url: str, outbox_dir: Path, transactions: Transactions) -> None:
    with rows(outbox_dir, url) as bench:
        for number in range(100):
            bench.enqueue("row", {"n": number})
        bench.apply()
        assert transactions.count == 1
        assert bench.query("SELECT count(DISTINCT xmin::text) FROM effects") == [(1,)]


@pytest.mark.parametrize("bad", [0, 499, 999])
def test_one_bad_row_among_a_thousand_is_found_with_few_transactions(
    url: str, outbox_dir: Path, transactions: Transactions, bad: int
) -> None:
    with rows(outbox_dir, url) as bench:
        for number in range(1000):
            bench.enqueue("row", {"n": "seven" if number == bad else number})
        outcome = bench.apply()
        assert rejected(outcome) == [bad + 1]
        assert outcome.rejected[0][1].permanent
        assert str(outcome.rejected[0][1]).startswith("22P02")
        assert completed(outcome) == [seq for seq in range(1, 1001) if seq != bad + 1]
        # Halving 1000 takes 10 steps, with a good half beside each.
        assert transactions.count <= 21
        assert effects(bench) == [number for number in range(1000) if number != bad]


def test_several_bad_rows_are_all_found_and_order_is_kept(
    url: str, outbox_dir: Path, transactions: Transactions
) -> None:
    with rows(outbox_dir, url) as bench:
        for number in range(60):
            bench.enqueue("row", {"n": number - 1 if number % 20 == 10 else number})
        outcome = bench.apply()
        assert rejected(outcome) == [11, 31, 51]
        assert effects(bench) == [number for number in range(60) if number % 20 != 10]
        assert transactions.count < 45


def test_a_constraint_that_is_checked_at_commit_finds_its_culprit(
    url: str, outbox_dir: Path, transactions: Transactions
) -> None:
    query(url, "ALTER TABLE effects ADD COLUMN parent int REFERENCES effects (n) DEFERRABLE INITIALLY DEFERRED")
    with rows(outbox_dir, url) as bench:
        for number in range(64):
            bench.enqueue("row", {"n": number, "parent": 9999 if number == 40 else 0}, order_by=str(number % 2))
        outcome = bench.apply()
        assert rejected(outcome) == [41]
        assert outcome.rejected[0][1].permanent
        assert str(outcome.rejected[0][1]).startswith("23503")
        # All of its ordering key that comes later is left for the relay to hold back.
        left = [seq for seq in range(42, 65) if seq % 2]
        assert completed(outcome) == [seq for seq in range(1, 65) if seq not in (41, *left)]
        assert transactions.count <= 13
        assert bench.receipts() == completed(outcome)


def test_refused_entry_holds_back_its_key_and_the_groups_across_it(url: str, outbox_dir: Path) -> None:
    with rows(outbox_dir, url) as bench:
        bench.enqueue("row", {"n": 1}, order_by="a")
        bad = bench.enqueue("row", {"n": 1}, order_by="a")
        with bench.box.transaction() as transaction:
            transaction.enqueue("row", {"n": 3}, order_by="a")
            transaction.enqueue("row", {"n": 4}, order_by="b")
        bench.enqueue("row", {"n": 5}, order_by="b")
        free = bench.enqueue("row", {"n": 6}, order_by="c")
        unordered = bench.enqueue("row", {"n": 7})
        outcome = bench.apply()
        assert rejected(outcome) == [bad]
        assert completed(outcome) == [1, free, unordered]
        assert effects(bench) == [1, 6, 7]


def test_a_refused_best_effort_entry_holds_nobody(url: str, outbox_dir: Path) -> None:
    with rows(outbox_dir, url) as bench:
        note = bench.enqueue("note", {"n": "seven"}, order_by="a")
        behind = bench.enqueue("row", {"n": 2}, order_by="a")
        outcome = bench.apply()
        assert (rejected(outcome), completed(outcome)) == ([note], [behind])


def test_parked_operation_leaves_rejections_of_others_alone(url: str, outbox_dir: Path) -> None:
    with Bench(outbox_dir, url, Operation("row", table="effects"), Operation("lost", table="absent")) as bench:
        bad = bench.enqueue("row", {"n": "seven"})
        bench.enqueue("lost", {"n": 2})
        outcome = bench.apply()
        assert rejected(outcome) == [bad]
        assert "table 'absent' does not exist" in parked(outcome)
        assert bench.receipts() == []


def test_the_same_key_twice_in_a_batch_has_one_effect(url: str, outbox_dir: Path) -> None:
    with rows(outbox_dir, url) as bench:
        bench.enqueue("row", {"n": 1})
        [record] = bench.box.store.peek(0, 1).records
        outcome = bench.target.apply(bench.box.store.identity.store_id, [record, replace(record, seq=2)])
        assert completed(outcome) == [1, 2]
        assert effects(bench) == [1]
        assert bench.receipts() == [1]


@pytest.mark.parametrize("together", [True, False])
def test_a_receipt_with_other_arguments_makes_a_dead_letter(url: str, outbox_dir: Path, together: bool) -> None:
    with rows(outbox_dir, url) as bench:
        bench.enqueue("row", {"n": 1})
        bench.enqueue("row", {"n": 2})
        first, second = bench.box.store.peek(0, 2).records
        impostor = replace(second, key=first.key)
        store_id = bench.box.store.identity.store_id
        if together:
            outcome = bench.target.apply(store_id, [first, impostor])
            assert completed(outcome) == [1]
        else:
            bench.target.apply(store_id, [first])
            outcome = bench.target.apply(store_id, [impostor])
        [(record, error)] = outcome.rejected
        assert (record.seq, error.permanent) == (2, True)
        assert "with other arguments" in str(error)
        assert effects(bench) == [1]


def test_two_stores_with_one_namespace_share_their_keys(url: str, tmp_path: Path) -> None:
    operation = Operation("row", table="effects", identity=("n",))
    with (
        Bench(tmp_path / "one", url, operation, namespace="desk") as one,
        Bench(tmp_path / "two", url, operation, namespace="desk") as two,
    ):
        one.enqueue("row", {"n": 1})
        two.enqueue("row", {"n": 1})
        assert completed(one.apply()) == completed(two.apply()) == [1]
        assert effects(one) == [1]


def test_empty_batch_begins_no_transaction(url: str, outbox_dir: Path, transactions: Transactions) -> None:
    with rows(outbox_dir, url) as bench:
        outcome = bench.apply()
        assert (outcome.completed, outcome.rejected, outcome.interruption) == ([], [], None)
        assert transactions.count == 0


@pytest.mark.parametrize("sqlstate", ["53200", "53400", "40001", "40P01"])
def test_batch_that_is_too_much_at_once_becomes_smaller(url: str, outbox_dir: Path, sqlstate: str) -> None:
    row, settings = Operation("row", table="effects"), {"batch_size": 64, "busy_batch_size": 64, "backoff_base": 0.01}
    with Bench(outbox_dir, url, row, **settings) as bench:
        for number in range(64):
            bench.enqueue("row", {"n": number})
        bench.query(
            f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF (SELECT count(*) FROM effects WHERE xmin = pg_current_xact_id()::xid) > 9 THEN
                    RAISE EXCEPTION 'too many' USING ERRCODE = '{sqlstate}';
                END IF;
                RETURN NEW; END $$;
            CREATE TRIGGER t BEFORE INSERT ON effects FOR EACH ROW EXECUTE FUNCTION refuse()"""
        )
        outcome = bench.apply()
        # Halving it is the relay's business, and no entry is to blame.
        assert isinstance(outcome.interruption, TargetUnavailable)
        assert (outcome.interruption.too_much, outcome.stalled) == (True, [])
        with Relay(bench.box, bench.target) as relay:
            assert relay.drain(timeout=20)
        assert bench.query("SELECT count(*), count(DISTINCT n) FROM effects") == [(64, 64)]


@pytest.mark.parametrize("sqlstate", ["40001", "40P01"])
def test_conflicts_of_an_entry_that_is_alone_need_no_operator(
    url: str, outbox_dir: Path, sqlstate: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Under SERIALIZABLE they are a matter of course; one that never ends is not."""
    row = Operation("row", table="effects", order_by=lambda args: str(args["n"]))
    with Bench(outbox_dir, url, row, backoff_base=0.01, backoff_cap=0.02, batch_size=2) as bench:
        bench.query(
            f"""CREATE SEQUENCE tries;
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.n = 1 AND nextval('tries') < 100 THEN
                    RAISE EXCEPTION 'not now' USING ERRCODE = '{sqlstate}';
                END IF;
                RETURN NEW; END $$;
            CREATE TRIGGER t BEFORE INSERT ON effects FOR EACH ROW EXECUTE FUNCTION refuse()"""
        )
        bench.enqueue("row", {"n": 1})
        bench.enqueue("row", {"n": 2})
        with Relay(bench.box, bench.target) as relay:
            # Once with the other entry, three times alone.
            until(lambda: bench.query("SELECT last_value > 4 FROM tries") == [(True,)])
            assert (bench.box.status().relay.slow, bench.box.status().needs_operator) == (None, [])
            assert bench.query("SELECT n FROM effects") == [(2,)]
            monkeypatch.setattr("outbox.relay.scan._CONFLICTS", 4)
            until(lambda: bench.box.status().relay.slow == 1)
            bench.query("SELECT setval('tries', 100)")
            assert relay.drain(timeout=LONG)
            assert bench.box.status().relay.slow is None


@pytest.mark.parametrize("when", ["BEFORE", "at the commit"])
@pytest.mark.parametrize("sqlstate", ["40003", "53100", "53200", "55006", "55P03", "57000", "58030"])
def test_entry_that_fails_alone_lets_other_keys_go_on(url: str, outbox_dir: Path, sqlstate: str, when: str) -> None:
    """An error as of an outage, in one entry's own statement: a disk, a page or a lock that others do not need."""
    trigger = "TRIGGER t BEFORE INSERT ON effects"
    if when != "BEFORE":
        trigger = "CONSTRAINT TRIGGER t AFTER INSERT ON effects DEFERRABLE INITIALLY DEFERRED"
    row = Operation("row", table="effects", order_by=lambda args: str(args["n"] % 100))
    with Bench(outbox_dir, url, row, backoff_base=0.01, backoff_cap=0.02, batch_size=8) as bench:
        bench.query(
            f"""CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
                IF NEW.n = 1 THEN RAISE EXCEPTION 'not this one' USING ERRCODE = '{sqlstate}'; END IF;
                RETURN NEW; END $$;
            CREATE {trigger} FOR EACH ROW EXECUTE FUNCTION refuse()"""
        )
        for number in (0, 1, 101, *range(2, 20)):
            bench.enqueue("row", {"n": number})
        with Relay(bench.box, bench.target) as relay:
            until(lambda: bench.box.status().pending == 2)
            until(lambda: bench.box.status().relay.slow == 2)
            status = bench.box.status()
            assert (status.dead_letters, status.health) == (0, Health.NEEDS_OPERATOR)
            bench.query("DROP TRIGGER t ON effects")
            assert relay.drain(timeout=LONG)
        assert {entry.attempts for entry in bench.box.ledger()} == {0}
        assert bench.query("SELECT count(*), count(DISTINCT n) FROM effects") == [(21, 21)]


def test_best_effort_entry_that_fails_alone_holds_nobody(url: str, outbox_dir: Path) -> None:
    row = Operation("row", table="effects", order_by=lambda args: "all")
    note = Operation("note", table="notes", order_by=lambda args: "all", best_effort=True)
    with Bench(outbox_dir, url, row, note, backoff_base=0.01, backoff_cap=0.02, batch_size=8) as bench:
        bench.query(
            """CREATE TABLE notes (n int);
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'a broken disk' USING ERRCODE = '58030'; END $$;
            CREATE TRIGGER t BEFORE INSERT ON notes FOR EACH ROW EXECUTE FUNCTION refuse()"""
        )
        for number in range(4):
            bench.enqueue("note" if number == 1 else "row", {"n": number})
        with Relay(bench.box, bench.target) as relay:
            until(lambda: [entry.seq for entry in bench.box.pending()] == [2])
            assert effects(bench) == [0, 2, 3]
            bench.query("DROP TRIGGER t ON notes")
            assert relay.drain(timeout=LONG)
