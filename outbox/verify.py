"""Verification in a child process: a damaged file can kill whoever maps it with SIGBUS or SIGABRT.

`check` is for the process that wants to open a store; `python -m outbox.verify DIR` is the child.  The child first
walks the file's structure without mapping it, then reads every record through LMDB and checks it.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .counters import Counters
from .envelope import key_seq, unpack
from .environment import Environment, structural_problems
from .errors import OutboxError, StoreCorrupt
from .guarded import COUNTERS_KEY

_MOST_PROBLEMS = 20


def check(directory: Path) -> None:
    """Verify the store in a child process; nobody may have it open.

    Damage that the outbox can set aside by itself (a single pending record with a wrong checksum) passes: the relay
    quarantines it and says so.  Raises `StoreCorrupt` naming the first problems, or how the child died.
    """
    # The host may have found this package by changing sys.path; the child must find the same one.
    paths = [os.fspath(Path(__file__).resolve().parents[1]), *(path for path in sys.path if path)]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    child = subprocess.run(
        # A host that turns warnings into errors must not make a sound store look damaged.
        [sys.executable, "-P", "-W", "ignore", "-m", "outbox.verify", os.fspath(directory)],
        env=env,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )
    if child.returncode == 0:
        return
    hint = "nothing was changed; restore a backup of the directory"
    if child.returncode < 0:
        raise StoreCorrupt(f"{directory} is damaged: verifying it died of signal {-child.returncode}", hint=hint)
    lines = child.stdout.decode("utf-8", "replace").splitlines()
    if child.returncode != 1 or not lines:
        tail = child.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise StoreCorrupt(f"{directory} could not be verified: {tail[0] if tail else child.returncode}", hint=hint)
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    raise StoreCorrupt(f"{directory} is damaged: {'; '.join(lines[:3])}{more}", hint=hint)


def problems(directory: Path) -> Iterator[str]:
    """Everything wrong with the store; run this in a process that may die."""
    found = structural_problems(directory)
    if found:
        yield from found
        return
    environment = Environment(directory, readonly=True)
    try:
        with environment.env.begin() as txn:
            yield from _record_problems(environment, txn)
    finally:
        environment.close()


def _record_problems(environment: Environment, txn: Any) -> Iterator[str]:
    counters = Counters.unpack(txn.get(COUNTERS_KEY))
    pending = 0
    for key, _ in txn.cursor(db=environment.pending).iternext():
        pending += 1
        if key_seq(key) >= counters.next_seq:
            yield f"pending entry {key_seq(key)} is not below the next sequence number {counters.next_seq}"
    for key, value in txn.cursor(db=environment.ledger).iternext():
        try:
            unpack(key_seq(key), value)
        except StoreCorrupt as exc:
            yield f"ledger: {exc}"
    for key, value in txn.cursor(db=environment.idempotency).iternext():
        if len(key) != 16 or len(value) != 24:
            yield f"idempotency record {key.hex()} has {len(key)} + {len(value)} bytes, expected 16 + 24"
    found = pending + counters.completed + counters.dead + counters.discarded + counters.quarantined
    if found != counters.acknowledged:
        yield f"{counters.acknowledged} entries were acknowledged and {found} are accounted for"


def _main(directory: str) -> int:
    count = 0
    try:
        for problem in problems(Path(directory)):
            print(problem)
            count += 1
            if count == _MOST_PROBLEMS:
                break
    except OutboxError as exc:
        print(exc)
        count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
