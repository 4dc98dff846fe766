"""Verification in a child process: a damaged file can kill whoever maps it with SIGBUS or SIGABRT.

`check` is for the process that wants to open a store; `python -m outbox.verify DIR` is the child.  The child first
walks the file's structure and checks every record without mapping the file, then reads all of it through LMDB.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .environment import Environment, structural_problems
from .errors import OutboxError, StoreCorrupt
from .salvage import Salvage

_MOST_PROBLEMS = 20
_WAY_OUT = "nothing was changed; see `atb outbox verify`, restore a backup, or export and import"


def check(directory: Path) -> None:
    """Verify the store in a child process; nobody may have it open.

    Damage that the outbox can set aside by itself (a single pending record with a wrong checksum) passes: the relay
    quarantines it and says so.  Raises `StoreCorrupt` naming the first problems, or how the child died.
    """
    child = _run_child(directory)
    if child.returncode == 0:
        return
    if child.returncode < 0:
        raise StoreCorrupt(f"{directory} is damaged: verifying it died of signal {-child.returncode}", hint=_WAY_OUT)
    lines = child.stdout.decode("utf-8", "replace").splitlines()
    if child.returncode != 1 or not lines:
        tail = child.stderr.decode("utf-8", "replace").strip().splitlines()[-1:]
        said = tail[0] if tail else child.returncode
        raise StoreCorrupt(f"{directory} could not be verified: {said}", hint=_WAY_OUT)
    more = f" and {len(lines) - 3} more" if len(lines) > 3 else ""
    raise StoreCorrupt(f"{directory} is damaged: {'; '.join(lines[:3])}{more}", hint=_WAY_OUT)


def _run_child(directory: Path) -> subprocess.CompletedProcess[bytes]:
    # The host may have found this package by changing sys.path; the child must find the same one.
    paths = [os.fspath(Path(__file__).resolve().parents[1]), *(path for path in sys.path if path)]
    return subprocess.run(
        # A host that turns warnings into errors must not make a sound store look damaged.
        [sys.executable, "-P", "-W", "ignore", "-m", "outbox.verify", os.fspath(directory)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=False,
    )


def problems(directory: Path) -> Iterator[str]:
    """Everything wrong with the store; run this in a process that may die."""
    found = structural_problems(directory)
    if not found:
        with Salvage(directory) as salvage:
            found = salvage.problems + [one.why for one in salvage.damaged.values() if not one.in_pending]
    yield from found
    if not found:
        # What was found sound by reading bytes is sound for LMDB too.
        environment = Environment(directory, readonly=True)
        try:
            with environment.env.begin() as txn:
                for handle in (environment.pending, environment.idempotency, environment.ledger):
                    for _ in txn.cursor(db=handle).iternext():
                        pass
        finally:
            environment.close()


def _main(directory: str) -> int:
    count = 0
    try:
        for problem in problems(Path(directory)):
            print(problem)
            count += 1
            if count == _MOST_PROBLEMS:
                break
    except (OutboxError, OSError) as exc:
        print(exc)
        count += 1
    return 1 if count else 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1]))
