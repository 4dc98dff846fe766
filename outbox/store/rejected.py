"""Rejected: the error for a call that repeats a dead letter or a discarded entry."""

from __future__ import annotations

from ..errors import AlreadyRejected
from .entry_json import DISCARDED
from .envelope import Record


def already_rejected(record: Record) -> AlreadyRejected:
    """The error for a call under the key of `record`, a dead letter or an entry that was given up."""
    error = record.error or "the reason is unknown"
    given_up = error.startswith(DISCARDED)
    hint = f"nothing delivers it: look (`atb outbox show {record.seq}`) and answer it, or "
    return AlreadyRejected(
        f"entry {record.seq} of operation {record.operation!r} has this key and was "
        f"{error if given_up else f'rejected: {error}'}",
        entry=record.entry(strict=False),
        hint=f"{'' if given_up else hint}enqueue it with another key if it is still wanted",
    )
