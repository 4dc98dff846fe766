"""Told answers: what callers are told, by the manager's own answer or as it was seen to answer.

A caller who waits for the delivery gets what the manager answered to the replay (`Answers`).  Without a delivery a
method answers as it was seen to answer: a balance, an id in a tuple, a row.  Only for operations whose declaration
leaves `returns` out.  An answer that is not all known is not made by guess.
"""

from __future__ import annotations

import threading
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ... import Entry
from ...store.envelope import Record
from ..roles import Position
from ..view.amounts import is_number
from ..view.containers import is_made_again, put_together, taken_apart
from ..view.explanations import ABSENT, Space, Unknown, alike
from ..view.learned import Learning
from ..view.learning import observe
from ..view.local_view import LocalView
from ..view.rows import ORDERS, POSITIONS, Row
from ..view.seen import Seen
from .balance import Untold, scales_known, sources_of

if TYPE_CHECKING:
    from ..operations import ManagerOperation

_ANSWERS_KEPT = 256


@dataclass(frozen=True, slots=True)
class Answer:
    """What the manager answered to one replay: a value, or what it raised."""

    value: Any = None
    error: BaseException | None = None
    # Whether the value means that nothing was applied.
    refusal: bool = False
    # The arguments as the method has left them, but those that cannot change.
    call: Mapping[str, Any] = field(default_factory=dict)

    def give(self) -> Any:
        """Return or raise it, as the manager did."""
        if self.error is not None:
            raise self.error
        return self.value


class Answers:
    """The last answers by sequence number, for callers who wait for the real result.  Thread-safe."""

    def __init__(self) -> None:
        # Reentrant, since a signal handler may come while it is held.
        self._lock = threading.RLock()
        self._kept: OrderedDict[int, Answer] = OrderedDict()
        # Calls whose callers wait no longer, and have the local result.
        self._left: deque[int] = deque(maxlen=_ANSWERS_KEPT)
        # Ids of entries whose callers are going to wait.
        self._awaited: deque[bytes] = deque(maxlen=_ANSWERS_KEPT)

    def expect(self, records: Iterable[Record]) -> None:
        """Note that the callers of these are going to wait, before the relay can come to them."""
        with self._lock:
            self._awaited.extend(record.id for record in records)

    def forget(self, ids: Iterable[bytes]) -> None:
        """Undo `expect`: the callers of these entries wait no longer."""
        with self._lock:
            for id_ in ids:
                with suppress(ValueError):  # many came since, and it was left out
                    self._awaited.remove(id_)

    def claims(self, record: Record) -> bool:
        """Whether the caller waits for what becomes of the call, or was told of its refusal."""
        with self._lock:
            return record.id in self._awaited and (record.group or record.seq) not in self._left

    def is_awaited(self, entry: Entry) -> bool:
        """Whether the caller waits for what becomes of the call."""
        with self._lock:
            return entry.id.bytes in self._awaited and entry.seq not in self._left

    def keep(self, seq: int, answer: Answer) -> None:
        """Replace what is known of `seq`."""
        with self._lock:
            self._kept[seq] = answer
            self._kept.move_to_end(seq)
            while len(self._kept) > _ANSWERS_KEPT:
                self._kept.popitem(last=False)

    def take(self, seq: int) -> Answer | None:
        """What is known of `seq`, once."""
        with self._lock:
            return self._kept.pop(seq, None)

    def leave(self, seq: int) -> Answer | None:
        """Note that the caller waits no longer; what is known of `seq`, though PostgreSQL has not committed it."""
        with self._lock:
            self._left.append(seq)
            return self._kept.pop(seq, None)

    def is_left(self, seq: int) -> bool:
        """Whether the caller has stopped waiting."""
        with self._lock:
            return seq in self._left


# Containers of one value.
_PLAIN = ("none", "value")
_VALUE = ["value"]
# Types of single values beside those of texts and numbers.
_VALUES = (UUID, Enum, date)
# So many answers are learned from; a constant must have been seen so often.
_AT_MOST, _CONSTANT = 60, 3
_HINT = "the call is recorded: let the engine do without its answer in an outage, or declare returns="


def wants(learning: Learning, operation: ManagerOperation) -> bool:
    """Whether another answer of such calls is to be learned from."""
    known = _known(learning, operation)
    return operation.as_seen and (known is None or known["count"] < _AT_MOST)


def applied_answer(learning: Learning, operation: ManagerOperation, told: Any) -> Any:
    """The answer that the code shows to be the only one to an applied call, unless another was seen; else `told`."""
    one = learning.present.applied.get(operation.name)
    known = _known(learning, operation)
    if one is None or (known is not None and type(one[0]).__name__ not in known.get("types", ())):
        return told
    return one[0]


