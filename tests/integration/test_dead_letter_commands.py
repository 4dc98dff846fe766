"""An operator looks at dead letters and answers them, beside a running engine, from the command line."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outbox import Operation, Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.cli.listing import Listing, What
from outbox.store.envelope import Record, seq_key
from tests import atb as command_line
from tests.unit.fakes.database import query
from tests.unit.fakes.waiting import LONG, until

OPERATIONS = (Operation("note", table="notes", order_by="who"), Operation("other", table="notes", order_by="who"))

Atb = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def engine(postgres_url: str, outbox_dir: Path) -> Iterator[tuple[Outbox, Relay]]:
    """A running engine with dead letters: 2 (holds back 3), 4 (holds back nothing), and 6 with 7 (one transaction)."""
    query(postgres_url, "CREATE TABLE notes (who text, n int CHECK (n < 100))")
    with Outbox.open(outbox_dir, OutboxConfig(sync_interval=0.1), OPERATIONS) as box:
        for who, number in (("a", 1), ("a", 200), ("a", 3)):
            box.enqueue("note", {"who": who, "n": number})
        box.enqueue("other", {"who": "b", "n": 300})
        box.enqueue("note", {"who": "c", "n": 5})
        with box.transaction() as tx:
            tx.enqueue("note", {"who": "d", "n": 6})
            tx.enqueue("note", {"who": "e", "n": 1000})
        with Relay(box, PostgresTarget(postgres_url, OPERATIONS, config=box.config)) as relay:
            assert relay.drain(LONG)
            yield box, relay


@pytest.fixture
def atb(outbox_dir: Path) -> Atb:
    def run(*arguments: str, answer: str = "") -> subprocess.CompletedProcess[str]:
        return command_line.run(*arguments, "--dir", str(outbox_dir), answer=answer)

    return run


def test_dead_letters_are_listed_with_what_they_hold_back(engine: tuple[Outbox, Relay], atb: Atb) -> None:
    lines = atb("list").stdout.splitlines()
    assert lines[0].split() == ["seq", "operation", "order", "by", "captured", "attempts", "holds", "back", "why"]
    cells = [line.split() for line in lines[1:]]
    assert [(row[0], row[1], row[2], row[6]) for row in cells] == [
        ("2", "note", "a", "1"), ("4", "other", "b", "0"), ("6", "note", "d", "0"), ("7", "note", "e", "0"),
    ]  # fmt: skip
    assert lines[1].endswith('violates check constraint "notes_n_check"')
    assert [line.split()[0] for line in atb("list", "--operation", "other").stdout.splitlines()[1:]] == ["4"]
    cut = atb("list", "--limit", "1").stdout.splitlines()
    assert (len(cut), cut[-1]) == (3, "... and 3 more (--limit)")
    (found,) = [json.loads(line) for line in atb("list", "--json", "--limit", "1").stdout.splitlines()]
    assert (found["seq"], found["args"], found["holds_back"]) == (2, {"n": 200, "who": "a"}, "1")


def none_match(nouns: str, there_are: int) -> str:
    return f"no {nouns} match; without the filter there are {there_are}\n"


def test_an_entry_is_shown_wherever_it_is(engine: tuple[Outbox, Relay], atb: Atb) -> None:
    for seq, status in ((1, "COMPLETED"), (2, "FAILED"), (3, "PENDING")):
        assert json.loads(atb("show", str(seq), "--json").stdout)["status"] == status
    shown = atb("show", "2").stdout
    assert "\n  n                     200\n" in shown
    assert "\norder_by        a\n" in shown
    missing = atb("show", "99")
    assert (missing.returncode, missing.stderr) == (
        2, "Error: entry 99 is not in the store: it never existed, or its retention has ended\n",
    )  # fmt: skip


def test_text_of_an_entry_cannot_move_the_cursor_of_a_terminal(tmp_path: Path) -> None:
    """A counterparty's text must not forge a line of the list, or hide one."""
    forged = "b\x1b[2J\r\n3  note  a\u202e"
    with Outbox.open(tmp_path / "outbox", operations=OPERATIONS) as box:
        box.enqueue("note", {"who": forged, "n": 1, "x\x1by": None}, order_by=forged)
    for command in (["list", "--pending"], ["show", "1"]):
        shown = command_line.run(*command, "--dir", str(tmp_path / "outbox")).stdout
        assert r"b\x1b[2J\r\n3  note  a\u202e" in shown
        assert all(line.isprintable() for line in shown.split("\n")), shown
    found = command_line.run("show", "--where", f"who={forged}", "--json", "--dir", str(tmp_path / "outbox"))
    assert json.loads(found.stdout)["args"]["who"] == forged


