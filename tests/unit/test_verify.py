"""A store that was not closed properly is checked in a child process, which may die of what it finds."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from outbox import Outbox, StoreCorrupt, environment, verify
from outbox.counters import Counters
from outbox.envelope import seq_key
from outbox.guarded import COUNTERS_KEY
from outbox.ledger import Settlement


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
    "an idempotency record": (lambda env, txn: txn.put(b"short", b"x", db=env.idempotency), "has 5 . 1 bytes"),
    "a vanished entry": (lambda env, txn: txn.delete(seq_key(3), db=env.pending), "4 entries .* 3 are accounted for"),
    "an entry that nobody counted": (more_acknowledged, "7 entries were acknowledged and 4 are accounted for"),
    "an entry of the future": (lambda env, txn: txn.put(seq_key(99), b"x", db=env.pending), "entry 99 is not below"),
    "the counters": (lambda env, txn: txn.put(COUNTERS_KEY, b"x" * 76), "the counters record is damaged"),
    "no counters": (lambda env, txn: txn.delete(COUNTERS_KEY), "the counters record is missing"),
    "a sequence key": (lambda env, txn: txn.put(b"odd", b"x", db=env.pending), "a key of 3 bytes"),
}


def test_a_sound_store_has_no_problems(outbox_dir: Path) -> None:
    make(outbox_dir)
    assert list(verify.problems(outbox_dir)) == []
    verify.check(outbox_dir)


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_named_and_keeps_the_store_shut(outbox_dir: Path, damage: str) -> None:
    change, message = DAMAGES[damage]
    make(outbox_dir, change)
    data = (outbox_dir / "data.mdb").read_bytes()
    with pytest.raises(StoreCorrupt, match=f"{outbox_dir} is damaged: .*{message}.*nothing was changed; see"):
        Outbox.open(outbox_dir)
    assert (outbox_dir / "data.mdb").read_bytes() == data


@pytest.mark.parametrize("damage", ["a ledger record", "a vanished entry", "an entry of the future"])
def test_the_same_is_found_in_this_process(outbox_dir: Path, damage: str) -> None:
    change, _ = DAMAGES[damage]
    make(outbox_dir, change)
    assert list(verify.problems(outbox_dir))


def test_a_damaged_pending_record_does_not_keep_the_store_shut(outbox_dir: Path) -> None:
    make(outbox_dir, lambda env, txn: txn.put(seq_key(3), b"garbage", db=env.pending))
    with Outbox.open(outbox_dir) as box:
        assert box.store.peek(0, 10).damaged == [(3, b"garbage", "entry 3 is damaged: 7 bytes, a header has 122")]


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.9])
def test_a_cut_file_is_found_without_dying(outbox_dir: Path, kept: float) -> None:
    make(outbox_dir)
    size = (outbox_dir / "data.mdb").stat().st_size
    os.truncate(outbox_dir / "data.mdb", int(size * kept) // 4096 * 4096)
    with pytest.raises(StoreCorrupt, match=str(outbox_dir)):
        Outbox.open(outbox_dir)
    assert verify._main(str(outbox_dir)) == 1


def test_a_file_cut_after_a_clean_end_is_found_too(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        for number in range(50):
            box.enqueue("log", {"number": number, "text": "x" * 3000})
    assert (outbox_dir / "clean").exists()
    os.truncate(outbox_dir / "data.mdb", 3 * 4096)
    with pytest.raises(StoreCorrupt, match=str(outbox_dir)):
        Outbox.open(outbox_dir)


def test_many_problems_are_summed_up(outbox_dir: Path) -> None:
    def spoil(env: Any, txn: Any) -> None:
        for number in range(100):
            txn.put(b"%d" % number, b"x", db=env.idempotency)

    make(outbox_dir, spoil)
    with pytest.raises(StoreCorrupt, match="idempotency record .* and 17 more"):
        verify.check(outbox_dir)


def test_the_program_stops_at_the_twentieth_finding(outbox_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def spoil(env: Any, txn: Any) -> None:
        for number in range(100):
            txn.put(b"%d" % number, b"x", db=env.idempotency)

    make(outbox_dir, spoil)
    assert verify._main(str(outbox_dir)) == 1
    assert len(capsys.readouterr().out.splitlines()) == 20


def test_the_program_prints_its_findings(outbox_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(outbox_dir)
    assert verify._main(str(outbox_dir)) == 0
    assert capsys.readouterr().out == ""
    assert verify._main(str(outbox_dir.parent / "absent")) == 1
    assert "cannot be verified" in capsys.readouterr().out


def test_a_broken_identity_is_a_finding(outbox_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make(outbox_dir)
    (outbox_dir / "outbox.json").write_bytes(b"{}")
    assert verify._main(str(outbox_dir)) == 1
    assert "not readable as a store's identity" in capsys.readouterr().out


def imposter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    """Let the child be a shell script instead of Python."""
    program = tmp_path / "python"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(stat.S_IRWXU)
    monkeypatch.setattr(sys, "executable", str(program))


@pytest.mark.parametrize("number", [6, 7])
def test_a_child_that_dies_of_a_signal_means_damage(
    outbox_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    make(outbox_dir)
    imposter(tmp_path, monkeypatch, f"kill -{number} $$")
    with pytest.raises(StoreCorrupt, match=f"is damaged: verifying it died of signal {number}"):
        Outbox.open(outbox_dir)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo first >&2; echo second >&2; echo 'no module' >&2; exit 1", "could not be verified: no module"),
        ("exit 3", "could not be verified: 3"),
        ("echo odd; exit 2", "could not be verified: 2"),
        # Damage may be quoted, and a broken child may say anything: none of it need be text.
        ("printf 'odd \\377\\n'; exit 1", "is damaged: odd \N{REPLACEMENT CHARACTER}"),
        ("printf 'odd \\377\\n' >&2; exit 1", "could not be verified: odd \N{REPLACEMENT CHARACTER}"),
        ("printf 'a\\nb\\nc\\n'; exit 1", "is damaged: a; b; c \\("),
        ("printf 'a\\nb\\nc\\nd\\n'; exit 1", "is damaged: a; b; c and 1 more \\("),
    ],
)
def test_a_child_that_fails_otherwise_keeps_the_store_shut(
    outbox_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str
) -> None:
    make(outbox_dir)
    imposter(tmp_path, monkeypatch, script)
    with pytest.raises(StoreCorrupt, match=message):
        Outbox.open(outbox_dir)


def test_strict_warnings_in_the_environment_do_not_keep_a_sound_store_shut(
    outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(outbox_dir)
    monkeypatch.setenv("PYTHONWARNINGS", "error")
    Outbox.open(outbox_dir).close()


def test_the_child_finds_a_package_that_its_host_found_through_sys_path(outbox_dir: Path, tmp_path: Path) -> None:
    make(outbox_dir)
    code = "import sys; sys.path[:0] = sys.argv[2:]; from outbox import Outbox; Outbox.open(sys.argv[1]).close()"
    paths = [path for path in sys.path if path]
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run([sys.executable, "-c", code, str(outbox_dir), *paths], cwd=tmp_path, env=env, check=True)


def test_it_runs_only_after_an_unclean_end(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make(outbox_dir)
    checked: list[Path] = []
    monkeypatch.setattr(verify, "check", checked.append)
    Outbox.open(outbox_dir).close()
    assert checked == [outbox_dir]
    Outbox.open(outbox_dir).close()
    assert checked == [outbox_dir]
    # A look at the mark alone does not use it up.
    assert environment.take_clean_mark(outbox_dir, keep=True)
    assert environment.take_clean_mark(outbox_dir)
    assert not environment.take_clean_mark(outbox_dir)
