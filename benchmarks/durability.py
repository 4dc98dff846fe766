"""The proof that comes before the stopwatch: each contender's calls return behind a flush of their own.

The same code that is timed runs a few times under the kernel's eyes; PostgreSQL's sessions are counted by PostgreSQL.
"""

from __future__ import annotations

from .flushes import CannotCount, audit
from .measure import NotTheSameWork, Setting
from .workload import trade, wal_flushes
from .writers import IN_POSTGRES, WRITERS, audited_calls


def flushes_per_write(setting: Setting, names: list[str], threads: int = 1) -> tuple[dict[str, float], list[str]]:
    """Flushes per write of each contender, and what could not be counted and why.

    Raises `NotTheSameWork` for a contender that returns before its data are flushed.
    """
    found: dict[str, float] = {}
    notes: list[str] = []
    for name in names:
        setting.say(f"counting the flushes of {name}")
        try:
            if name in IN_POSTGRES:
                found[name] = _in_postgres(setting, name)
            else:
                folder = setting.folder("audit")
                seen = audit(folder, audited_calls, name, str(folder), setting.sizes.audited, threads)
                seen.require_durable(name, alone=threads == 1)
                found[name] = seen.flushes_per_call
        except CannotCount as exc:
            notes.append(f"{name}: flushes not counted, {exc}")
    return found, notes


def _in_postgres(setting: Setting, name: str) -> float:
    before, count = wal_flushes(setting.url), setting.sizes.audited
    writer = WRITERS[name](setting.folder("audit"), setting.url)
    ready = wal_flushes(setting.url)
    for number in range(count):
        writer.write(number, trade(number))
    writer.close()
    after = wal_flushes(setting.url)
    if before is None or ready is None or after is None:
        raise CannotCount("this PostgreSQL does not count them")
    if after - ready < count:
        raise NotTheSameWork(f"{name}: {after - ready} flushes of the log for {count} commits")
    return (after - ready) / count
