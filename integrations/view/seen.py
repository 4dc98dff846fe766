"""Seen: one call beside the rows of its session, and the kind of calls to which it belongs.

And which calls of one kind changed the balance as declared (`AsDeclared`).  A manager may keep several balances and
show one of them: a payment in another currency then leaves that one alone.  The declaration cannot say so, but the
words of the calls can: those that never went with a declared change are remembered.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from enum import Enum
from functools import cached_property, lru_cache
from itertools import product
from typing import TYPE_CHECKING, Any
from uuid import UUID

from ...records import fields_of, has_fields
from ..plain_data import PLAIN
from ..roles import Order, Position
from .amounts import is_number, number, places
from .explanations import text_of
from .learning import DECISIVE, is_id
from .rows import KEY, ORDERS, POSITIONS, Row, Tables, named_orders, named_positions

if TYPE_CHECKING:
    from ..operations import ManagerOperation
    from .decisions import Decision
    from .row_forms import RowForms

# An argument with more values than these is no choice among a few.
_VALUES = 8
# How many calls in a row have to agree after one that differs from them in no word.
_TRUSTED_AGAIN = 3
_NEVER = 1 << 30
# Behind the name of an argument that is an amount: whether it is not 0.
IS_ANY = " != 0"

Words = Mapping[str, str | int]


@dataclass(slots=True)
class AsDeclared:
    """What was seen of one kind of call.  `words`: the texts and whole numbers that a call gave, by argument."""

    # Whether any call did what is declared; None before one was seen.
    seen: bool | None = None
    # argument -> its values in calls that did as declared, and its values in none but such as did not.
    fitting: dict[str, list[str | int]] = field(default_factory=dict)
    strange: dict[str, list[str | int]] = field(default_factory=dict)
    # How many calls have to agree before such calls are trusted again.
    doubted: int = 0

    def of(self, words: Words) -> bool | None:
        """Whether a call with these words does as declared; None where that is not known yet."""
        marked = [name for name in words if self.strange.get(name)]
        if self.doubted or any(words[name] in self.strange[name] for name in marked):
            return False
        few = [name for name in marked if self._few(name)]
        if few and not any(words[name] in self.fitting.get(name, ()) for name in few):
            return False
        unseen = any(
            name.endswith(IS_ANY) and self._knows(name) and not self._known(name, words[name]) for name in words
        )
        return None if unseen else self.seen

    def is_of_another(self, words: Words) -> bool:
        """Whether a call with these words changes another balance, or may, since it was not seen yet."""
        return self.seen is not None and (self.of(words) is False or self.is_new(words))

    @property
    def is_strange(self) -> bool:
        """Whether some such calls are not trusted to do as declared."""
        return self.seen is False or self.doubted > 0 or any(self.strange.values())

    def is_new(self, words: Words) -> bool:
        """Whether an argument with few values has one that was never seen."""
        return any(self._few(name) and not self._known(name, value) for name, value in words.items())

    def observe(self, words: Words, *, fits: bool, lasting: bool = False) -> None:
        """Take in what one call did.  `lasting`: a call that did not fit is never forgotten."""
        if fits:
            self.seen, self.doubted = True, max(0, self.doubted - 1) if self.doubted < _NEVER else _NEVER
            explained = any(self.strange.values())
            for name, value in words.items():
                if value in self.strange.get(name, ()):
                    self.strange[name].remove(value)
                if self._few(name) and value not in self.fitting.get(name, ()):
                    self.fitting.setdefault(name, []).append(value)
            if explained and not any(self.strange.values()):
                # No word is left by which those that differed can be told: a fee that is rounded away.
                self.doubted = max(self.doubted, _TRUSTED_AGAIN)
            return
        self.seen = bool(self.seen)
        telling = {name: value for name, value in words.items() if self._few(name) or self._known(name, value)}
        telling = {name: value for name, value in telling.items() if value not in self.fitting.get(name, ())}
        for name, value in telling.items():
            if value not in self.strange.setdefault(name, []):
                self.strange[name].append(value)
        if lasting or not telling:
            self.doubted = _NEVER if lasting else _TRUSTED_AGAIN

    def _few(self, name: str) -> bool:
        return len(self.fitting.get(name, ())) + len(self.strange.get(name, ())) < _VALUES

    def _knows(self, name: str) -> bool:
        return bool(self.fitting.get(name) or self.strange.get(name))

    def _known(self, name: str, value: str | int) -> bool:
        return value in self.fitting.get(name, ()) or value in self.strange.get(name, ())

    def dump(self) -> list[Any]:
        """Its state, to be stored."""
        return [self.seen, self.fitting, self.strange, self.doubted]

    @classmethod
    def load(cls, state: Any) -> AsDeclared:
        """The inverse of `dump`; of an earlier version there is `seen` alone."""
        return cls(*state) if isinstance(state, list) else cls(state)


# So deep parts of an argument are looked at.
_DEEPEST = 3
# The longest text that may be one of a few: the name of an account, a currency.
_WORD = 40
_AMOUNTS = (int, float, Decimal)
# Parts of the names of quantities, and of amounts that are none.
NOT = "not "
_QUANTITIES = ("size", "quantity", "qty", "amount", "volume", "units", "lots", "contracts", "shares")
_FILLED = ("fill", "exec")
# Words for the part of a quantity that is not filled yet.
_LEFT = frozenset({"left", "remaining", "remainder", "leaves", "unfilled", "outstanding", "residual"})
_PRICES = ("price", "value", "cost", "fee", "pnl", "percent", "pct")


@dataclass
class Seen:
    """One call beside the rows of its session, as its effect is learned or predicted.

    What it says of them is worked out once: it is made anew for each look at rows that change.
    """

    operation: ManagerOperation
    # Arguments by standard name, notes of the adapter, rows of the session before the call.
    call: Mapping[str, Any]
    notes: Mapping[str, Any]
    tables: Tables
    # Amounts that the replay wrote, as they were before columns rounded them.
    written: Collection[Decimal] = ()
    # How the manager shows rows; None where each has an `id`.
    forms: RowForms | None = None
    # Comparisons by which the manager's method decides.
    decisions: Collection[Decision] = ()
    # Whether code may round what it makes of rows.
    rounds: bool = False
    # table -> the ids of its rows that the call names, once asked for.
    _named: dict[str, list[Any]] = field(default_factory=dict, init=False)

    @property
    def touches_rows(self) -> bool:
        """Whether its declaration gives it a part in positions or orders."""
        return self.operation.position is not None or self.operation.order is not None

    @property
    def amount(self) -> Any:
        """By how much, or to what, the call changes the balance."""
        return self.operation.amount_in(self.call)

    def named(self, table: str) -> list[Any]:
        """The ids of the rows of a table that the call names."""
        found = self._named.get(table)
        if found is None:
            found = self._named[table] = self._find_named(table)
        return found

    def _find_named(self, table: str) -> list[Any]:
        rows = self.tables.get(table, {})
        if not rows:
            return []
        if table == POSITIONS:
            return self._positions() if self.operation.position is not None else []
        return named_orders(self.tables, table, self.call, self.key(table), self._names("client_order_id"))

    def _positions(self) -> list[Any]:
        return named_positions(self.tables.get(POSITIONS, {}), self.operation, self.call)

    def key(self, table: str) -> str:
        """The column by which rows of a table are told apart."""
        return "id" if self.forms is None else self.forms.key(table)

    def _names(self, standard: str) -> Collection[str]:
        return (standard,) if self.forms is None else self.forms.names(standard)

    def standard_names(self, table: str, columns: Iterable[str]) -> dict[str, str]:
        """The standard names of columns of a table, as far as declarations give them one."""
        key, args = self.key(table), self.operation.args
        found = {column: args.get(column, column) for column in columns}
        name = found.get(key)
        is_key_of_callers = name is not None and (name in self._names("client_order_id") or is_id(name))
        if key in found and (key == KEY or not is_key_of_callers):
            found[key] = "id"
        return found

    def opens(self, table: str) -> bool:
        """Whether the id that the call returns is that of a new row of this table."""
        if table == POSITIONS:
            return self.operation.position is Position.OPENS
        return self.operation.order is Order.OPENS

    @property
    def opens_both(self) -> bool:
        """Whether it opens a position and an order, of which either may have the id that it returns."""
        return self.operation.position is Position.OPENS and self.operation.order is Order.OPENS

    @cached_property
    def kind(self) -> str:
        """The name under which calls are learned together: all that decides what such a call does."""
        return "|".join((self.shape, *self.values))

    @cached_property
    def values(self) -> list[str]:
        """The values that may decide what the call does: of its arguments, and the side of its position."""
        found = {name: _decisive(name, value) for name, value in sorted(self.call.items())}
        for id_ in self.named(POSITIONS):
            side = self.tables[POSITIONS][id_].get("side")
            found["of"] = None if side is None else str(_decisive("side", side))
        values = [f"{name}={text}" for name, text in found.items() if text is not None]
        return [*values, *self.outcomes, *self.ends]

    @cached_property
    def outcomes(self) -> dict[str, Decision]:
        """What comes out of the comparisons by which the method decides, of those that can be told."""
        if not self.decisions:
            return {}
        rows = [self.tables[table][id_] for table in (POSITIONS, ORDERS) for id_ in self.named(table)[:1]]
        found = ((one.outcome(self.call, rows), one) for one in self.decisions)
        return {outcome: one for outcome, one in found if outcome is not None}

    def sessions_beside(self, sessions: Collection[Any]) -> dict[str, Any]:
        """Which arguments may name other sessions than that of the call, by what is known of `sessions`."""
        own = self.notes.get("session")
        given = {name: value for name, value in self.call.items() if name != "session_id" and value != own}
        return {name: one for name, one in given.items() if type(one) in (int, str, UUID) and one in sessions}

    @cached_property
    def words(self) -> dict[str, str | int]:
        """The texts and whole numbers that the call gives, by argument, but for the amount of the balance.

        Of other amounts, such as a fee that is 0 by default, whether there is one.
        """
        amount = self.operation.amount_name
        given = {name: value for name, value in self.call.items() if name not in ("session_id", amount)}
        amounts = {f"{name}{IS_ANY}": int(value != 0) for name, value in given.items() if type(value) in _AMOUNTS}
        return amounts | {
            name: value
            for name, value in given.items()
            if type(value) is int or (isinstance(value, str) and len(value) <= _WORD)
        }

    @cached_property
    def shape(self) -> str:
        """The name under which calls are learned together, whatever the values of their arguments."""
        parts = [f"in {table}" for table in sorted(self.tables) if table != POSITIONS and self.named(table)]
        position_id = self.call.get("position_id")
        if self.operation.position is None and position_id is not None:
            parts += ["at an open position" if self._positions() else "at a position"]
        return "|".join((self.operation.name, *parts))

    @property
    def may_end(self) -> list[str]:
        """The tables of which the call may end the row that it names."""
        moves = self.operation.position in (Position.REDUCES, Position.CLOSES)
        updates = self.operation.order is Order.UPDATES
        return [table for table, ends in ((POSITIONS, moves), (ORDERS, updates)) if ends and self.named(table)]

    @cached_property
    def ends(self) -> list[str]:
        """Whether the call takes or fills quantities of a row to the last, which may end the row."""
        rows = [self.tables[table][id_] for table in self.may_end for id_ in self.named(table)]
        found: dict[str, bool] = {}
        for row, (name, value) in product(rows, self.call.items()):
            for key, left in _lefts(row, name) if _is_quantity(name, value) else ():
                found[key] = found.get(key, False) or abs(number(value)) >= left
        return [key if reached else f"{NOT}{key}" for key, reached in sorted(found.items())]

    @cached_property
    def given(self) -> set[str]:
        """Which arguments the call gives, and which not."""
        return {f"{name}{'-' if value is None else '+'}" for name, value in self.call.items() if name != "session_id"}

    @cached_property
    def places(self) -> dict[str, int]:
        """How many decimal places the amounts have that the call gives, by argument."""
        amounts = {name: value for name, value in self.call.items() if isinstance(value, float | Decimal)}
        return {name: places(number(value)) for name, value in amounts.items() if is_number(value)}

    @cached_property
    def letters(self) -> set[str]:
        """Which letters the texts have that the call gives: small or capital ones, or blanks at an end."""
        texts = {name: text for name, text in self.call.items() if isinstance(text, str) and name != "session_id"}
        same = {name: {"a": text.upper(), "A": text.lower(), " ": text.strip()} for name, text in texts.items()}
        return {f"{name} {kind}" for name, found in same.items() for kind, one in found.items() if one != texts[name]}

    @cached_property
    def signature(self) -> str:
        """The arguments that the call gives, in one text."""
        return ",".join(sorted(name for name in self.given if name.endswith("+")))

    def sources(self, row: tuple[str, Row] | None = None) -> dict[str, Any]:
        """What values can be explained by; `row`: the table and the row that is explained, as it was."""
        if row is None:
            return self._own_sources
        return self._own_sources | {f"row:{row[0]}:{key}": value for key, value in row[1].items()}

    @cached_property
    def _own_sources(self) -> dict[str, Any]:
        # A default is what the manager gets where the call gives nothing.
        call = {**self.operation.standard(self.notes.get("defaults", {})), **self.call}
        found = {f"arg:{name}": value for name, value in call.items() if name != "session_id"}
        for name, value in call.items():
            if name not in self.operation.records:
                found.update(_parts(f"arg:{name}", value))
        found |= {f"note:{name}": self.notes[name] for name in ("id", "session", "at") if name in self.notes}
        for column, ids in self.notes.get("side", {}).items():
            found |= {f"note:side:{column}:{index}:id": id_ for index, id_ in enumerate(ids)}
        for table in self.tables:
            # An order of a position may have its symbol, though the call does not change the position.
            named = self._positions() if table == POSITIONS else self.named(table)
            for id_ in named[:1]:
                found |= {f"row:{table}:{key}": value for key, value in self.tables[table][id_].items()}
        return found


def _parts(name: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Any]]:
    """The fields of an object, and the items of a dict, that an argument holds: the price of `quote.level`."""
    if depth < _DEEPEST and type(value) not in PLAIN:
        fields = value if isinstance(value, dict) else fields_of(value) if has_fields(type(value)) else {}
        for key, part in fields.items():
            if isinstance(key, str):
                yield f"{name}:{key}", part
                yield from _parts(f"{name}:{key}", part, depth + 1)


def _lefts(row: Row, name: str) -> Iterator[tuple[str, Decimal]]:
    """What is left of a row's quantities of which the argument `name` may be the last part."""
    found = {key: abs(number(value)) for key, value in row.items() if _is_quantity(key, value)}
    left = [key for key in found if _is_left(key)]
    filled = [value for key, value in found.items() if _is_filled(key)]
    whole = [key for key in found if not _is_filled(key) and key not in left]
    # A size that is a share of the balance is not compared with a number of units.
    alike = [key for key in whole if any(one in key and one in name for one in _QUANTITIES)]
    yield from ((f"all of {key}", found[key]) for key in left)
    for key in alike or whole:
        yield f"all of {key}", found[key]
        yield from ((f"the rest of {key}", found[key] - one) for one in filled)


def _is_quantity(name: str, value: Any) -> bool:
    """Whether a value is how much of something is held, ordered or filled, by its name."""
    return _names_quantity(name) and is_number(value)


@lru_cache(maxsize=1024)
def _names_quantity(name: str) -> bool:
    is_named = _is_left(name) or any(one in name for one in (*_QUANTITIES, *_FILLED))
    return is_named and not any(one in name for one in _PRICES)


@lru_cache(maxsize=1024)
def _is_filled(name: str) -> bool:
    """Whether a quantity is the part of an order that was filled."""
    return any(one in name for one in _FILLED) and not _is_left(name)


@lru_cache(maxsize=1024)
def _is_left(name: str) -> bool:
    """Whether a quantity is what is left of an order."""
    return not _LEFT.isdisjoint(name.lower().split("_"))


def _decisive(name: str, value: Any) -> str | None:
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, Enum):
        return f"{type(value).__qualname__}.{value.name}"
    return text_of(value, "text") if name in DECISIVE and isinstance(value, str) else None
