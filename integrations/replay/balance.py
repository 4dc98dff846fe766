"""The values that a balance block yields: from the manager in a rolled-back transaction, or as learned from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Any, NoReturn
from uuid import UUID

from sqlalchemy import Connection, event

from ..code.signatures import invoke
from ..manager.away import own_statements, unswallowed
from ..manager.manager_connection import driver_connection, engine_of
from ..manager.session_state import WAIT_BRIEFLY
from ..plain_data import PLAIN
from ..view.amounts import SCALES, bare, is_number, number, number_or_none, rounded
from ..view.containers import SIMPLE, put_together, taken_apart
from ..view.explanations import Space, Unknown, evaluate
from ..view.learned import Learning
from ..view.learning import observe
from ..view.local_view import UnknownLocally
from ..view.reads import MISSING
from ..view.seen import Seen
from .asof import AsOf
from .replay_session import Watch, adapt_statements, work_on
from .sessions import everywhere

_FLOAT_SUM = "note:float:new_balance"
# Sums that differ by less than this share are taken for one, where the manager cannot be asked which it yields.
_NOISE = 1e-9
# What may be stored with a call.
_KEPT = (*SIMPLE, Enum, date, UUID)
_HINT = "do not read it in an outage: if this error leaves the block, nothing of the block is recorded"


class Untold:
    """An answer of which not all is known, such as what a block yields: using the rest raises `UnknownLocally`.

    It can be shown in a log, is true, and is not None: the call is recorded.
    """

    def __init__(self, why: str, known: Mapping[str, Any], *, of: str = "the block", hint: str = _HINT) -> None:
        self._why, self._known, self._of, self._hint = why, dict(known), of, hint

    def __getitem__(self, name: Any) -> Any:
        # The items of a tuple are known by their numbers.
        key = str(name) if type(name) is int else name
        if key not in self._known:
            raise self.unknown(f"{name!r} of ")
        return self._known[key]

    def unknown(self, part: str = "") -> UnknownLocally:
        """What to raise where it is used, or a `part` of it."""
        return UnknownLocally(f"{part}{self._of} is not known without PostgreSQL: {self._why}", hint=self._hint)

    def knows(self, value: Any) -> bool:
        """Whether a value is among its known parts."""
        return value in self._known.values()

    def __repr__(self) -> str:
        return f"<{self._of}, not known without PostgreSQL>"

    def __eq__(self, other: object) -> bool:
        if other is None or isinstance(other, Untold):
            return self is other
        raise self.unknown()

    __hash__ = object.__hash__

    def get(self, name: Any, _: Any = None) -> Any:
        """As of a dict, but that a default takes no unknown value's place."""
        return self[name]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return self[name]


def _used(untold: Untold, *_: Any) -> NoReturn:
    raise untold.unknown()


# As a number.
for _name in ("int", "index", "float", "lt", "le", "gt", "ge", "add", "radd", "sub", "rsub", "mul", "rmul", "truediv",
              "rtruediv", "mod", "neg", "abs", "round"):  # fmt: skip
    setattr(Untold, f"__{_name}__", _used)


def refuse_untold(value: Any, *, deepest: int = 8) -> None:
    """Raise `UnknownLocally` for an answer that is not known, also in containers, of which one may be in itself."""
    if isinstance(value, Untold):
        raise value.unknown()
    if deepest and isinstance(value, dict | list | tuple):
        for one in value.values() if isinstance(value, dict) else value:
            if type(one) not in PLAIN:
                refuse_untold(one, deepest=deepest - 1)


def learn_yield(learning: Learning, seen: Seen, told: Any, old: Decimal | None) -> None:
    """Learn from what a block of the manager yielded, at an old balance that is known or not."""
    effect = learning.effects.get(seen.kind)
    if effect is not None and effect.balance.is_of_another(seen.words):
        return
    shape, values = taken_apart(told)
    known = learning.yields.get(seen.operation.name)
    if known is None or known["shape"] != shape:
        learning.version += 1
        known = learning.yields[seen.operation.name] = {"shape": shape, "keys": {}, "values": []}
    once = str((sorted(seen.call.items()), old, values))
    if known.get("last") == once:
        # The manager was asked before the call was made.
        return
    known["last"] = once
    seen_with = set(known.get("values", ()))
    if not seen_with.issuperset(seen.outcomes):
        learning.version += 1
        known["values"] = sorted(seen_with.union(seen.outcomes))
    for key, value in values.items():
        space = known["keys"].setdefault(key, Space())
        if old is None and is_number(value):
            # It may be a balance, which would be taken for a constant.
            continue
        sources = sources_of(seen, old, exactly=not isinstance(value, float))
        scales = scales_known(learning)
        if learning.roundings.rounds(seen.operation.name):
            scales = tuple(dict.fromkeys((*scales, *SCALES)))
        observe(space, key, value, sources, scales=scales)


def tell(learning: Learning, seen: Seen, old: Decimal | None, why: str = "", *, asked: bool = True) -> Any:
    """What the manager's block would yield for this call; `why`: the reason why the old balance is None.

    `asked`: the manager can be asked instead, where it was not seen yet how exactly it adds.
    """
    name = seen.operation.name
    known = learning.yields.get(name)
    if known is None:
        return Untold(f"{name} was never seen while PostgreSQL was up", {})
    new = [one for one in seen.outcomes if one not in known.get("values", seen.outcomes)]
    only_texts = not any(seen.outcomes[one].changes_amounts for one in new)
    values: dict[str, Any] = {}
    sources = sources_of(seen, old, exactly=False)
    for key, space in known["keys"].items():
        value = MISSING
        try:
            value = space.predict(sources)
        except Unknown as exc:
            total = None if asked else _total(space, sources)
            if total is None:
                why = why or f"{name}: {exc}"
            else:
                value = total
        if new and value is not MISSING and not (only_texts and is_number(value)):
            value, why = MISSING, why or f"{name} was never seen with {', '.join(new)}"
        if value is not MISSING:
            values[key] = value
    made = put_together(known["shape"], values) if len(values) == len(known["keys"]) else None
    return Untold(why or f"{name} yields a {known['shape'][-1]}", values) if made is None else made[0]


