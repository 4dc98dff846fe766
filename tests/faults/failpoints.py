"""Named points at which a process kills itself.  They are put around the library's own steps from outside.

Production code has no hooks, so a failpoint that is off costs nothing.  `arm` is called in the process that is to die.
"""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from outbox import opening
from outbox.box import Outbox
from outbox.postgres.lane import Lane
from outbox.postgres.target import PostgresTarget
from outbox.postgres.watermarks import PostgresComparison
from outbox.rescue import verify
from outbox.store import creation, environment, filesystem
from outbox.store.store import Store

_BEFORE, _AFTER = "before", "after"

# Where each of them is: the function that ends or begins there.
_STEPS: dict[str, tuple[Any, str, str]] = {
    "after the acknowledgement to the caller": (Outbox, "enqueue", _AFTER),
    "after COMMIT, before its acknowledgement is used": (Lane, "_transact", _AFTER),
    "before a batch": (PostgresTarget, "apply", _BEFORE),
    "before the batch is settled": (Store, "settle", _BEFORE),
    "creation: the files are written": (creation, "_build", _AFTER),
    "creation: the store is in place": (creation, "_move_into_place", _AFTER),
    "creation: it is flushed": (opening, "create", _AFTER),
    "creation: the store is open": (opening, "OpenStore", _BEFORE),
    "vacuum: the copy is about to be written": (environment, "copy_compact", _BEFORE),
    "vacuum: the copy is written": (environment, "copy_compact", _AFTER),
    "vacuum: the copy is verified": (environment, "structural_problems", _AFTER),
    "vacuum: the copy is in place": (filesystem, "flush_directory", _BEFORE),
    "vacuum: it is flushed": (filesystem, "flush_directory", _AFTER),
    "reconciliation: PostgreSQL is about to be taken as it is": (PostgresComparison, "accept", _BEFORE),
    "reconciliation: PostgreSQL was taken as it is": (PostgresComparison, "accept", _AFTER),
    "recovery: the mark is gone, nothing is verified": (verify, "check", _BEFORE),
    "recovery: verified, not forgotten": (verify, "check", _AFTER),
    "recovery: the crash is forgotten": (opening, "forget_holders", _AFTER),
}
# Around the LMDB commits of `Store`, by purpose.
_COMMITS = {
    "before the LMDB commit of an enqueue": ("enqueue", _BEFORE),
    "after the LMDB commit of an enqueue": ("enqueue", _AFTER),
    "before the ledger commit": ("settle", _BEFORE),
    "after the ledger commit": ("settle", _AFTER),
    "reconciliation: before the LMDB commit that puts back": ("put back what PostgreSQL has forgotten", _BEFORE),
    "reconciliation: after the LMDB commit that puts back": ("put back what PostgreSQL has forgotten", _AFTER),
    "reconciliation: before it is noted": ("note a reconciliation", _BEFORE),
    "reconciliation: after it is noted": ("note a reconciliation", _AFTER),
}
_BEFORE_COMMIT = "before COMMIT"

NAMES = (*_COMMITS, *_STEPS, _BEFORE_COMMIT)


def arm(name: str, times: int = 1) -> None:
    """Let this process be killed when it comes to the point `name` for the `times`-th time."""
    left = times

    def hit() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    if name in _COMMITS:
        _around_commits(*_COMMITS[name], hit)
    elif name == _BEFORE_COMMIT:
        _at_every_commit(hit)
    else:
        owner, attribute, when = _STEPS[name]
        _around(owner, attribute, when, hit)


def _around(owner: Any, attribute: str, when: str, hit: Callable[[], None]) -> None:
    original = getattr(owner, attribute)

    @functools.wraps(original)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        if when == _BEFORE:
            hit()
        result = original(*args, **kwargs)
        if when == _AFTER:
            hit()
        return result

    setattr(owner, attribute, wrapped)


def _around_commits(purpose: str, when: str, hit: Callable[[], None]) -> None:
    original = Store._write

    @contextmanager
    def wrapped(self: Store, why: str, **options: bool) -> Iterator[Any]:
        with original(self, why, **options) as opened:
            yield opened
            # All is put; the commit comes when the block ends.
            if when == _BEFORE and why == purpose:
                hit()
        if when == _AFTER and why == purpose:
            hit()

    Store._write = wrapped  # type: ignore[method-assign, assignment]


def _at_every_commit(hit: Callable[[], None]) -> None:
    original = Lane._apply_run

    def wrapped(self: Lane, *args: Any, **options: Any) -> Any:
        results = original(self, *args, **options)
        # Receipts and effects are written; what follows is the COMMIT.
        hit()
        return results

    Lane._apply_run = wrapped  # type: ignore[method-assign]