def test_quote_in_one_argument_hides_no_other_one(tmp_path: Path) -> None:
    """Passwords were redacted in the text of the whole document, and what lay between two quotes was lost."""
    given = {"a": "password='", "b": "it's", "hook": "http://h:80/x", "mail": "a@b", "db": "postgresql://u:s3@h/d"}
    shown = {**given, "db": "postgresql://u:***@h/d"}
    with Outbox.open(tmp_path / "outbox") as box:
        box.enqueue("note", {**given, "deep": [given]})
    at = ("--dir", str(tmp_path / "outbox"))
    for command in (["list", "--pending", "--json"], ["show", "1", "--json"]):
        assert json.loads(command_line.run(*command, *at).stdout)["args"] == {**shown, "deep": [shown]}
    lines = command_line.run("show", "1", *at).stdout.splitlines()
    (deep,) = (line.removeprefix("  deep").strip() for line in lines if line.startswith("  deep"))
    assert json.loads(deep) == [shown]
    (row,) = command_line.run("list", "--pending", *at).stdout.splitlines()[1:]
    assert json.loads(row[row.index("{") :]) == {**shown, "deep": [shown]}
    found = command_line.run("show", "--where", f"db={given['db']}", "--json", *at)
    assert json.loads(found.stdout)["seq"] == 1


def test_a_retry_keeps_the_order_within_the_key(engine: tuple[Outbox, Relay], atb: Atb, postgres_url: str) -> None:
    query(postgres_url, "ALTER TABLE notes DROP CONSTRAINT notes_n_check, ADD COLUMN at serial")
    assert atb("retry", "2", "6").stdout == "requeued: 2, 6, 7\n"
    assert engine[1].drain(LONG)
    rows = query(postgres_url, "SELECT who, n FROM notes ORDER BY at")
    assert [row for row in rows if row[0] == "a"] == [("a", 1), ("a", 200), ("a", 3)]
    assert [row for row in rows if row[0] in ("d", "e")] == [("d", 6), ("e", 1000)]
    assert (
        atb("retry", "--all", "--operation", "note").stdout == "no dead letters match; without the filter there is 1\n"
    )
    assert atb("retry", "--all").stdout == "requeued: 4\n"
    assert engine[1].drain(LONG)
    assert atb("list").stdout == "no dead letters\n"
    assert ("b", 300) in query(postgres_url, "SELECT who, n FROM notes")