def _total(space: Space, sources: Mapping[str, Any]) -> float | None:
    """The sum of balance and change in floats, where other sums explain the answers as well and hardly differ."""
    names = {one[1] if one[0] == "of" else "" for one in space.candidates}
    if not names <= {name for name in sources if name.endswith(":new_balance")} or _FLOAT_SUM not in names:
        return None
    total: float = sources[_FLOAT_SUM]
    values = [evaluate(one, sources) for one in space.candidates]
    noise = _NOISE * max(1.0, abs(total))
    return total if all(isinstance(one, float) and abs(one - total) <= noise for one in values) else None


def kept(told: Any) -> list[Any] | None:
    """What a block yielded, to be stored with its call; None where that is impossible."""
    if isinstance(told, Untold):
        return None
    shape, values = taken_apart(told)
    simple = all(value is None or isinstance(value, _KEPT) for value in values.values())
    return [shape, values] if simple else None


def told_before(notes: Mapping[str, Any]) -> Any:
    """What the first call with the same identity was told."""
    found = notes.get("yielded")
    made = None if found is None else put_together(found[0], dict(found[1]))
    return Untold("what the first call of this identity was told is not known", {}) if made is None else made[0]


def scales_known(learning: Learning) -> tuple[int | None, ...]:
    """The decimal places with which amounts may be shown."""
    found = learning.possible_scales | learning.scales
    return (None, *sorted(scale for scale in (found or SCALES) if scale is not None))


def sources_of(seen: Seen, old: Decimal | None, *, exactly: bool, rows: bool = False) -> dict[str, Any]:
    """What an answer may be explained by, at an old balance that is known or not; `rows`: also by the row it names."""
    found = {name: value for name, value in seen.sources().items() if rows or not name.startswith("row:")}
    change = number_or_none(seen.amount)
    if old is None or change is None:
        return found
    # With how many decimal places the balance is known is no matter of the manager's.
    old = bare(old)
    total = float(old) + float(change)
    floats = {} if exactly else {"old_balance": float(old), "new_balance": total, "change": total - float(old)}
    shown = {str(scale): rounded(old, scale) for scale in SCALES if scale is not None}
    # A balance with more decimal places is of no column of that scale.
    shown = {name: value if value == old else old for name, value in shown.items()}
    # As the text of the float by which the balance is read.
    shown["text"] = number(float(old))
    return {
        **{f"note:float:{name}": value for name, value in floats.items()},
        **{f"note:{scale}:new_balance": value + change for scale, value in shown.items()},
        **{f"note:{scale}:change": value + change - value for scale, value in shown.items()},
        "note:text:old_balance": shown["text"],
        "note:old_balance": old,
        "note:new_balance": old + change,
        "note:difference:change": old + change - old,
        "note:change": seen.amount,
        **found,
    }


class _Told(BaseException):
    """Ends the manager's block without effect; not an Exception, since managers catch those."""


class RolledBack:
    """A transaction of which nothing stays."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._as_of: AsOf | None = None
        self._everywhere = ExitStack()
        adapt_statements(connection, lambda: self._as_of)

    def sets(self, replica: Any, as_of: AsOf | None = None) -> Any:
        """Let a copy of the manager work in it."""
        self._as_of = as_of
        if as_of is not None:
            as_of.follow(self._connection)
        work_on(self._connection, replica, Watch(as_of))
        self.ends()
        self._everywhere.enter_context(everywhere(replica.session_factory))
        return replica

    def ends(self) -> None:
        """No copy works in it any more."""
        self._everywhere.close()

    def before_each(self, look: Callable[[Any, str], None]) -> None:
        """From now on call `look(driver's connection, statement)` before each statement; it may raise."""

        def see(_: Any, cursor: Any, statement: str, *__: Any) -> None:
            look(cursor.connection, statement)

        event.listen(self._connection, "before_cursor_execute", see)


@contextmanager
def rolled_back(manager: Any) -> Iterator[RolledBack]:
    """A transaction of which nothing stays, for copies of `manager`.

    It waits for no lock longer than two seconds, unless the manager sets another limit.  Raises PostgreSQL's error,
    also where the manager has swallowed it, and `ConfigError` where the manager's connections have no transactions.
    """
    with own_statements(), unswallowed(), engine_of(manager).connect() as connection:
        transaction = connection.begin()
        driver_connection(connection.connection.dbapi_connection)
        connection.exec_driver_sql(WAIT_BRIEFLY)
        made = RolledBack(connection)
        try:
            yield made
        finally:
            made.ends()
            transaction.rollback()


def dry_run(manager: Any, replica: Any, method: str, call: dict[str, Any], as_of: AsOf) -> Any:
    """What `method` of `replica`, a copy of `manager`, yields now; nothing of it stays.

    Raises what the manager raises: a balance that would fall below zero, a position that is closed already.
    """
    told = None
    with rolled_back(manager) as transaction:
        try:
            with invoke(getattr(transaction.sets(replica, as_of), method), call) as told:
                raise _Told
        except _Told:
            return told
    return told
