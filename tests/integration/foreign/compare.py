"""Compares two runs of an engine: what it was told, and each table, row by row.

Ids may differ between runs, since a sequence skips; so an id stands for the call that told it.  Times must differ; so a
time stands for the calls that were running then.
"""

from __future__ import annotations

import itertools
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta
from typing import Any

from sqlalchemy import DateTime, MetaData, Table, create_engine, select

from .journal import spelled

# Clocks of the process and of PostgreSQL are the same; the stamps of a journal are rounded.
EPSILON_S = 0.0001
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
STAMP = re.compile(r"\d{8}_\d{6}_\d{6}")


@dataclass(frozen=True, kw_only=True)
class Clock:
    """How a column keeps a time: in which unit, how far from the call's, and how exactly."""

    unit: timedelta | None = None
    ahead: timedelta = timedelta()
    exact_to_s: float = 0.0


DAY = Clock(exact_to_s=86_400)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the comparison must know of a manager."""

    metadata: MetaData
    # Method -> table of the id that it tells; "method.key" for an id inside its answer.
    tells: Mapping[str, str]
    # Method -> table of an id that it answers with and that was told before; "method.key" as above.
    repeats: Mapping[str, str] = field(default_factory=dict)
    # "table.column" -> table, where a reference has no foreign key.
    references: Mapping[str, str] = field(default_factory=dict)
    # "table.column" -> how it keeps a time, where it is not a plain time.
    clocks: Mapping[str, Clock] = field(default_factory=dict)
    # "table.column" that no two runs have in common, such as a random key.
    per_run: frozenset[str] = frozenset()
    # Methods whose answer an outage may leave out.
    unanswered: frozenset[str] = frozenset()


class Run:
    """One run: the journal's lines and the tables of its database."""

    def __init__(self, shape: Shape, lines: list[dict[str, Any]], url: str) -> None:
        self.shape, self.lines = shape, lines
        self._told: dict[str, dict[Any, int]] = defaultdict(dict)
        for line in lines:
            for table, told in self._ids_in(line, shape.tells):
                self._told[table].setdefault(told, len(self._told[table]))
        self.tables = self._read(url)

    def _ids_in(self, line: dict[str, Any], where: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
        answer = line.get("answer")
        for path, table in where.items():
            name, _, key = path.partition(".")
            if line["name"] != name or answer is None:
                continue
            if not key:
                yield table, answer
            elif isinstance(answer, dict) and key in answer:
                yield table, answer[key]

    def _read(self, url: str) -> dict[str, list[dict[str, Any]]]:
        engine = create_engine(url.replace("postgresql://", "postgresql+psycopg2://", 1))
        try:
            with engine.connect() as connection:
                return {
                    table.fullname: [dict(row._mapping) for row in connection.execute(select(table))]
                    for table in self.shape.metadata.sorted_tables
                }
        finally:
            engine.dispose()

    def told(self, table: str, value: Any) -> str:
        """The call that told this id."""
        number = self._told[table].get(spelled(value))
        return "none" if value is None else "untold" if number is None else f"{table} number {number}"

    def calls_at(self, moment: datetime, exact_to_s: float = 0.0) -> frozenset[int]:
        """Numbers of the calls that were running at this time."""
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        at = moment.timestamp()
        return frozenset(
            number
            for number, line in enumerate(self.lines)
            if line["from"] - EPSILON_S <= at + exact_to_s and at <= line["to"] + EPSILON_S
        )

    def time(self, value: datetime, clock: Clock | None = None) -> Time:
        clock = clock or Clock()
        return Time(value, self.calls_at(value - clock.ahead, clock.exact_to_s))


@dataclass(frozen=True)
class Time:
    value: datetime
    calls: frozenset[int]

    def matches(self, other: Time) -> bool:
        """Equal times, or times of the same call."""
        return self.value == other.value or bool(self.calls & other.calls)

    def __repr__(self) -> str:
        return f"{self.value.isoformat()} (calls {sorted(self.calls)[:4] or 'none'})"


def section(run: Run, name: str | None) -> list[dict[str, Any]]:
    """The lines of one section, or all."""
    if name is None:
        return [line for line in run.lines if "section" not in line]
    begin = next(number for number, line in enumerate(run.lines) if line.get("section") == name)
    return list(itertools.takewhile(lambda line: "section" not in line, run.lines[begin + 1 :]))


def answer_differences(plain: Run, durable: Run, name: str | None = None, *, texts: bool = True) -> list[str]:
    """Calls of a section that were not the same, or that were told something else; `texts` of refusals too."""
    found = []
    theirs, ours = section(plain, name), section(durable, name)
    for number, (one, other) in enumerate(zip(theirs, ours, strict=False)):
        if one["name"] != other["name"]:
            found.append(f"call {number}: {_shown(one)} of the plain run is {_shown(other)} of the durable run")
            break
        if one["name"] in plain.shape.unanswered or "free" in (one.get("answer"), other.get("answer")):
            continue
        for path, left, right in _pairs("", _outcome(plain, one, texts), _outcome(durable, other, texts)):
            if not _same(left, right):
                found.append(f"call {number} {one['name']}{path}: plain {left!r}, durable {right!r}")
    if len(theirs) != len(ours):
        found.append(f"the plain run made {len(theirs)} calls, the durable one {len(ours)}")
    return found


def _shown(line: dict[str, Any]) -> str:
    return f"{line['name']} -> {str(line.get('answer', line.get('why')))[:200]}"


def _outcome(run: Run, line: dict[str, Any], texts: bool) -> Any:
    if "raised" in line:
        return f"raised {line['raised']}: {line['why'] if texts else ''}"
    ids = {**run.shape.tells, **run.shape.repeats}
    return _without_ids(run, line["answer"], line["name"], ids)


def _without_ids(run: Run, value: Any, path: str, ids: Mapping[str, str]) -> Any:
    if path in ids:
        return run.told(ids[path], value)
    if isinstance(value, dict):
        if value.keys() == {"time"}:
            return run.time(datetime.fromisoformat(value["time"]))
        return {name: _without_ids(run, inner, f"{path}.{name}", ids) for name, inner in value.items()}
    if isinstance(value, list):
        return [_without_ids(run, inner, path, ids) for inner in value]
    return value


def _pairs(path: str, left: Any, right: Any) -> Iterator[tuple[str, Any, Any]]:
    """The leaves of two answers side by side."""
    if isinstance(left, dict) and isinstance(right, dict) and left.keys() == right.keys():
        for name in left:
            yield from _pairs(f"{path}[{name!r}]", left[name], right[name])
    elif isinstance(left, list) and isinstance(right, list) and len(left) == len(right):
        for number, (one, other) in enumerate(zip(left, right, strict=True)):
            yield from _pairs(f"{path}[{number}]", one, other)
    else:
        yield path, left, right


def _same(left: Any, right: Any) -> bool:
    if isinstance(left, Time) and isinstance(right, Time):
        return left.matches(right)
    return bool(left == right)


def table_differences(plain: Run, durable: Run) -> list[str]:
    """Rows that only one run has, and times that are not those of the same call."""
    found = []
    for table in plain.shape.metadata.sorted_tables:
        ours, theirs = _grouped(durable, table), _grouped(plain, table)
        missing, extra = [], []
        for key in sorted(ours.keys() | theirs.keys(), key=repr):
            wanted, got = theirs.get(key, []), ours.get(key, [])
            missing += [key] * (len(wanted) - len(got))
            extra += [key] * (len(got) - len(wanted))
            for one, other in zip(wanted, got, strict=False):
                found += [
                    f"{table.fullname}.{name}: plain {one[name]!r}, durable {other[name]!r}; row {', '.join(key)[:200]}"
                    for name in one
                    if not _same(one[name], other[name])
                ]
        found += _unpaired(table.fullname, missing, extra)
    return found


def _unpaired(table: str, missing: list[tuple[str, ...]], extra: list[tuple[str, ...]]) -> Iterator[str]:
    """Rows of one run only, each beside the row of the other run that is nearest to it."""
    for row in missing:
        near = max(extra, key=lambda other: sum(map(str.__eq__, row, other)), default=None)
        if near is not None and sum(map(str.__eq__, row, near)) > len(row) / 2:
            extra.remove(near)
            differing = [f"{one} is {other}" for one, other in zip(row, near, strict=True) if one != other]
            yield f"{table}: plain row {', '.join(row)[:150]} differs in the durable run: {', '.join(differing)}"
        else:
            yield f"{table}: missing in the durable run: {', '.join(row)[:400]}"
    for row in extra:
        yield f"{table}: only in the durable run: {', '.join(row)[:400]}"


def _grouped(run: Run, table: Table) -> dict[tuple[str, ...], list[dict[str, Any]]]:
    """Rows by everything but their times; rows that are equal but for those in the order of their times."""
    groups: dict[tuple[str, ...], list[dict[str, Any]]] = defaultdict(list)
    for row in run.tables[table.fullname]:
        fixed, times = _split(run, table, row)
        groups[tuple(fixed)].append(times)
    for rows in groups.values():
        rows.sort(key=lambda times: [str(one.value) if isinstance(one, Time) else "" for one in times.values()])
    return groups


def _split(run: Run, table: Table, row: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    fixed: list[str] = []
    times: dict[str, Any] = {}
    for column in table.columns:
        name, value = column.name, row[column.name]
        path = f"{table.fullname}.{name}"
        if path in run.shape.per_run:
            continue
        target = _target(run.shape, table, column)
        clock = run.shape.clocks.get(path)
        if target is not None:
            fixed.append(f"{name}={run.told(target, value)}")
        elif isinstance(column.type, DateTime):
            times[name] = None if value is None else run.time(value, clock)
        elif isinstance(value, date):
            # Midnight may lie between the runs, so a day stands for all its calls.
            times[name] = run.time(datetime.combine(value, time()).astimezone(), DAY)
        elif clock is not None and clock.unit is not None:
            times[name] = run.time(EPOCH + value * clock.unit, clock)
        elif isinstance(value, str) and (stamp := STAMP.search(value)):
            times[name] = run.time(datetime.strptime(stamp.group(), "%Y%m%d_%H%M%S_%f"))  # noqa: DTZ007
            fixed.append(f"{name}={STAMP.sub('*', value)}")
        else:
            fixed.append(f"{name}={spelled(value)}")
    return fixed, times


def _target(shape: Shape, table: Table, column: Any) -> str | None:
    """The table whose id this column holds, or None."""
    declared = shape.references.get(f"{table.fullname}.{column.name}")
    if declared is not None:
        return declared
    for key in column.foreign_keys:
        return str(key.column.table.fullname)
    return table.fullname if column.primary_key and len(table.primary_key) == 1 else None


def told(differences: list[str], most: int = 12) -> str:
    """The first differences, for the message of an assertion."""
    return "\n".join([f"{len(differences)} differences", *differences[:most]])