def test_discarded_dead_letter_frees_its_key_and_keeps_the_reason(
    engine: tuple[Outbox, Relay], atb: Atb, postgres_url: str
) -> None:
    refused = atb("discard", "2", "--reason", "by hand", answer="n\n")
    assert refused.returncode == 1
    assert 'note {"n": 200, "who": "a"}' in refused.stdout
    assert [entry.seq for entry in engine[0].dead_letters()] == [2, 4, 6, 7]
    unanswered = atb("discard", "2", "--reason", "by hand")
    assert (unanswered.returncode, unanswered.stderr.splitlines()[0]) == (
        2,
        "Error: nobody answered, so nothing was given up; --yes skips the question (see 'atb outbox discard --help')",
    )
    empty = atb("discard", "2", "--reason", " ")
    assert (empty.returncode, empty.stdout) == (2, "")
    assert empty.stderr == "Error: reason is ' ' (say why this entry may be given up)\n"
    assert [entry.seq for entry in engine[0].dead_letters()] == [2, 4, 6, 7]
    assert atb("discard", "2", "--reason", "by hand", answer="y\n").stdout.endswith("discarded: 2\n")
    assert atb("discard", "6", "--reason", "both", "--yes").stdout == "discarded: 6, 7\n"
    assert engine[1].drain(LONG)
    assert query(postgres_url, "SELECT n FROM notes WHERE who = 'a' ORDER BY n") == [(1,), (3,)]
    assert json.loads(atb("show", "2", "--json").stdout)["error"].startswith("discarded: by hand")
    audits = [dict(entry.args) for entry in engine[0].ledger() if entry.operation == "outbox.discard"]
    assert audits == [{"seq": 2, "reason": "by hand"}, {"seq": 6, "reason": "both"}]


def test_refused_answer_keeps_no_other_entry_from_its_answer(engine: tuple[Outbox, Relay], atb: Atb) -> None:
    assert atb("discard", "4", "--reason", "by one operator", "--yes").returncode == 0
    done = atb("discard", "4", "2", "99", "1", "7", "--reason", "by another", "--yes")
    assert done.returncode == 2
    assert done.stdout == "discarded before: 4\ndiscarded: 2, 6, 7\n"
    assert [line.partition(" (")[0] for line in done.stderr.splitlines()] == [
        "Error: entry 99 is not a dead letter, and not pending",
        "Error: entry 1 is not a dead letter, and not pending",
    ]
    again = atb("discard", "2", "4", "--reason", "by another", "--yes")
    assert (again.returncode, again.stdout, again.stderr) == (0, "discarded before: 2, 4\n", "")
    assert "discarded: by one operator" in atb("show", "4").stdout


def test_refused_retry_keeps_no_other_entry_from_its_retry(engine: tuple[Outbox, Relay], atb: Atb) -> None:
    done = atb("retry", "1", "4", "7")
    assert (done.returncode, done.stdout) == (2, "requeued: 4, 6, 7\n")
    assert "entry 1 is not a dead letter" in done.stderr


def test_idle_relay_notices_a_retry_from_another_process(
    engine: tuple[Outbox, Relay], atb: Atb, postgres_url: str
) -> None:
    query(postgres_url, "ALTER TABLE notes DROP CONSTRAINT notes_n_check")
    assert atb("retry", "2").returncode == 0
    notes = "SELECT n FROM notes WHERE who = 'a' ORDER BY n"
    until(lambda: query(postgres_url, notes) == [(1,), (3,), (200,)])
    assert engine[1].running


