"""Exporting: the content of a store, sound or damaged, as JSON lines.

A store that is not open is read as it is, without LMDB, so that no damage can end the process.  One that is open was
verified by its process; a compact copy of it is read instead.
"""

from __future__ import annotations

import errno
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import codec
from ..errors import StoreCorrupt, StoreLocked
from ..rescue import verify
from ..rescue.salvage import Remains, Salvage
from ..store import environment
from ..store.continuity import SESSIONS_KEY, RelaySessions
from ..store.creation import workshop
from ..store.entry_json import FORMAT, State, raw_text, to_object
from ..store.identity import DATA_FILE, IDENTITY_FILE, read_identity
from ..store.locks import Role, RoleLock, holder
from ..store.own_files import read_own


@dataclass
class Findings:
    """What is in a store, and what of it can be read."""

    store_id: str | None = None
    # One sentence each; empty for a sound store.
    problems: list[str] = field(default_factory=list)
    # Readable entries by state.
    entries: Counter[State] = field(default_factory=Counter)
    # Of these, those found outside of the store's structure: perhaps in an older state.
    loose: int = 0
    # Acknowledged and not readable: with raw bytes, or only by their keys.
    damaged: int = 0
    lost: int = 0
    # Set aside earlier, with their raw bytes.
    quarantined: int = 0
    # Completed entries of which only the idempotency key is left.
    bare_keys: int = 0
    small_records: int = 0
    # What the reader of raw pages finds wrong in a store that LMDB reads as sound: a defect of this library.
    disagreements: list[str] = field(default_factory=list)
    # Damaged records where they wait for delivery: a relay sets them aside by itself.
    set_aside: list[Remains] = field(default_factory=list)

    @property
    def sound(self) -> bool:
        """Whether nothing is damaged, but for what was set aside before."""
        return not self.problems and not self.damaged and not self.lost


def examine(directory: Path, *, python: str | None = None) -> Findings:
    """Verify the store in `directory`, which no process may have open, and count the salvageable entries.

    `python` is the interpreter to verify with, see `OutboxConfig.python`.  Raises `StoreLocked`, `StoreMissing`,
    `StoreUnverified` or OSError.
    """
    with _alone(directory):
        findings = _read(directory, _ignore)
        try:
            verify.check_all(directory, python=python)
        except StoreCorrupt as exc:
            # It also knows LMDB's own bookkeeping, of which no entry hangs.
            findings.problems = findings.problems or [exc.message]
        else:
            # An engine opens this store: what only the reader of raw pages complains of is a defect of that reader.
            set_aside = {one.why for one in findings.set_aside}
            findings.disagreements = [problem for problem in findings.problems if problem not in set_aside]
            findings.problems = [problem for problem in findings.problems if problem in set_aside]
        return findings


def export(directory: Path, write: Callable[[bytes], object]) -> Findings:
    """Write everything that can be read of the store in `directory` as JSON lines, also of a damaged one.

    Works beside a running engine, for which it needs room for a copy in the temporary directory.  Raises
    `StoreMissing`, `StoreFormatError`, `StoreCorrupt` where there is no data file, `StoreLocked` or OSError.
    """
    try:
        with _alone(directory):
            return _read(directory, write)
    except StoreLocked:
        pass
    read_identity(directory)
    access = RoleLock(directory, Role.ACCESS, shared=True)
    try:
        with workshop("outbox-export-", Path(tempfile.gettempdir())) as copy:
            environment.copy_compact(directory, copy)
            (copy / IDENTITY_FILE).write_bytes(read_own(directory / IDENTITY_FILE))
            return _read(copy, write)
    finally:
        access.release()


@contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """No other process has the store open, or opens it meanwhile.  Raises `StoreLocked`."""
    if not (directory / DATA_FILE).exists():
        read_identity(directory)  # raises for a missing file
    try:
        access = _claim(directory)
    except OSError as exc:
        if exc.errno != errno.EROFS:
            raise
        yield  # a read-only store has no writer
        return
    try:
        yield
    finally:
        access.release()


def _claim(directory: Path) -> RoleLock:
    # A process that opens the store meanwhile must not take this one for a process that has verified it.
    opening = RoleLock(directory, Role.OPENING)
    try:
        access = RoleLock(directory, Role.ACCESS, shared=True)
        try:
            _make_exclusive(access, directory)
        except BaseException:
            access.release()
            raise
        return access
    finally:
        opening.release(clean=True)


def _make_exclusive(access: RoleLock, directory: Path) -> None:
    try:
        access.make_exclusive()
    except StoreLocked as exc:
        pid = holder(directory, Role.ENGINE) or holder(directory, Role.RELAY)
        who = f"process {pid}" if pid else "another process"
        raise StoreLocked(f"{directory} is in use by {who}", hint="stop it first", holder_pid=pid) from exc


def _read(directory: Path, write: Callable[[bytes], object]) -> Findings:
    findings, lines = Findings(), 0

    def put(line: dict[str, Any]) -> None:
        nonlocal lines
        write(codec.to_json(line) + b"\n")
        lines += 1

    with Salvage(directory) as found:
        findings.store_id = None if found.store_id is None else str(found.store_id)
        findings.problems = [*found.problems, *(one.why for one in found.damaged.values())]
        findings.set_aside = [one for one in found.damaged.values() if one.in_pending]
        put(
            {
                "kind": "outbox",
                "format": FORMAT,
                "store_id": findings.store_id,
                "next_seq": found.next_seq,
                "last_us": found.counters.last_us if found.counters is not None else 0,
                "problems": findings.problems,
            }
        )
        for name, record in sorted(found.small.items()):
            put({"kind": "small", "name": name.decode(), "stamp": record.stamp, "value": raw_text(record.value)})
        if found.other.get(SESSIONS_KEY) == RelaySessions().pack():
            del found.other[SESSIONS_KEY]  # it is empty
        for name, value in sorted(found.other.items()):
            put({"kind": "other", "name": raw_text(name), "value": raw_text(value)})
        findings.small_records = len(found.small) + len(found.other)
        for one in found.entries():
            findings.entries[one.state] += 1
            findings.loose += one.loose
            put(to_object(one.record, one.state, owns_key=one.owns_key, loose=one.loose))
        for left in found.remains():
            kind = "lost" if not left.raw else "quarantined" if left.seq in found.quarantined else "damaged"
            findings.lost += kind == "lost"
            findings.damaged += kind == "damaged"
            findings.quarantined += kind == "quarantined"
            put(_remains(kind, left))
        for left in found.bare_keys():
            findings.bare_keys += 1
            put(_remains("key", left))
        put({"kind": "end", "lines": lines})
    return findings


def _remains(kind: str, left: Remains) -> dict[str, Any]:
    return {
        "kind": kind,
        "seq": left.seq,
        "raw": raw_text(left.raw),
        "key": left.key.hex() or None,
        "payload_hash": left.payload_hash.hex() or None,
        "why": left.why,
    }


def _ignore(line: bytes) -> None:
    """Counted only."""
