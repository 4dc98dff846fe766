"""Other containers and read-only mounts, made of namespaces: what cannot be served says why, and nothing is damaged."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from outbox import Operation, Outbox, PostgresTarget, Relay
from tests.atb import COMMAND
from tests.unit.fakes.waiting import LONG

pytestmark = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None, reason="namespaces need root and util-linux"
)
CONTAINER = ["unshare", "--pid", "--fork", "--mount-proc"]

ENGINE = """
import os, sys
from outbox import Outbox
with Outbox.open(sys.argv[1]) as box:
    box.enqueue("log", {"by": os.getpid()})
    box.status()
    print(os.getpid(), flush=True)
    sys.stdin.readline()
    box.enqueue("log", {"by": os.getpid()})
    print("done", flush=True)
"""
KILLED_IN_A_READ = """
import os, sys
from outbox import Outbox
box = Outbox.open(sys.argv[1])
with box.store._read():
    print("reading", flush=True)
    sys.stdin.readline()
"""
OBSERVER = """
import sys
from outbox import Outbox
with Outbox.attach(sys.argv[1]) as box:
    print("attached", flush=True)
    sys.stdin.readline()
"""
READERS = """
import sys
from outbox import Outbox
with Outbox.open(sys.argv[1]) as box:
    print(box.store._environment.env.readers())
"""


def start(code: str, directory: Path, *, container: bool = True) -> subprocess.Popen[str]:
    """Run `code` with the directory as its argument, until it says its first line."""
    command = [*(CONTAINER if container else []), sys.executable, "-c", code, str(directory)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().strip()
    return process


def finish(process: subprocess.Popen[str]) -> str:
    said, _ = process.communicate("\n", timeout=LONG)
    assert process.returncode == 0
    return said.strip()


def run(directory: Path, *command: str, prefix: list[str]) -> subprocess.CompletedProcess[str]:
    line = [*prefix, *COMMAND, *command, "--dir", str(directory)]
    return subprocess.run(line, capture_output=True, text=True, check=False, timeout=LONG)


def test_second_container_is_told_to_share_the_namespace(outbox_dir: Path) -> None:
    """Engine and relay as two containers on one volume are both process 1, by which LMDB tells readers apart."""
    engine = start(ENGINE, outbox_dir)
    try:
        beside = run(outbox_dir, "status", prefix=CONTAINER)
        outside = run(outbox_dir, "status", prefix=[])
    finally:
        said = finish(engine)
    assert said == "done"
    assert beside.returncode == 2
    assert "another container, in which a process has the same id 1" in beside.stderr
    assert "shareProcessNamespace" in beside.stderr
    assert "damaged" not in beside.stderr
    assert outside.returncode == 1  # no relay runs
    with Outbox.open(outbox_dir) as box:
        assert box.status().pending == 2


def test_slot_of_a_dead_process_with_this_id_is_cleared(outbox_dir: Path) -> None:
    """A container is killed in a read, and the next one has the same process id; another process keeps the table."""
    Outbox.open(outbox_dir).close()
    observer = start(OBSERVER, outbox_dir, container=False)
    try:
        engine = start(KILLED_IN_A_READ, outbox_dir)
        (child,) = Path(f"/proc/{engine.pid}/task/{engine.pid}/children").read_text(encoding="ascii").split()
        os.kill(int(child), 9)
        engine.communicate(timeout=LONG)
        again = subprocess.run(
            [*CONTAINER, sys.executable, "-c", READERS, str(outbox_dir)], capture_output=True, text=True, check=True
        )
    finally:
        finish(observer)
    slots = [line.split() for line in again.stdout.splitlines() if line.split()[:1] == ["1"]]
    # A slot of this process in which no read is going on would pin nothing.
    assert [slot for slot in slots if slot[-1] != "-"] == []


def test_commands_that_look_work_on_a_read_only_disk(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {})
    answers = {}
    for unclean in (False, True):
        if unclean:
            (outbox_dir / "clean").unlink()
        for command in (["status"], ["list"], ["show", "1"], ["verify"], ["drain"]):
            script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
            prefix = ["unshare", "-m", "sh", "-c", script, str(outbox_dir)]
            answers[command[0], unclean] = run(outbox_dir, *command, prefix=prefix)
    for (name, _), answer in answers.items():
        expected = 1 if name == "status" else 2 if name == "drain" else 0
        assert answer.returncode == expected, (name, answer.stdout, answer.stderr)
    assert "Read-only file system" in answers["drain", False].stderr
    assert "damaged" not in answers["drain", True].stderr


def test_audit_of_a_read_only_disk_compares_it(outbox_dir: Path, postgres_url: str) -> None:
    """The disk of a machine that has died is mounted to prove what PostgreSQL has of it."""
    operations = [Operation("log", handler=lambda connection, entry: None)]
    with Outbox.open(outbox_dir, operations=operations) as box:
        box.enqueue("log", {})
        assert Relay(box, PostgresTarget(postgres_url, operations)).drain(timeout=LONG)
    script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
    prefix = ["unshare", "-m", "sh", "-c", script, str(outbox_dir)]
    done = run(outbox_dir, "audit", "--database-url", postgres_url, prefix=prefix)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Each delivered entry has its receipt" in done.stdout


def test_read_only_mount_beside_an_engine_is_refused(outbox_dir: Path) -> None:
    """Where LMDB cannot keep a slot for its reader, pages may be overwritten while they are read."""
    engine = start(ENGINE, outbox_dir, container=False)
    try:
        script = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
        beside = run(outbox_dir, "status", prefix=["unshare", "-m", "sh", "-c", script, str(outbox_dir)])
    finally:
        finish(engine)
    assert beside.returncode == 2
    assert "read-only here and written to elsewhere" in beside.stderr