def test_a_quarantined_entry_is_listed_shown_and_given_up(engine: tuple[Outbox, Relay], atb: Atb) -> None:
    box, relay = engine
    relay.stop()
    seq = box.enqueue("note", {"who": "z", "n": 9}).seq
    with box.store._write("damage") as (environment, txn):
        txn.put(seq_key(seq), b"OX what is left", db=environment.pending)
    assert relay.drain(LONG)
    raw = b"OX what is left".hex()
    assert json.loads(atb("list", "--json").stdout.splitlines()[-1]) == {
        "seq": seq, "status": "QUARANTINED", "raw": raw,
    }  # fmt: skip
    assert raw in atb("show", str(seq)).stdout
    assert atb("retry", str(seq)).stderr.startswith(f"Error: entry {seq} is damaged and quarantined")
    assert atb("discard", str(seq), "--reason", "entered again", "--yes").stdout == f"discarded: {seq}\n"
    assert box.status().quarantined == 0
    shown = json.loads(atb("show", str(seq), "--json").stdout)
    assert shown["args"] == {"raw": str(b"OX what is left")}
    assert shown["error"] == "discarded: entered again; was: damaged on the disk"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("retry",), "name the dead letters by SEQ, or all of them with --all"),
        (("retry", "2", "--all"), "name the dead letters by SEQ, or all of them with --all"),
        (("retry", "2", "--operation", "note"), "--operation goes with --all"),
        (("retry", "1"), "entry 1 is not a dead letter"),
        (("retry", "x"), "'x' (allowed: a whole number, 1 or more)"),
        (("discard", "2"), "Missing option '--reason'"),
        (("discard", "--reason", "x"), "Missing argument 'SEQ...'"),
        (("discard", "2", "--reason", " ", "--yes"), "reason is ' '"),
        (
            ("discard", "1", "--reason", "x", "--yes"),
            "entry 1 is not a dead letter, and not pending (`atb outbox show 1`",
        ),
        (("discard", "99", "--reason", "x"), "entry 99 is not"),
        (("list", "--limit", "0"), "'0' (allowed: a whole number from 1 to 1000000000)"),
        (("show", "0"), "0 is not in the range"),
    ],
)
def test_wrong_command_is_refused_in_one_sentence(
    engine: tuple[Outbox, Relay], atb: Atb, arguments: tuple[str, ...], sentence: str
) -> None:
    done = atb(*arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1


def test_pending_entry_is_discarded_from_the_command_line(engine: tuple[Outbox, Relay], atb: Atb) -> None:
    box, _ = engine
    done = atb("discard", "3", "--reason", "behind a wrong one", "--yes")
    assert (done.returncode, done.stdout) == (0, "discarded: 3\n")
    assert box.entry(3).error == "discarded: behind a wrong one; was: pending"
    again = atb("discard", "3", "--reason", "again", "--yes")
    assert (again.returncode, again.stdout) == (0, "discarded before: 3\n")


def test_list_agrees_with_status_on_a_held_back_transaction(engine: tuple[Outbox, Relay], atb: Atb) -> None:
    """Behind a dead letter waits a transaction with another key, and behind that an entry of this key."""
    box, relay = engine
    with box.transaction() as tx:
        tx.enqueue("note", {"who": "a", "n": 4})
        tx.enqueue("note", {"who": "x", "n": 5})
    box.enqueue("note", {"who": "x", "n": 6})
    relay.drain(LONG)
    assert box.status().held_back == 4
    listed = [line.split()[0] for line in atb("list", "--held-back").stdout.splitlines()[1:]]
    assert listed == ["3", "8", "9", "10"]
    assert atb("list").stdout.splitlines()[1].split()[6] == "4"
    assert atb("list", "--held-back", "--limit", "1").stdout.splitlines()[-1] == "... and 3 more (--limit)"


def test_list_of_a_long_backlog_reads_only_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    with Outbox.open(tmp_path / "outbox", operations=OPERATIONS) as box:
        with box.transaction() as tx:
            for number in range(2000):
                tx.enqueue("note", {"who": str(number % 2), "n": number})
        records = box.store.records

        def counted(*names: str) -> Iterator[Record]:
            for record in records(*names):
                read.append(record.seq)
                yield record

        monkeypatch.setattr(box.store, "records", counted)
        monkeypatch.setattr("outbox.cli.listing.LOOKED_AT", 100)
        found = Listing(box, What.PENDING, lambda _: True, 3, unfiltered=True)
        assert ([record.seq for record in found.shown], found.more) == ([1, 2, 3], "1997")
        assert len(read) == 3
        found = Listing(box, What.PENDING, lambda record: record.order_by == "1", 2, unfiltered=False)
        assert ([record.seq for record in found.shown], found.more) == ([2, 4], "50+")


def test_pending_and_held_back_entries_are_listed(engine: tuple[Outbox, Relay], atb: Atb) -> None:
    assert [line.split()[0] for line in atb("list", "--held-back").stdout.splitlines()] == ["seq", "3"]
    engine[1].stop()
    engine[0].enqueue("other", {"who": "z", "n": 9})
    lines = atb("list", "--pending").stdout.splitlines()
    assert [line.split()[0] for line in lines] == ["seq", "3", "8"]
    assert lines[2].endswith('{"n": 9, "who": "z"}')
    assert [line.split()[0] for line in atb("list", "--pending", "--order-by", "z").stdout.splitlines()[1:]] == ["8"]
    for since in ("7200s", "2h"):
        listed = atb("list", "--pending", "--since", since).stdout.splitlines()[1:]
        assert [line.split()[0] for line in listed] == ["3", "8"]
    assert (
        atb("list", "--pending", "--since", "2100-01-01").stdout
        == "no pending entries match; without the filter there are 2\n"
    )
    assert atb("list", "--operation", "no_such").stdout == none_match("dead letters", 4)
    (one,) = [
        json.loads(line) for line in atb("list", "--pending", "--operation", "other", "--json").stdout.splitlines()
    ]
    assert (one["seq"], one["status"], one["args"]) == (8, "PENDING", {"n": 9, "who": "z"})


def test_an_entry_is_found_by_its_key_and_by_its_arguments(engine: tuple[Outbox, Relay], atb: Atb) -> None:
    key = engine[0].entry(2).key
    assert json.loads(atb("show", key, "--json").stdout)["seq"] == 2
    found = [json.loads(line)["seq"] for line in atb("show", "--where", "who=a", "--json").stdout.splitlines()]
    assert found == [1, 2, 3]
    assert "\nseq             3\n" in atb("show", "--where", "who=a").stdout
    assert json.loads(atb("show", "--where", "who=a", "--where", "n=3", "--json").stdout)["seq"] == 3


def test_an_entry_is_found_by_the_key_that_its_caller_gave(engine: tuple[Outbox, Relay], atb: Atb) -> None:
    box, _ = engine
    uuid = "6f1c2a4e-0000-4000-8000-000000000001"
    keys = ("A-1", "7", "700", "ü b", uuid)
    seqs = {key: box.enqueue("other", {"who": "k", "n": 9}, key=key, order_by="k").seq for key in keys}
    for named in (("A-1",), ("--key", "7"), ("700",), ("ü b",), (uuid,)):
        assert json.loads(atb("show", *named, "--json").stdout)["seq"] == seqs[named[-1]]
    same = box.enqueue("note", {"who": "k", "n": 9}, key="A-1", order_by="k").seq
    lines = atb("show", "A-1", "--json").stdout.splitlines()
    assert [json.loads(line)["seq"] for line in lines] == [seqs["A-1"], same]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("show",), "name an entry by SEQ, by KEY, by --key TEXT, or by --where NAME=VALUE"),
        (("show", "1", "--key", "a"), "name an entry by SEQ, by KEY, by --key TEXT"),
        (("show", "abc"), "no entry has the key 'abc': it never existed"),
        (("show", "--key", ""), "key is ''"),
        (("show", "--key", "7"), "no entry has the key '7'"),
        (("show", "77"), "entry 77 is not in the store"),
        (("show", "--where", "who"), "--where is 'who' (allowed: NAME=VALUE"),
        (("show", "--where", "who=nobody"), "no entry has who=nobody"),
        (("show", "0" * 32), "no entry has the key"),
        (("list", "--since", "soon"), "'soon' (allowed: 90s, 30m, 2h, 7d"),
        (("list", "--since", "99999999d"), "'99999999d' (allowed: 90s, 30m, 2h, 7d"),
        (("list", "--since", "9" * 40 + "h"), "h' (allowed: 90s, 30m, 2h, 7d"),
        (("list", "--limit", "9" * 40), "(allowed: a whole number from 1 to 1000000000)"),
        (("healthy", "--max-lag", "nan"), "'nan' (allowed: a number, 0 or more)"),
    ],
)
def test_a_wrong_question_is_answered_in_one_sentence(
    engine: tuple[Outbox, Relay], atb: Atb, arguments: tuple[str, ...], words: str
) -> None:
    done = atb(*arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert len(done.stderr.splitlines()) == 1
