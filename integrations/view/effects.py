"""Effects: how one kind of call changes rows and balances, learned from the manager's answers before and after."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..roles import Order, Position
from .amounts import is_number, number
from .explanations import Space, predict_row
from .rows import ORDERS, PARENT, POSITIONS, RESOLVED, Row
from .seen import AsDeclared, Seen


@dataclass(slots=True)
class Effect:
    """What one operation does, called with arguments of one kind."""

    count: int = 0
    # What is learned of calls with any values of their arguments: those that were seen.
    values: set[str] | None = None
    # Names of arguments with + where a learned call gave them, - where one did not.
    given: set[str] = field(default_factory=set)
    # table -> key -> its explanations, for a new row and for a row that the call names.
    made: dict[str, dict[str, Space]] = field(default_factory=dict)
    changed: dict[str, dict[str, Space]] = field(default_factory=dict)
    # table -> whether a new row appears; table -> whether the named row goes away.  None: it was seen to differ.
    makes: dict[str, bool | None] = field(default_factory=dict)
    removes: dict[str, bool | None] = field(default_factory=dict)
    # Tables in which rows changed that the call does not name.
    strangers: set[str] = field(default_factory=set)
    # Whether the balance became what the declaration makes of it.
    balance: AsDeclared = field(default_factory=AsDeclared)
    # Arguments that were seen to name another session which the call changes too.
    beside: set[str] = field(default_factory=set)
    # The balance of a session that the call begins.
    start: Space = field(default_factory=Space)
    # "table.column" -> how many rows with a reserved id it writes besides the one whose id it returns.
    sides: dict[str, int] = field(default_factory=dict)
    # "table.key" of amounts that were seen to become 0 in a row that stays.
    zeros: set[str] = field(default_factory=set)
    # The letters that texts were seen with.
    letters: set[str] = field(default_factory=set)
    # Arguments that are amounts, and the most decimal places that they were seen with.
    places: dict[str, int] = field(default_factory=dict)

    def dump(self) -> dict[str, Any]:
        """Its state, to be stored."""
        spaces = {
            name: {table: {key: space.dump() for key, space in keys.items()} for table, keys in found.items()}
            for name, found in (("made", self.made), ("changed", self.changed))
        }
        return {
            "count": self.count, "given": sorted(self.given), "makes": self.makes, "removes": self.removes,
            "strangers": sorted(self.strangers), "beside": sorted(self.beside), "balance": self.balance.dump(),
            "start": self.start.dump(), "zeros": sorted(self.zeros),
            "letters": sorted(self.letters),
            "sides": self.sides, "places": self.places,
            "values": None if self.values is None else sorted(self.values), **spaces,
        }  # fmt: skip

    @classmethod
    def load(cls, state: Mapping[str, Any]) -> Effect:
        """The inverse of `dump`."""
        spaces = {
            name: {table: {key: Space(*space) for key, space in keys.items()} for table, keys in state[name].items()}
            for name in ("made", "changed")
        }
        simple = {name: state[name] for name in ("count", "makes", "removes", "sides")}
        values = state.get("values")
        sets = {"given": set(state["given"]), "strangers": set(state["strangers"])}
        simple |= {"places": state.get("places", {})}
        sets |= {name: set(state.get(name, ())) for name in ("beside", "zeros", "letters")}
        sets |= {} if values is None else {"values": set(values)}
        read: dict[str, Any] = {**simple, **sets, **spaces}
        return cls(**read, start=Space(*state["start"]), balance=AsDeclared.load(state["balance"]))

    def knows(self, table: str) -> bool:
        """Whether it was seen what becomes of a table, whose rows may be shown in a form that is not understood."""
        return table in self.makes or table in self.strangers or table not in (POSITIONS, ORDERS)

    def unexplained(self) -> set[str]:
        """What of the rows that such calls change an outage does not answer."""
        keys = ((table, key, space) for spaces in (self.made, self.changed) for table in spaces
                for key, space in spaces[table].items() if key != PARENT)  # fmt: skip
        strange = {f"rows of {table} that it does not name" for table in self.strangers}
        return strange | {f"{key} of {table}" for table, key, space in keys if not space.is_explained}

    def predict(
        self,
        spaces: Mapping[str, Space],
        sources: Mapping[str, Any],
        old: Row | None = None,
        given: str | None = None,
        *,
        rounds: bool = False,
    ) -> tuple[Row, dict[str, str]]:
        """The values of a row by key, and why others are not known; `old`: the row as it was, None for a new one.

        `rounds`: what contradicts itself may have been rounded, though a few whole amounts in a row would not show it.
        """
        return predict_row(spaces, sources, old, by_values=rounds or self.values is not None, given=given)


@dataclass(slots=True)
class Prediction:
    """What a call makes of a session's rows.  `doubts`: (table, id or None for the table, key) -> why not known."""

    rows: list[tuple[str, Any, Row]] = field(default_factory=list)
    gone: list[tuple[str, Any]] = field(default_factory=list)
    doubts: dict[tuple[str, Any, str], str] = field(default_factory=dict)