def is_told_already(learning: Learning, operation: ManagerOperation, told: Any) -> bool:
    """Whether such calls answer what is told without a look at them: the new id, or nothing."""
    known = _known(learning, operation)
    if known is None or (known["varies"] and known["shape"][0] in _PLAIN):
        return _may_be_told(learning, operation, known, told)
    space = known["keys"].get("")
    if space is None:
        return told is None and known["shape"] == ["none"]
    if space.strikes or not space.candidates:
        return _may_be_told(learning, operation, known, told)
    return _may_be_told(learning, operation, known, told) and all(
        one[:2] == ["of", "note:id"] for one in space.candidates
    )


def learn(view: LocalView, seen: Seen, answer: Any, old: Decimal | None) -> None:
    """Take in what a method answered to a call that was applied, at an old balance that is known or not."""
    with view.lock:
        if wants(view.learning, seen.operation):
            _learn(view.learning, seen, answer, old)


def _learn(learning: Learning, seen: Seen, answer: Any, old: Decimal | None) -> None:
    container, values = _apart(answer)
    learning.version += 1
    known = _known(learning, seen.operation)
    if known is None:
        varies = container[0] == "list" or not (container == _VALUE or is_made_again(container, values, answer))
        known = {"shape": container, "keys": {}, "values": [], "given": [], "count": 0, "varies": varies}
        learning.yields[seen.operation.name] = known
    elif known["shape"] != container or list(known["keys"]) != list(values):
        known["varies"] = True
    _learn_numbering(known, seen, answer)
    if container[0] == "value":
        known["types"] = sorted({type(answer).__name__, *known.get("types", ())})
    if known["varies"]:
        known["count"] += 1
        return
    given = set(known["given"])
    new = {f"arg:{one[:-1]}" for one in seen.given - given if one.endswith("+")} if known["count"] else set()
    known["count"] += 1
    known["given"], known["values"] = sorted(given | seen.given), sorted({*known["values"], *seen.outcomes})
    row = _row(seen)
    for name, value in values.items():
        space = known["keys"].setdefault(name, Space())
        if old is None and seen.operation.balance is not None and is_number(value):
            # It may be a balance, which would be taken for a constant.
            continue
        sources = _sources(seen, old, exactly=not isinstance(value, float))
        scales = scales_known(learning)
        observe(space, _key(name, value), value, sources, row.get(name, ABSENT), scales=scales, new=new)
        if space.agreed == 1 and _may_be_a_count(name, value, space):
            space.candidates.append(["const", value])


def _learn_numbering(known: dict[str, Any], seen: Seen, answer: Any) -> None:
    """Keep whether the method ever answered with the id that was given to its new row."""
    id_, operation = seen.notes.get("id"), seen.operation
    # Later calls with the told id of a position go to the row that the manager took: `SameRow`.
    is_mapped = operation.creates is None or operation.position is Position.OPENS
    shown = None if is_mapped or id_ is None else id_in(answer, id_, operation.id_column.column)
    if shown is not None and not isinstance(shown, bool):
        known["numbered"] = known.get("numbered", known["count"] > 0) or shown == id_


def is_numbered_elsewhere(known: Mapping[str, Any] | None) -> bool:
    """Whether a method's new rows were seen to get other ids than those reserved, as from a function in SQL."""
    return known is not None and known.get("numbered") is False


def tell(view: LocalView, seen: Seen, old: Decimal | None, otherwise: Any) -> Any:
    """What the method would answer to this call, which the view does not show yet.

    `otherwise`: the answer of a method that was never seen, or of which one value is not known.
    """
    name, known = seen.operation.name, _known(view.learning, seen.operation)
    if known is None:
        if _may_be_told(view.learning, seen.operation, known, otherwise):
            return otherwise
        return Untold("it was never seen", {}, of=f"the answer of {name}", hint=_HINT)
    values, doubts = dict[str, Any](), [*_doubts(known, seen)]
    sources, row = _sources(seen, old, exactly=False), dict(_row(seen))
    for column in _doubted(view, seen):
        row.pop(column, None)
        sources = {one: value for one, value in sources.items() if not _is_of_row(one, column)}
    for key, space in ({} if doubts else known["keys"]).items():
        try:
            values[key] = deepcopy(_predicted(space, sources, row.get(key, ABSENT)))
        except Unknown as exc:
            doubts.append(f"{key}: {exc}" if key else str(exc))
    made = None
    try:
        made = None if doubts else put_together(known["shape"], values)
    except Exception as exc:  # noqa: BLE001 - a class of the manager's must not keep its call from being recorded
        doubts.append(f"it cannot be made again: {exc}")
    if made is not None:
        return made[0]
    if known["shape"][0] in _PLAIN and _may_be_told(view.learning, seen.operation, known, otherwise):
        return otherwise
    why = doubts[0] if doubts else f"the class {known['shape'][-1]} is not loaded"
    if is_numbered_elsewhere(known):
        why = "PostgreSQL numbers its rows itself"
    return Untold(why, values, of=f"the answer of {name}", hint=_HINT)


