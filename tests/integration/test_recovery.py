"""The procedures of docs/how-to/recover.md, command by command, on a real store and a real PostgreSQL."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from outbox import Health, Operation, Outbox, PostgresTarget, Relay
from outbox.rescue.pages import DataFile, Walk
from outbox.transfer import exporting
from tests.atb import begin
from tests.unit.fakes.audit import OPERATIONS, SCHEMA, Audit, query
from tests.unit.fakes.waiting import LONG, until

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "how-to" / "recover.md"
_DECLARED = """
from outbox import Operation
OPERATIONS = [Operation("log_trade", table="trades", order_by="account"), Operation("trade", table="trades")]
"""

Shell = Callable[[str], subprocess.CompletedProcess[str]]


def steps(heading: str) -> list[str]:
    """The commands below a heading, in order."""
    text = DOCUMENT.read_text(encoding="utf-8")
    found = re.search(rf"^## {heading}$(.*?)(?=^## |\Z)", text, re.DOTALL | re.MULTILINE)
    assert found is not None
    blocks = re.findall(r"^```sh\n(.*?)^```$", found[1], re.DOTALL | re.MULTILINE)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture
def shell(tmp_path: Path, postgres_url: str) -> Shell:
    """Runs a line of the document as it stands there, in the folder of a host."""
    (tmp_path / "bin").mkdir()
    atb = tmp_path / "bin" / "atb"
    atb.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m outbox "$@"\n')
    atb.chmod(stat.S_IRWXU)
    (tmp_path / "myengine").mkdir()
    (tmp_path / "myengine" / "outbox.py").write_text(_DECLARED)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    env = {**clean, "PATH": f"{atb.parent}{os.pathsep}{os.environ['PATH']}", "DATABASE_URL": postgres_url}

    def run(line: str) -> subprocess.CompletedProcess[str]:
        command = ["/bin/sh", "-c", line]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=LONG, check=False)
        assert "Traceback" not in done.stderr, done.stderr
        return done

    return run


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "data" / "outbox"


def damage(store: Path, seed: int = 0) -> set[int]:
    """A bad sector at the root of everything, and one under a pending entry; the entries that are on that one."""
    with DataFile(store / "data.mdb") as file:
        assert file.meta is not None
        pages = [file.meta.main.root]
        on_pages: dict[int, set[int]] = {}
        for row in file.rows(file.meta.main, Walk("main")):
            tree = file.tree(row)
            if tree is not None and row.key == b"pending":
                rows = [
                    (one.offset // file.page_size, int.from_bytes(one.key)) for one in file.rows(tree, Walk("pending"))
                ]
                pages.append(rows[seed][0])
                on_pages |= {pages[-1]: {seq for page, seq in rows if page == pages[-1]}}
    with (store / "data.mdb").open("r+b") as data:
        for page in pages:
            data.seek(page * 4096)
            data.write(bytes(4096))
    return on_pages[pages[-1]]


def test_dead_letters_are_answered_as_documented(shell: Shell, store: Path, postgres_url: str) -> None:
    query(postgres_url, "CREATE TABLE trades (id serial, account text, number int CHECK (number < 100))")
    operations = (Operation("log_trade", table="trades", order_by="account"),)
    listing, look, once, every, giving_up, status = steps("Dead letters")
    with (
        Outbox.open(store, operations=operations) as box,
        Relay(box, PostgresTarget(postgres_url, operations)) as relay,
    ):
        for account, number in (("a", 1), ("a", 200), ("a", 3), ("b", 300), ("c", 400), ("c", 4)):
            box.enqueue("log_trade", {"account": account, "number": number})
        assert relay.drain(LONG)
        assert [line.split()[0] for line in shell(listing).stdout.splitlines()[1:]] == ["2", "4", "5"]
        assert re.search(r"number +200", shell(look).stdout)
        assert shell(giving_up).returncode == 0
        query(postgres_url, "ALTER TABLE trades DROP CONSTRAINT trades_number_check")
        for line in (once, every):
            assert shell(line).returncode == 0
            assert relay.drain(LONG)
        assert shell(status).returncode == 0
    rows = query(postgres_url, "SELECT account, number FROM trades ORDER BY account, id")
    assert rows == [("a", 1), ("a", 200), ("a", 3), ("b", 300), ("c", 4)]


@pytest.mark.parametrize("seed", [0, 5])
def test_damaged_store_is_recovered_as_documented(shell: Shell, store: Path, postgres_url: str, seed: int) -> None:
    query(postgres_url, SCHEMA)
    audit = Audit(postgres_url)
    with Outbox.open(store, operations=OPERATIONS) as box:
        audit.trade(box, 30)
        target = PostgresTarget(postgres_url, OPERATIONS)
        assert Relay(box, target).drain(LONG)
        audit.trade(box, 30)
        audit.group(box, 3)
        # Applied, and the store does not know it: the process died before it could settle.
        target.apply(box.store.identity.store_id, box.store.peek(0, 10).records)
        target.close()
    destroyed = damage(store, seed)
    copying, verifying, exporting, away, importing, listing, draining = steps("A damaged store")
    assert shell(copying).returncode == 0
    verified = shell(verifying)
    assert verified.returncode == 1
    assert "damaged" in verified.stdout.splitlines()[0]
    exported = shell(exporting)
    assert exported.returncode == 1
    assert stat.S_IMODE((store.parents[1] / "rescued.jsonl").stat().st_mode) == 0o600
    assert shell(away).returncode == 0
    imported = shell(importing)
    assert imported.returncode in (0, 1), imported.stderr
    lost = {json.loads(line)["seq"] for line in shell(f"{listing} --json").stdout.splitlines()}
    assert shell(draining).returncode == (1 if lost else 0)
    with Outbox.open(store, operations=OPERATIONS) as box:
        kept = {entry.seq for entry in box.ledger()}
        gone = {entry.seq for entry in audit.acknowledged if entry.seq not in kept}
        # One page of them is destroyed; none else is missing, and nothing took effect twice.
        assert gone <= destroyed
        audit.acknowledged = [entry for entry in audit.acknowledged if entry.seq in kept]
        doubled = query(postgres_url, "SELECT number FROM trades GROUP BY number HAVING count(*) > 1")
        assert doubled == []
        applied = {number for (number,) in query(postgres_url, "SELECT number FROM trades")}
        assert {entry.args["number"] for entry in audit.acknowledged} <= applied
        for account in ("account-0", "account-1", "account-2"):
            rows = query(postgres_url, "SELECT number FROM trades WHERE account = %s ORDER BY id", (account,))
            assert rows == sorted(rows)


def test_a_sound_store_moves_as_a_whole(shell: Shell, store: Path, postgres_url: str) -> None:
    query(postgres_url, SCHEMA)
    audit = Audit(postgres_url)
    with Outbox.open(store, operations=OPERATIONS) as box:
        audit.trade(box, 20)
        target = PostgresTarget(postgres_url, OPERATIONS)
        target.apply(box.store.identity.store_id, box.store.peek(0, 7).records)
        target.close()
        audit.group(box, 4)
        # Beside the running engine, a copy is read.
        assert shell("atb outbox export beside.jsonl").returncode == 0
    assert shell("atb outbox verify").stdout.splitlines()[0].endswith(": sound")
    assert shell("atb outbox export - > plain.jsonl").returncode == 0
    folder = store.parents[1]
    assert (folder / "beside.jsonl").read_bytes() == (folder / "plain.jsonl").read_bytes()
    assert shell("mv data/outbox away && atb outbox import plain.jsonl").returncode == 0
    with Outbox.open(store, operations=OPERATIONS) as box:
        audit.trade(box, 5)
        assert Relay(box, PostgresTarget(postgres_url, OPERATIONS)).drain(LONG)
        assert audit.problems(box) == []
        assert box.status().health in (Health.HEALTHY, Health.DEGRADED)


def test_wrong_command_is_refused_in_one_sentence(shell: Shell, store: Path) -> None:
    with Outbox.open(store) as box:
        box.enqueue("trade", {"number": 1})
        in_use = shell("atb outbox verify")
        assert (in_use.returncode, in_use.stderr.count("\n")) == (2, 1)
        assert f"is in use by process {os.getpid()} (stop it first)" in in_use.stderr
        assert shell("atb outbox export there.jsonl").returncode == 0
        assert shell("atb outbox import there.jsonl").returncode == 2
    again = shell("atb outbox export there.jsonl")
    assert (again.returncode, "--force replaces it" in again.stderr) == (2, True)
    assert shell("atb outbox export there.jsonl --force").returncode == 0
    for line, sentence in (
        ("atb outbox export x.jsonl --dir nowhere", "there is no outbox at"),
        ("atb outbox verify --dir nowhere", "there is no outbox at"),
        ("atb outbox import nowhere.jsonl", "No such file"),
        ("atb outbox import myengine/outbox.py", "myengine/outbox.py is no export of an outbox (give a file"),
    ):
        done = shell(line)
        assert done.returncode == 2
        assert sentence in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (store.parents[1] / "nowhere").exists()
    assert sorted(path.name for path in store.parents[1].glob("*.jsonl")) == ["there.jsonl"]


def test_a_read_only_disk_can_still_be_read(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Outbox.open(store) as box:
        box.enqueue("trade", {"number": 1})

    def refuse(*_: object, **__: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(exporting, "RoleLock", refuse)
    lines: list[bytes] = []
    assert exporting.export(store, lines.append).sound
    assert [json.loads(line)["kind"] for line in lines].count("entry") == 1


def test_a_copy_beside_a_running_engine_leaves_nothing_behind(shell: Shell, store: Path, tmp_path: Path) -> None:
    (tmp_path / "temporary").mkdir()
    with Outbox.open(store) as box:
        box.enqueue("trade", {"number": 1})
        assert shell(f"TMPDIR={tmp_path / 'temporary'} atb outbox export there.jsonl").returncode == 0
        assert list((tmp_path / "temporary").iterdir()) == []
        assert box.enqueue("trade", {"number": 2}).seq == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_command_ended_by_a_signal_leaves_no_copy_behind(store: Path, tmp_path: Path, number: int) -> None:
    """A nightly export under `timeout` would fill the temporary directory with copies of the store."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    with Outbox.open(store) as box:
        for _ in range(20):
            box.enqueue("trade", {"note": "x" * 20_000})
        # Nobody reads, so that it waits in the middle of its work.
        command = begin("export", "-", cwd=store.parents[1], OUTBOX_DIR=str(store), TMPDIR=str(folder))
        until(lambda: any(folder.glob("*/outbox.json")))
        command.send_signal(number)
        command.communicate(timeout=LONG)
        assert command.returncode == (130 if number == signal.SIGINT else -number)
        assert list(folder.iterdir()) == []