def predict(effect: Effect | None, seen: Seen, new: Collection[str] = ()) -> Prediction:
    """What a call will have done, as far as that is learned; `new`: those of its values that were never seen."""
    found, name = Prediction(), seen.operation.name
    if not seen.touches_rows:
        strangers = set() if effect is None else effect.strangers
        why = "which its declaration does not say"
        return Prediction(doubts={(one, None, "*"): f"{name} changes them, {why}" for one in strangers})
    news = seen.given - effect.given if effect is not None else set()
    given = ", ".join(sorted(one[:-1] for one in news if one.endswith("+")))
    values = f" with {', '.join(new or seen.values)}" if seen.values else ""
    never = f"{name} was never seen"
    why = f"{never}{values}" if effect is None else f"{never} with {given or 'so few arguments'}"
    strange = effect is None or bool(news)
    for table in _tables_of(effect, seen):
        for id_ in seen.named(table):
            _predict_named(found, effect, seen, table, id_)
            if strange:
                found.doubts[table, id_, "*"] = why
        if effect is not None and not strange and not effect.knows(table):
            found.doubts[table, None, "*"] = f"{name} was never seen with {table} that could be understood"
        if effect is not None and table in effect.strangers:
            found.doubts[table, None, "*"] = f"{name} changes rows that it does not name"
        if effect is not None and effect.makes.get(table, False) is not False:
            _predict_made(found, effect, seen, table, why if strange else "")
        elif strange and _may_make(seen, table):
            found.doubts[table, None, "*"] = why
    counters = {key for value in new if value in seen.outcomes for key in seen.outcomes[value].sets or ()}
    found.doubts |= {
        (table, id_, key): f"{never}{values}" for table, id_, row in found.rows for key in counters & row.keys()
    }
    return found


def _may_make(seen: Seen, table: str) -> bool:
    """Whether the declaration lets a call make a row of this table."""
    if table == POSITIONS:
        return seen.operation.position is Position.OPENS
    if seen.operation.order is Order.OPENS:
        return table == ORDERS or seen.call.get("position_id") is not None
    return seen.operation.position is Position.OPENS


def _tables_of(effect: Effect | None, seen: Seen) -> list[str]:
    made = {} if effect is None else effect.makes
    return sorted({POSITIONS, ORDERS, *seen.tables, *made} - {RESOLVED}, key=lambda name: ("." in name, name))


def _predict_named(found: Prediction, effect: Effect | None, seen: Seen, table: str, id_: Any) -> None:
    if effect is None:
        return
    removes = effect.removes.get(table, False)
    if removes:
        found.gone.append((table, id_))
        return
    old = seen.tables[table][id_]
    name = seen.operation.name
    if removes is None:
        found.doubts[table, id_, "*"] = f"{name} was seen to end it and not to end it"
    row, doubts = effect.predict(
        effect.changed.get(table, {}), seen.sources((table, old)), old, seen.signature, rounds=seen.rounds
    )
    found.doubts |= {(table, id_, key): f"{name}: {reason}" for key, reason in doubts.items()}
    for key in used_up(seen, old, row):
        if f"{table}.{key}" not in effect.zeros:
            # Such a row may be shown no more.
            found.doubts[table, id_, "*"] = f"{name} was never seen to make {key} 0"
    found.rows.append((table, id_, row))


def used_up(seen: Seen, old: Row, row: Row) -> list[str]:
    """The amounts of a row that a call makes 0 without being given a 0."""
    changed = [(key, old.get(key), value) for key, value in row.items() if value is not old.get(key)]
    amounts = [(key, before, value) for key, before, value in changed if is_number(value) and is_number(before)]
    zeros = [key for key, before, value in amounts if number(value) == 0 != number(before)]
    is_given = zeros and any(is_number(value) and number(value) == 0 for value in seen.call.values())
    return [] if is_given else zeros


def _predict_made(found: Prediction, effect: Effect, seen: Seen, table: str, why: str) -> None:
    name = seen.operation.name
    if effect.makes[table] is None:
        found.doubts[table, None, "*"] = f"{name} was seen to make a row of {table} and not to make one"
        return
    row, unknown = effect.predict(effect.made[table], seen.sources(), None, seen.signature, rounds=seen.rounds)
    doubts = {key: f"{name}: {reason}" for key, reason in unknown.items()} | ({"*": why} if why else {})
    parent, key_ = row.get(PARENT), seen.key(table)
    if row.get(key_) is None or ("." in table and parent is None):
        found.doubts[table, None, key_] = doubts.get(key_, f"{name}: its {key_} is not known")
        return
    found.rows.append((table, row[key_], row))
    found.doubts |= {(table, row[key_], key): reason for key, reason in doubts.items()}