def id_in(answer: Any, told: Any, column: str) -> Any:
    """The id that an answer shows, where the caller of an outage was told `told`; None where it shows none."""
    if type(answer) is type(told) or isinstance(answer, UUID):
        return answer
    try:
        return _id_shown(answer, told, column)
    except Exception:  # noqa: BLE001 - an object of the manager's that cannot be looked at must not fail its delivery
        return None


def _id_shown(answer: Any, told: Any, column: str) -> Any:
    container, values = taken_apart(answer)
    if container[0] in _PLAIN:
        # No id at all, such as a balance.
        return None
    for name in (column, "id"):
        if name in values:
            return values[name]
    if told in values.values():
        return told
    first = values.get("0")
    return first if type(first) is type(told) else None


def _known(learning: Learning, operation: ManagerOperation) -> dict[str, Any] | None:
    found = learning.yields.get(operation.name)
    # Without a count it was learned of a balance block, as which the method was declared before.
    return found if found is not None and "count" in found else None


def _may_be_told(learning: Learning, operation: ManagerOperation, known: Mapping[str, Any] | None, told: Any) -> bool:
    """Whether an answer that is not explained may be the new id, or None where there is none."""
    one = learning.present.applied.get(operation.name)
    if operation.creates is None or told is None or (one is not None and alike(told, one[0])):
        return True
    if is_numbered_elsewhere(known):
        return False
    if known is not None:
        types = known.get("types")
        return types is None or type(told).__name__ in types
    plain = learning.present.answers.get(operation.name)
    # Nothing is known where the manager was never built.
    return plain is None or plain.fits(told)


def _apart(answer: Any) -> tuple[list[str], dict[str, Any]]:
    return (_VALUE, {"": answer}) if isinstance(answer, _VALUES) else taken_apart(answer)


def _sources(seen: Seen, old: Decimal | None, *, exactly: bool) -> dict[str, Any]:
    found = sources_of(seen, old, exactly=exactly, rows=True)
    # An id equals the session's by chance.
    return {name: value for name, value in found.items() if name != "note:session"}


def _key(name: str, value: Any) -> str:
    """The name of a value, for its explanation; of one without a name whether it may be an id."""
    if name and not name.isdecimal():
        return name
    return "id" if type(value) in (int, UUID) else "value"


def _may_be_a_count(name: str, value: Any, space: Space) -> bool:
    """Whether a number without a name is an id by chance: a new database has an id 1, and most counts of rows are 1.

    Where the declaration says that the method answers with an id, it is one.
    """
    is_named = bool(name) and not name.isdecimal()
    if is_named or type(value) is not int or not space.candidates:
        return False
    return all(one[0] != "const" and one[:2] != ["of", "note:id"] for one in space.candidates)


def _doubts(known: Mapping[str, Any], seen: Seen) -> Iterator[str]:
    if known["varies"]:
        yield "it was seen to answer in several ways"
    new = sorted(one.replace("-", " as None").removesuffix("+") for one in seen.given - set(known["given"]))
    yield from ([f"it was never seen with {', '.join(new)}"] if new else [])
    outcomes = [one for one in seen.outcomes if one not in known["values"]]
    yield from ([f"it was never seen with {', '.join(outcomes)}"] if outcomes else [])


def _predicted(space: Space, sources: Mapping[str, Any], old: Any) -> Any:
    constants = [one[1] for one in space.candidates if one[0] == "const"]
    if any(is_number(one) and not isinstance(one, bool) for one in constants):
        raise Unknown("it may be counted")
    if space.strikes:
        raise Unknown("it was seen otherwise")
    if constants and len(constants) == len(space.candidates) and space.agreed < _CONSTANT:
        raise Unknown("it was seen too seldom")
    further = [one for one in space.candidates if one[0] == "of" and one[1].startswith("note:side:")]
    if further and len(further) == len(space.candidates) and space.agreed < _CONSTANT:
        raise Unknown("it may be a count")
    return space.predict(sources, old)


def _named(seen: Seen) -> tuple[str, Any] | None:
    """The table and the id of the row that a call names."""
    return next(((table, id_) for table in (POSITIONS, ORDERS) for id_ in seen.named(table)[:1]), None)


def _row(seen: Seen) -> Row:
    named = _named(seen)
    return {} if named is None else seen.tables[named[0]][named[1]]


def _doubted(view: LocalView, seen: Seen) -> Iterator[str]:
    """The columns of the row that a call names of which the view is not sure."""
    named, session = _named(seen), view.sessions.get(seen.notes.get("session"))  # type: ignore[arg-type]
    if named is not None and session is not None:
        for table, id_, column in session["doubts"]:
            if table == named[0] and id_ in (None, named[1]):
                yield from _row(seen) if column == "*" else (column,)


def _is_of_row(source: str, column: str) -> bool:
    return source.startswith("row:") and source.split(":", 2)[2] == column
