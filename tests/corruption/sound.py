"""Sound stores, by the thousand: the engine opens each of them, whatever was done to it and wherever it was killed.

`python -m tests.corruption.sound COUNT [FIRST]` makes and opens so many.  A store lives several lives in a process of
its own, which is killed at a random instant of random work; the state that each life leaves is one store.
"""

from __future__ import annotations

import json
import logging
import os
import random
import select
import shutil
import signal
import struct
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import IO

import lmdb

from outbox import Outbox, OutboxConfig, OutboxError
from outbox.rescue import verify
from outbox.rescue.history import UNCHECKED_FILE
from outbox.rescue.pages import DataFile, Walk
from outbox.rescue.salvage import Salvage
from outbox.store.environment import copy_compact
from outbox.store.ledger import Settlement
from outbox.transfer import exporting
from outbox.transfer.importing import restore
from tests.unit.fakes.rig import FakeClock
from tests.unit.fakes.waiting import LONG

CONFIG = OutboxConfig(min_free_mb=0)
LIVES = 20
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it
# Where another byte of a transaction's number begins, or none.
_STARTS = (None, 1 << 8, 1 << 16, 1 << 24, 1 << 32)
# Of a meta page: where the number of its transaction lies.
_TRANSACTION_AT = 16 + 24 + 2 * 48 + 8


@dataclass
class Tally:
    """What became of the stores."""

    opened: int = 0
    verified: int = 0
    wrong: list[str] = field(default_factory=list)
    # By what the last life did, and the largest of each.
    work: dict[str, int] = field(default_factory=dict)
    longest_free_list: int = 0
    deepest_tree: int = 0

    def add(self, other: Tally) -> None:
        self.opened += other.opened
        self.verified += other.verified
        self.wrong += other.wrong
        for name, count in other.work.items():
            self.work[name] = self.work.get(name, 0) + count
        self.longest_free_list = max(self.longest_free_list, other.longest_free_list)
        self.deepest_tree = max(self.deepest_tree, other.deepest_tree)


def run(first: int, count: int) -> Tally:
    """Make and open `count` stores, from number `first` on."""
    tally = Tally()
    with tempfile.TemporaryDirectory(prefix="outbox-sound-", dir=_MEMORY if _MEMORY.is_dir() else None) as name:
        real, verify._own_interpreter = verify._own_interpreter, _no_interpreter
        try:
            number = first
            while tally.opened < count:
                _live(Path(name) / str(number), number, min(LIVES, count - tally.opened), tally)
                number += 1
        finally:
            verify._own_interpreter = real
    return tally


def _no_interpreter() -> None:
    """Let the verification fork, which does not have to start an interpreter."""


def _live(directory: Path, number: int, lives: int, tally: Tally) -> None:
    chance = random.Random(number)
    Outbox.open(directory, CONFIG).close()
    start = _STARTS[number % len(_STARTS)]
    if start is not None:
        _count_on_from(directory, start - chance.randrange(2, 60))
    try:
        for life in range(lives):
            seed = chance.random()
            work = chance.choice([*_WORK])
            acknowledged = _killed(directory, work, seed, chance.random() * 0.015)
            tally.work[work] = tally.work.get(work, 0) + 1
            if chance.random() < 0.15:
                _copied(directory)
            _open(directory, f"store {number}, life {life} ({work})", acknowledged, tally, again=chance.random() < 0.01)
    finally:
        shutil.rmtree(directory, ignore_errors=True)


def _count_on_from(directory: Path, transaction: int) -> None:
    """Set the number of the last transaction, and commit twice, so that both metas are written by LMDB itself."""
    transaction |= 1
    with tempfile.TemporaryDirectory(dir=directory) as name:
        copy_compact(directory, Path(name))
        os.rename(Path(name) / "data.mdb", directory / "data.mdb")
    with (directory / "data.mdb").open("r+b") as file:
        for page in range(2):
            file.seek(page * 4096 + _TRANSACTION_AT)
            file.write(struct.pack("=Q", transaction - 1 + page))
    (directory / "lock.mdb").unlink()
    env = lmdb.open(os.fspath(directory), max_dbs=3, map_size=1 << 30, lib_version=0)
    for value in (b"1", b"2"):
        with env.begin(write=True) as txn:
            txn.put(b"outbox:campaign", value)
    env.close()


def _copied(directory: Path) -> None:
    """As `cp -a` of a store that nobody has open."""
    copy = directory.with_name(f"{directory.name}-copy")
    shutil.copytree(directory, copy, copy_function=shutil.copy2)
    shutil.rmtree(directory)
    os.rename(copy, directory)