def test_copy_that_a_killed_export_left_is_removed_by_the_next(shell: Shell, store: Path, tmp_path: Path) -> None:
    folder = tmp_path / "temporary"
    folder.mkdir()
    with Outbox.open(store) as box:
        for _ in range(20):
            box.enqueue("trade", {"note": "x" * 20_000})
        command = begin("export", "-", cwd=store.parents[1], OUTBOX_DIR=str(store), TMPDIR=str(folder))
        until(lambda: any(folder.glob("*/outbox.json")))
        assert shell(f"TMPDIR={folder} atb outbox export beside.jsonl").returncode == 0
        assert len(list(folder.iterdir())) == 1
        command.kill()
        command.communicate(timeout=LONG)
        assert len(list(folder.iterdir())) == 1
        assert shell(f"TMPDIR={folder} atb outbox export there.jsonl").returncode == 0
        assert list(folder.iterdir()) == []


def test_import_removes_what_a_killed_import_left(shell: Shell, store: Path) -> None:
    with Outbox.open(store) as box:
        box.enqueue("trade", {"number": 1})
    assert shell("atb outbox export there.jsonl").returncode == 0
    leftover = store.parent / ".copy.importing-abc"
    (leftover / "copy").mkdir(parents=True)
    (leftover / "copy" / "data.mdb").write_bytes(b"half")
    assert shell(f"OUTBOX_DIR={store.parent / 'copy'} atb outbox import there.jsonl").returncode == 0
    assert sorted(path.name for path in store.parent.iterdir()) == ["copy", "outbox"]
