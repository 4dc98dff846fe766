"""A store that was not closed properly is checked in a child process, which may die of what it finds."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outbox import Outbox, OutboxConfig, StoreCorrupt, StoreLocked, StoreUnavailable, StoreUnverified
from outbox.box import LEDGER_DAMAGED
from outbox.rescue import history, soundness, verify
from outbox.rescue.metas import Tree
from outbox.rescue.pages import DataFile, Walk
from outbox.store import identity as clean_mark
from outbox.store.envelope import Counters, seq_key
from outbox.store.gate import COUNTERS_KEY
from outbox.store.ledger import Settlement
from tests.unit.fakes.waiting import LONG


def make(directory: Path, change: Callable[[Any, Any], None] | None = None) -> None:
    """A store with two pending and two settled entries, in which `change(environment, txn)` did something; closed."""
    with Outbox.open(directory) as box:
        for number in range(4):
            box.enqueue("log", {"number": number, "text": "x" * 3000})
        first_two = list(box.store.records("pending"))[:2]
        box.store.settle(Settlement(completed=[(record, b"") for record in first_two]))
        if change is not None:
            opened = box.store._environment
            assert opened is not None
            with opened.env.begin(write=True) as txn:
                change(opened, txn)
    (directory / "clean").unlink()


def more_acknowledged(_: Any, txn: Any) -> None:
    txn.put(COUNTERS_KEY, Counters(next_seq=5, acknowledged=7, completed=2).pack())


DAMAGES: dict[str, tuple[Callable[[Any, Any], None], str]] = {
    "a ledger record": (lambda env, txn: txn.put(seq_key(1), b"garbage", db=env.ledger), "ledger: entry 1 is damaged"),
    "an idempotency record": (lambda env, txn: txn.put(b"short", b"x", db=env.idempotency), "has 5 . 1 byte,"),
    "a vanished entry": (lambda env, txn: txn.delete(seq_key(3), db=env.pending), "4 entries .* accounted for: 3"),
    "an entry that nobody counted": (more_acknowledged, "7 entries were acknowledged, accounted for: 4"),
    "an entry of the future": (lambda env, txn: txn.put(seq_key(99), b"x", db=env.pending), "entry 99 is not below"),
    "the counters": (lambda env, txn: txn.put(COUNTERS_KEY, b"x" * 76), "the counters record is damaged"),
    "no counters": (lambda env, txn: txn.delete(COUNTERS_KEY), "the counters record is missing"),
    "a sequence key": (lambda env, txn: txn.put(b"odd", b"x", db=env.pending), "a key of 3 bytes"),
}


@pytest.mark.slow
def test_a_sound_store_has_no_problems(outbox_dir: Path) -> None:
    make(outbox_dir)
    assert list(soundness.problems(outbox_dir)) == []
    verify.check(outbox_dir)


def mark(directory: Path, name: str, number: int = 0) -> None:
    """Mark a row as one that describes a named database: one bit that LMDB does not mind when it reads."""
    with DataFile(directory / "data.mdb") as file:
        assert file.meta is not None
        trees: dict[bytes, Tree | None] = {b"main": file.meta.main, b"free list": file.meta.free}
        trees |= {row.key: file.tree(row) for row in file.rows(file.meta.main, Walk("main"))}
        tree = trees[name.encode()]
        assert tree is not None
        row = [row for row in file.rows(tree, Walk(name)) if not row.is_tree][number]
    with (directory / "data.mdb").open("r+b") as opened:
        flags = row.key_offset - 4
        opened.seek(flags)
        byte = opened.read(1)[0]
        opened.seek(flags)
        opened.write(bytes((byte | 2,)))


# By what LMDB's own verifier says, where it looks at such marks: it does not at those of large values.
UNCHANGEABLE: dict[str, str] = {
    "pending": "pending: entry 3 can be read, and LMDB refuses to change it",
    "main": "main DB: leaf page .* F_SUBDATA",
    "free list": "freeDB: page .* has sub-DB/dup flags",
}
ANYWHERE: dict[str, str] = {
    **UNCHANGEABLE,
    "ledger": "ledger: entry 1 can be read, and LMDB refuses to change it",
    "idempotency": "main/idempotency DB: leaf page .* F_SUBDATA",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", UNCHANGEABLE)
def test_a_row_that_could_never_be_settled_keeps_the_store_shut(outbox_dir: Path, name: str) -> None:
    make(outbox_dir)
    mark(outbox_dir, name)
    with pytest.raises(StoreCorrupt, match=f"{outbox_dir} is damaged: {UNCHANGEABLE[name]}"):
        Outbox.open(outbox_dir)


@pytest.mark.slow
def test_size_of_a_database_that_is_wrong_keeps_the_store_shut(outbox_dir: Path) -> None:
    """LMDB reads 48 bytes whatever the row says, and loses the database when it copies the page."""
    make(outbox_dir)
    with DataFile(outbox_dir / "data.mdb") as file:
        assert file.meta is not None
        [row] = [row for row in file.rows(file.meta.main, Walk("main")) if row.key == b"ledger"]
    with (outbox_dir / "data.mdb").open("r+b") as opened:
        opened.seek(row.key_offset - 8)
        assert opened.read(1) == b"\x30"
        opened.seek(row.key_offset - 8)
        opened.write(b"\xb0")
    with pytest.raises(StoreCorrupt, match=f"{outbox_dir} is damaged: .* F_SUBDATA size 176"):
        Outbox.open(outbox_dir)


@pytest.mark.parametrize("name", ANYWHERE)
def test_verify_names_every_row_that_lmdb_refuses_to_change(outbox_dir: Path, name: str) -> None:
    make(outbox_dir)
    mark(outbox_dir, name)
    found, *_ = soundness.problems(outbox_dir)
    assert re.match(ANYWHERE[name], found)


HISTORY = ("a ledger record", "an idempotency record")


@pytest.mark.slow
@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if damage not in HISTORY])
def test_damage_is_named_and_keeps_the_store_shut(outbox_dir: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    make(outbox_dir, change)
    data = (outbox_dir / "data.mdb").read_bytes()
    with pytest.raises(StoreCorrupt, match=f"{outbox_dir} is damaged: .*{message}.*nothing was changed; see"):
        Outbox.open(outbox_dir)
    assert (outbox_dir / "data.mdb").read_bytes() == data


@pytest.mark.slow
@pytest.mark.parametrize("damage", HISTORY)
@pytest.mark.parametrize("forked", [False, True])
def test_damaged_history_is_reported_beside_the_engine(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, damage: str, forked: bool
) -> None:
    if forked:
        monkeypatch.setattr(verify, "_own_interpreter", lambda: None)
    change, message = DAMAGES[damage]
    make(outbox_dir, change)
    with pytest.raises(StoreCorrupt, match=message):
        verify.check_all(outbox_dir)
    with Outbox.open(outbox_dir) as box:
        assert box.enqueue("log", {}).seq == 5
        assert box._opened.history is not None
        assert box._opened.history.wait(LONG)
        status = box.status()
        assert re.search(message, status.alarms[LEDGER_DAMAGED])
        assert [sentence for sentence in status.needs_operator if LEDGER_DAMAGED in sentence]
    # It is said once; the next start is clean.
    with Outbox.open(outbox_dir) as box:
        assert box.alarms.acknowledge(LEDGER_DAMAGED)
        assert box._opened.history is not None
        assert box._opened.history.wait(LONG)
        assert not box.status().alarms


@pytest.mark.slow
def test_unfinished_check_of_the_history_is_repeated(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(outbox_dir, DAMAGES["a ledger record"][0])
    with monkeypatch.context() as patch:
        patch.setattr(history.HistoryCheck, "start", lambda self, report: None)
        Outbox.open(outbox_dir).close()
    # A relay, or a look, does not check it, and vouches for nothing.
    Outbox.attach(outbox_dir).close()
    assert (outbox_dir / "clean").exists()
    with Outbox.open(outbox_dir) as box:
        assert box._opened.history is not None
        assert box._opened.history.wait(LONG)
        assert LEDGER_DAMAGED in box.status().alarms


@pytest.mark.slow
@pytest.mark.parametrize("vacuum", [True, False])
def test_check_of_the_history_gives_way(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, vacuum: bool) -> None:
    """A child that takes for ever keeps neither a vacuum nor the end of the engine waiting."""
    make(outbox_dir)

    def start(directory: Path, what: str, *, python: str | None = None) -> Any:
        real = subprocess.Popen

        def sleeping(command: list[str], **named: Any) -> Any:
            slow = (
                "from outbox.rescue import soundness as s, verify; import time; s.history = lambda d: time.sleep(600);"
            )
            return real([command[0], "-c", f"{slow} verify._supervise({str(directory)!r}, 1, 'history')"], **named)

        with monkeypatch.context() as patch:
            patch.setattr(subprocess, "Popen", sleeping)
            return child(directory, what, python=python)

    child = verify.Child
    with Outbox.open(outbox_dir) as box:
        pass
    (outbox_dir / "ledger.unchecked").touch(mode=0o600)
    monkeypatch.setattr(verify, "Child", start)
    with Outbox.open(outbox_dir) as box:
        assert box._opened.history is not None
        assert not box._opened.history.wait(0.5)
        if vacuum:
            box.compact(vacuum=True)
            assert not box._opened.history.wait(0.1)
        assert box.enqueue("log", {}).seq == 5
    assert (outbox_dir / "ledger.unchecked").exists()


@pytest.mark.parametrize("damage", ["a ledger record", "a vanished entry", "an entry of the future"])
def test_the_same_is_found_in_this_process(outbox_dir: Path, damage: str) -> None:
    change, _ = DAMAGES[damage]
    make(outbox_dir, change)
    assert list(soundness.problems(outbox_dir))


@pytest.mark.slow
def test_a_damaged_pending_record_does_not_keep_the_store_shut(outbox_dir: Path) -> None:
    make(outbox_dir, lambda env, txn: txn.put(seq_key(3), b"garbage", db=env.pending))
    with Outbox.open(outbox_dir) as box:
        assert box.store.peek(0, 10).damaged == [(3, b"garbage", "entry 3 is damaged: 7 bytes, a header has 122")]


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_cut_file_is_found_without_dying(outbox_dir: Path, kept: float) -> None:
    make(outbox_dir)
    size = (outbox_dir / "data.mdb").stat().st_size
    os.truncate(outbox_dir / "data.mdb", int(size * kept) // 4096 * 4096)
    with pytest.raises(StoreCorrupt, match=str(outbox_dir)):
        Outbox.open(outbox_dir)
    assert "problem" in words(outbox_dir)


@pytest.mark.slow
def test_a_file_cut_after_a_clean_end_is_found_too(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        for number in range(50):
            box.enqueue("log", {"number": number, "text": "x" * 3000})
    assert (outbox_dir / "clean").exists()
    os.truncate(outbox_dir / "data.mdb", 3 * 4096)
    with pytest.raises(StoreCorrupt, match=str(outbox_dir)):
        Outbox.open(outbox_dir)


@pytest.mark.slow
def test_many_problems_are_summed_up(outbox_dir: Path) -> None:
    def spoil(env: Any, txn: Any) -> None:
        for number in range(100):
            txn.put(b"%d" % number, b"x", db=env.idempotency)

    make(outbox_dir, spoil)
    with pytest.raises(StoreCorrupt, match="idempotency record .* and 17 more"):
        verify.check_all(outbox_dir)


def words(directory: Path) -> list[str]:
    """The first word of each line that the verifying process says."""
    return [line.partition(" ")[0] for line in lines(directory)]


def lines(directory: Path) -> list[str]:
    read, write = os.pipe()
    verify._look(directory, write)
    os.close(write)
    with os.fdopen(read) as pipe:
        return pipe.read().splitlines()


def test_the_verdict_stops_at_the_twentieth_finding(outbox_dir: Path) -> None:
    def spoil(env: Any, txn: Any) -> None:
        for number in range(100):
            txn.put(b"%d" % number, b"x", db=env.idempotency)

    make(outbox_dir, spoil)
    assert words(outbox_dir) == ["problem"] * 20


def test_the_verdict_on_a_sound_store_is_a_word(outbox_dir: Path) -> None:
    make(outbox_dir)
    assert lines(outbox_dir) == [f"sound {outbox_dir}"]
    assert words(outbox_dir.parent / "absent") == ["unable"]


def test_a_broken_identity_is_a_finding(outbox_dir: Path) -> None:
    make(outbox_dir)
    (outbox_dir / "outbox.json").write_bytes(b"{}")
    (line,) = lines(outbox_dir)
    assert "not readable as a store's identity" in line


def imposter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let the child be a shell script instead of Python."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(stat.S_IRWXU)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.slow
@pytest.mark.parametrize("number", [6, 7, 11])
@pytest.mark.parametrize("forked", [False, True])
def test_a_reader_that_dies_of_the_file_means_damage(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int, forked: bool
) -> None:
    make(outbox_dir)
    dying(monkeypatch, number, forked=forked)
    with pytest.raises(StoreCorrupt, match=f"is damaged: verifying it died of signal {number}"):
        Outbox.open(outbox_dir)


@pytest.mark.slow
@pytest.mark.parametrize("number", [2, 9, 15, 14, 24, 64])
@pytest.mark.parametrize("forked", [False, True])
def test_a_reader_that_is_killed_is_no_damage(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, number: int, forked: bool
) -> None:
    make(outbox_dir)
    with monkeypatch.context() as patch:
        dying(patch, number, forked=forked)
        with pytest.raises(StoreUnverified, match="was interrupted by .*open it again"):
            Outbox.open(outbox_dir)
    Outbox.open(outbox_dir).close()


def dying(monkeypatch: pytest.MonkeyPatch, number: int, *, forked: bool) -> None:
    """Let the process that looks end by signal `number`, of a child that is started or forked."""
    code = f"import os, signal; signal.signal({number}, 0) if {number} != 9 else 0; os.kill(os.getpid(), {number})"
    if forked:
        monkeypatch.setattr(verify, "_own_interpreter", lambda: None)
        monkeypatch.setattr(verify, "_look", lambda directory, out, what: exec(code))  # noqa: S102 - this test's own words
        return
    real = subprocess.Popen

    def run(command: list[str], **named: Any) -> Any:
        start = (
            f"from outbox.rescue import verify; verify._look = lambda d, o, w: exec({code!r}); verify._supervise('', 1)"
        )
        return real([command[0], "-c", start], **named)

    monkeypatch.setattr(subprocess, "Popen", run)


@pytest.mark.slow
@pytest.mark.parametrize("end", ["kill -9 $$", "kill -15 $$", "kill -11 $$", "exit 0", "exit 3", "echo odd; exit 1"])
def test_a_child_that_says_nothing_is_no_verdict(
    outbox_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str
) -> None:
    make(outbox_dir)
    with monkeypatch.context() as patch:
        imposter(tmp_path, patch, end)
        with pytest.raises(StoreUnverified, match="ended without a verdict: .*open it again"):
            Outbox.open(outbox_dir)
    Outbox.open(outbox_dir).close()


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo first >&2; echo 'no module' >&2; exit 1", "without a verdict: no module"),
        # Damage may be quoted, and a broken child may say anything: none of it need be text.
        ("printf 'problem odd \\377\\n'", "is damaged: odd \N{REPLACEMENT CHARACTER}"),
        ("printf 'odd \\377\\n' >&2; exit 1", "without a verdict: odd \N{REPLACEMENT CHARACTER}"),
        ("printf 'problem a\\nproblem b\\nproblem c\\nsound\\n'", "is damaged: a; b; c \\("),
        ("printf 'problem a\\nproblem b\\nproblem c\\nproblem d\\n'", "is damaged: a; b; c and 1 more \\("),
    ],
)
def test_output_of_the_child_is_part_of_the_message(
    outbox_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    make(outbox_dir)
    imposter(tmp_path, monkeypatch, script)
    with pytest.raises((StoreCorrupt, StoreUnverified), match=message):
        Outbox.open(outbox_dir)


@pytest.mark.slow
@pytest.mark.parametrize("executable", ["", "/bin/true", "/bin/echo", None])
@pytest.mark.parametrize("sound", [True, False])
def test_a_host_that_is_no_python_verifies_by_fork(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, executable: str | None, sound: bool
) -> None:
    make(outbox_dir, None if sound else DAMAGES["a vanished entry"][0])
    monkeypatch.setattr(sys, "executable", executable)
    if sound:
        Outbox.open(outbox_dir).close()
        return
    with pytest.raises(StoreCorrupt, match="accounted for: 3"):
        Outbox.open(outbox_dir)


@pytest.mark.slow
def test_a_frozen_program_verifies_by_fork(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(outbox_dir)
    monkeypatch.setattr(sys, "frozen", True, raising=False)
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("it would start the program again"))
    Outbox.open(outbox_dir).close()


@pytest.mark.slow
def test_a_given_interpreter_verifies(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(outbox_dir)
    given = sys.executable
    monkeypatch.setattr(sys, "executable", "")
    Outbox.open(outbox_dir, OutboxConfig(python=given)).close()
    (outbox_dir / "clean").unlink()
    with pytest.raises(StoreUnavailable, match="/nowhere/python cannot be run.*set OUTBOX_PYTHON"):
        Outbox.open(outbox_dir, OutboxConfig(python="/nowhere/python"))


@pytest.mark.slow
@pytest.mark.parametrize("sound", [True, False])
@pytest.mark.parametrize("forked", [True, False])
def test_host_that_ignores_sigchld_gets_the_verdict(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, forked: bool, sound: bool
) -> None:
    make(outbox_dir, None if sound else DAMAGES["a vanished entry"][0])
    if forked:
        monkeypatch.setattr(verify, "_own_interpreter", lambda: None)
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        if sound:
            Outbox.open(outbox_dir).close()
            return
        with pytest.raises(StoreCorrupt, match="accounted for: 3"):
            Outbox.open(outbox_dir)
    finally:
        signal.signal(signal.SIGCHLD, before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), "not enough memory"),
        (OSError(24, "Too many open files"), "Too many open files"),
        (StoreLocked("in use", hint="stop it"), "in use"),
        (StoreUnavailable("no memory", hint="free it", errno=12), "no memory"),
        (KeyError("x"), "failed by itself: KeyError"),
    ],
)
def test_error_that_keeps_the_child_from_reading_is_no_damage(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, expected: str
) -> None:
    def broken(_: Path) -> Any:
        raise error

    make(outbox_dir)
    monkeypatch.setattr(verify, "_own_interpreter", lambda: None)
    monkeypatch.setattr(soundness, "essentials", broken)
    with pytest.raises((StoreUnverified, StoreUnavailable, StoreLocked), match=expected):
        Outbox.open(outbox_dir)


@pytest.mark.slow
def test_sound_store_opens_under_strict_warnings(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(outbox_dir)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    Outbox.open(outbox_dir).close()


@pytest.mark.slow
def test_module_of_the_host_named_as_a_standard_one_is_harmless(
    outbox_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine had an operator.py beside its program, and could not open its store after a crash."""
    (tmp_path / "operator.py").write_text("raise ImportError('of the host')")
    monkeypatch.syspath_prepend(tmp_path)
    make(outbox_dir)
    Outbox.open(outbox_dir).close()


def test_child_finds_a_package_through_the_sys_path_of_its_host(outbox_dir: Path, tmp_path: Path) -> None:
    make(outbox_dir)
    code = "import sys; sys.path[:0] = sys.argv[2:]; from outbox import Outbox; Outbox.open(sys.argv[1]).close()"
    paths = [path for path in sys.path if path]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code, str(outbox_dir), *paths], cwd=tmp_path, env=env, check=True)


def test_check_runs_only_after_an_unclean_end(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(outbox_dir)
    checked: list[Path] = []
    monkeypatch.setattr(verify, "check", checked.append)
    Outbox.open(outbox_dir).close()
    assert checked == [outbox_dir]
    Outbox.open(outbox_dir).close()
    assert checked == [outbox_dir]
    # A look at the mark alone does not use it up.
    assert clean_mark.take_clean_mark(outbox_dir, keep=True)
    assert clean_mark.take_clean_mark(outbox_dir)
    assert not clean_mark.take_clean_mark(outbox_dir)