def _killed(directory: Path, work: str, seed: float, delay: float) -> int:
    """Let a process work, and kill it after `delay` seconds; the highest sequence number that it acknowledged."""
    read, write = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            os.close(read)
            _work(directory, work, random.Random(seed), write)
        except BaseException as exc:  # noqa: BLE001 - the judge gets to see it
            os.write(write, f"!{type(exc).__name__}: {exc}\n".encode())
        finally:
            os.kill(os.getpid(), signal.SIGKILL)
    os.close(write)
    said = b""
    with os.fdopen(read, "rb", buffering=0) as pipe:
        # A tree of three levels needs thousands of entries: what makes them is not killed before their commit.
        lines = 2 if work == "deep" else 1
        while said.count(b"\n") < lines and select.select([pipe], [], [], LONG)[0]:
            part = pipe.read(1 << 16)
            if not part:
                break
            said += part
        time.sleep(delay)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        while part := pipe.read(1 << 16):
            said += part
    told = said.decode().split("\n")[:-1]
    broken = [line for line in told if line.startswith("!")]
    if broken:
        raise AssertionError(f"{work}: {broken[0]}")
    return max((int(line) for line in told), default=0)


def _open(directory: Path, who: str, acknowledged: int, tally: Tally, *, again: bool) -> None:
    """Open it as an engine does, and by the reader of raw pages."""
    with Salvage(directory) as salvage:
        if not salvage.sound:
            tally.wrong.append(f"{who}: the second reading objects: {salvage.problems[:3]} {[*salvage.damaged][:3]}")
    with DataFile(directory / "data.mdb") as file:
        assert file.meta is not None
        tally.longest_free_list = max(tally.longest_free_list, file.meta.free.entries)
        trees = [file.tree(row) for row in file.rows(file.meta.main, Walk("main"))]
        tally.deepest_tree = max([tally.deepest_tree, *(tree.depth for tree in trees if tree is not None)])
    tally.verified += not (directory / "clean").exists()
    tally.opened += 1
    for _ in range(100 if again else 1):
        try:
            with Outbox.open(directory, CONFIG) as box:
                last = box.status().last_seq
                if box._opened.history is not None and not box._opened.history.wait(LONG):
                    tally.wrong.append(f"{who}: the check of the ledger does not end")
                if alarms := box.status().alarms:
                    tally.wrong.append(f"{who}: {alarms}")
                if (directory / UNCHECKED_FILE).exists():
                    tally.wrong.append(f"{who}: the ledger is still unchecked")
        except OutboxError as exc:
            tally.wrong.append(f"{who}: refused: {exc}")
            return
    if last < acknowledged:
        tally.wrong.append(f"{who}: entry {acknowledged} was acknowledged, the last one is {last}")


# -- what a life does: each until it is killed, or to its end


def _work(directory: Path, name: str, chance: random.Random, out: int) -> None:
    with Outbox.open(directory, CONFIG) as box:
        os.write(out, b"0\n")
        for _ in range(chance.randrange(1, 200)):
            _WORK[name](box, chance, out)
        if chance.random() < 0.5:
            os.kill(os.getpid(), signal.SIGKILL)


def _enqueue(box: Outbox, chance: random.Random, out: int) -> None:
    text = "x" * chance.choice([0, 10, 200, 1500, 2100, 5000])
    if chance.random() < 0.2:
        with box.transaction() as tx:
            for number in range(chance.randrange(2, 30)):
                tx.enqueue("trade", {"number": number, "text": text}, order_by=f"o{number % 4}")
        last = tx.entries[-1].seq
    else:
        last = box.enqueue("trade", {"text": text}, order_by=f"o{chance.randrange(4)}").seq
    os.write(out, b"%d\n" % last)


def _large(box: Outbox, chance: random.Random, out: int) -> None:
    last = box.enqueue("trade", {"text": "y" * chance.randrange(4000, 400_000)}).seq
    os.write(out, b"%d\n" % last)
    _settle(box, chance, out)


def _deep(box: Outbox, chance: random.Random, out: int) -> None:
    if box.store.figures().pending < 12_000:
        with box.transaction() as tx:
            for number in range(chance.randrange(2000, 6000)):
                tx.enqueue("trade", {"number": number, "text": "z" * 40})
        os.write(out, b"%d\n" % tx.entries[-1].seq)
    else:
        _settle(box, chance, out, most=3000)


def _settle(box: Outbox, chance: random.Random, out: int, most: int = 20) -> None:
    if chance.random() < 0.5:
        _enqueue(box, chance, out)
    records = box.store.peek(0, chance.randrange(1, most + 1)).records
    loose = [record for record in records if not record.group]
    if loose and chance.random() < 0.2:
        box.store.settle(Settlement(dead=[(loose[0], "refused")]))
    elif loose and chance.random() < 0.2:
        box.store.settle(Settlement(retried=[(loose[0], "may pass")]))
    else:
        box.store.settle(Settlement(completed=[(record, b"{}") for record in records]))


def _answer(box: Outbox, chance: random.Random, out: int) -> None:
    _settle(box, chance, out)
    for entry in box.dead_letters():
        if chance.random() < 0.5:
            box.requeue(entry.seq)
        else:
            box.discard(entry.seq, "by hand", free_key=chance.random() < 0.5)
        return


def _prune(box: Outbox, chance: random.Random, out: int) -> None:
    _settle(box, chance, out)
    if chance.random() < 0.1:
        box.compact(timedelta(0))


def _vacuum(box: Outbox, chance: random.Random, out: int) -> None:
    _prune(box, chance, out)
    if chance.random() < 0.05:
        box.compact(timedelta(0), vacuum=True)


def _small(box: Outbox, chance: random.Random, out: int) -> None:
    name = f"ids:{chance.randrange(20)}"
    if chance.random() < 0.7:
        box.store.put_meta(name, b"v" * chance.choice([1, 100, 3000, 20_000]))
    else:
        box.store.delete_meta(name)
    _enqueue(box, chance, out)


def _pinned(box: Outbox, chance: random.Random, out: int) -> None:
    """With a reader that pins the pages of this moment, so that the free list becomes long."""
    done, began = threading.Event(), threading.Event()

    def hold() -> None:
        with box.store._read():
            began.set()
            done.wait()

    reader = threading.Thread(target=hold)
    reader.start()
    began.wait()
    try:
        for _ in range(chance.randrange(5, 60)):
            _settle(box, chance, out)
    finally:
        done.set()
        reader.join()


def _import(box: Outbox, chance: random.Random, out: int) -> None:
    """What was exported of another store is imported into this one."""
    _enqueue(box, chance, out)
    if chance.random() > 0.02:
        return
    other = box.path.with_name(f"{box.path.name}-other")
    shutil.rmtree(other, ignore_errors=True)
    with Outbox.open(other, CONFIG) as made:
        for number in range(chance.randrange(1, 50)):
            made.enqueue("fee", {"number": number})
    file = other.with_suffix(".jsonl")
    with file.open("wb") as lines:
        exporting.export(other, lines.write)
    shutil.rmtree(other)
    path = box.path
    box.close()
    restore(file, path, CONFIG, FakeClock(), merge=True)
    file.unlink()
    os.kill(os.getpid(), signal.SIGKILL)


_WORK: dict[str, Callable[[Outbox, random.Random, int], None]] = {
    "enqueue": _enqueue,
    "large": _large,
    "deep": _deep,
    "settle": _settle,
    "answer": _answer,
    "prune": _prune,
    "vacuum": _vacuum,
    "small": _small,
    "pinned": _pinned,
    "import": _import,
}


def main(count: int, first: int) -> int:
    """Make and open them on every core; returns the exit code."""
    # That its disk is memory is said of each store.
    logging.getLogger("outbox").setLevel(logging.ERROR)
    began, processes = time.monotonic(), os.cpu_count() or 1
    pipes = [_share(first + at * count, count // processes + (at < count % processes)) for at in range(processes)]
    total = Tally()
    for pid, pipe in pipes:
        with pipe:
            said = pipe.read()
        os.waitpid(pid, 0)
        total.add(Tally(**json.loads(said)) if said else Tally(wrong=["a process of the campaign died"]))
    for sentence in total.wrong:
        sys.stdout.write(f"  !! {sentence}\n")
    work = ", ".join(f"{count} {name}" for name, count in sorted(total.work.items()))
    sys.stdout.write(
        f"{total.opened} sound stores in {time.monotonic() - began:.0f} s, {total.verified} of them verified; "
        f"refused or otherwise wrong: {len(total.wrong)}\nlast work: {work}\n"
        f"longest free list {total.longest_free_list} transactions, deepest tree {total.deepest_tree} levels\n"
    )
    return 1 if total.wrong or total.opened < count else 0


def _share(first: int, count: int) -> tuple[int, IO[str]]:
    read, write = os.pipe()
    pid = os.fork()
    if pid:
        os.close(write)
        return pid, os.fdopen(read)
    os.close(read)
    with os.fdopen(write, "w") as pipe:
        json.dump(run(first, count).__dict__, pipe)
    os._exit(0)


if __name__ == "__main__":
    sys.exit(main(*map(int, (sys.argv[1:] + ["1000", "1"][len(sys.argv) - 1 :])[:2])))
