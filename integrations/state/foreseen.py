"""Foreseen: predicts from a method's code how a queued call will change the manager's attributes.

`self.pnl += amount`, and `self.halted = True` where `self.pnl` is below a limit, follow from the arguments of the call
and from the attributes, so the manager gets them at the call while PostgreSQL is away.  A `return False` on the way
refuses the call, as an exception does, and then they are taken back.  What is only likely (a value that the database
gives, or a branch that depends on one) is not foreseen.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from enum import Enum, auto
from typing import Any

from ..code.attribute_code import (
    ANY,
    SET,
    Assign,
    AttributeChange,
    Branch,
    CodeBlock,
    Entered,
    Expression,
    Final,
    Inner,
    Leave,
    Lose,
    block_of,
)
from ..code.class_code import ClassCode, remembered
from ..code.effects import lets_through
from ..manager.host import Host
from ..plain_data import same
from .kept_state import NOT_STATE

_NUMBERS = (int, float, Decimal)
_SCALARS = frozenset({bool, int, float, Decimal, str, datetime, type(None)})
_MISSING: Any = object()
# A sum, or `[SET, before, after]` of an attribute that is assigned.
ForeseenChange = Any


def changed(present: Any, change: ForeseenChange) -> Any:
    """The value of an attribute after a change; one that was assigned again meanwhile stays."""
    if isinstance(change, list):
        _, before, after = change
        return after if same(present, before) else present
    return present + change if _is_number(present) and _adds_up(present, change) else present


def behind(wrong: ForeseenChange, later: ForeseenChange) -> ForeseenChange:
    """What is left to correct where a sum has been added to a wrong value."""
    return [SET, changed(wrong[1], later), changed(wrong[2], later)] if isinstance(wrong, list) else wrong


def correction(foreseen: ForeseenChange, made: tuple[Any, Any] | None) -> ForeseenChange | None:
    """What turns a foreseen change into the one that was made, of a value into another; None where it was right."""
    if isinstance(foreseen, list):
        _, before, after = foreseen
        found = before if made is None else made[1]
        return None if same(after, found) else [SET, after, found]
    if made is None:
        return -foreseen if foreseen else None
    return None if made[1] == made[0] + foreseen else made[1] - made[0] - foreseen


class Foreseen:
    """The changes of one manager's methods.  Thread-safe."""

    def __init__(self, host: Host, methods: Collection[str]) -> None:
        self._host, self._methods = host, tuple(methods)

    def names(self) -> frozenset[str]:
        """The attributes that some of the methods change so."""
        return frozenset(attribute for one in self._read().values() for attribute in one.attributes)

    def of(self, name: str, call: Mapping[str, Any], stale: Callable[[], Collection[str]]) -> dict[str, Any]:
        """How method `name` changes which attributes of the manager, where that is certain.

        `stale()`: attributes that calls before this one may still change; what depends on them is not certain.
        """
        method = self._read().get(name)
        if method is None:
            return {}
        own = self._host.attributes()
        cls = self._host.manager_class
        run = _Run({**own, **dict.fromkeys(stale(), _MISSING)}, cls)
        run.block(method.block, dict(call))
        found: dict[str, Any] = {}
        for attribute in method.attributes - run.lost if ANY not in run.lost else ():
            present = own.get(attribute, _MISSING)
            if attribute in method.counted:
                change = run.sums.get(attribute, 0)
                if _is_number(present) and _adds_up(present, change):
                    found[attribute] = change
            elif type(present) in _SCALARS:
                after = run.known[attribute] if attribute in run.changed else present
                if type(after) in _SCALARS:
                    found[attribute] = [SET, present, after]
        return found

    def _read(self) -> Mapping[str, _Method]:
        cls = self._host.manager_class
        return {} if cls is None else _foreseen_by(cls, self._methods)


def _is_number(value: Any) -> bool:
    return isinstance(value, _NUMBERS) and not isinstance(value, bool)


def _adds_up(present: Any, amount: Any) -> bool:
    # A float and a Decimal do not: the method raises there.
    return {type(present), type(amount)} != {float, Decimal}


@dataclass(frozen=True, slots=True)
class _Method:
    """`attributes`: those that may be foreseen; `counted`: those of them that are only added to."""

    block: CodeBlock
    attributes: frozenset[str]
    counted: frozenset[str]

    @classmethod
    def of(cls, block: CodeBlock) -> _Method:
        changes = list(block.changes())
        hidden = {one.attribute for one in changes if one.expression is None}
        names = frozenset({one.attribute for one in changes} - hidden - NOT_STATE)
        return cls(block, names, names - {one.attribute for one in changes if one.operator == SET})


@remembered(64)
def _foreseen_by(cls: type, methods: tuple[str, ...]) -> Mapping[str, _Method]:
    """What methods of a class do to attributes, as far as it can be foreseen of any."""
    code = ClassCode(cls)
    found = {name: _Method.of(block_of(code, name)) for name in methods}
    return {name: one for name, one in found.items() if one.attributes}


class _Way(Enum):
    """How a block ends."""

    GOES_ON = auto()
    LEFT = auto()
    REFUSED = auto()
    # Whether it ends its function is not known.
    MAY_LEAVE = auto()


@dataclass
class _Run:
    """One run of a method's steps.  `known`: attributes, by name, with what the steps have made of them."""

    known: dict[str, Any]
    cls: type | None
    sums: dict[str, Any] = field(default_factory=dict)
    changed: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)

    def block(self, block: CodeBlock, names: dict[str, Any]) -> _Way:
        """Run the steps of a block; `names`: the arguments and local names of its function."""
        for at, step in enumerate(block.steps, 1):
            way = self._step(step, names)
            if way is _Way.MAY_LEAVE:
                self._lose(CodeBlock(block.steps[at:]), names)
            if way is not _Way.GOES_ON:
                return way
        return _Way.GOES_ON

    def _step(self, step: Any, names: dict[str, Any]) -> _Way:
        match step:
            case AttributeChange():
                self._change(step, names)
            case Assign(name=name, expression=expression):
                names[name] = self._value(expression, names)
            case Lose(leaves=leaves):
                self._lose(step, names)
                return _Way.MAY_LEAVE if leaves else _Way.GOES_ON
            case Leave(refuses=refuses):
                return _Way.REFUSED if refuses else _Way.LEFT
            case Branch(test=Entered() as entered, ways=ways):
                sure = all(lets_through(self._held(attribute), path) for attribute, *path in entered.paths)
                return self.block(ways[0 if sure else 1], names)
            case Branch(test=Expression() | None as test, ways=ways):
                return self._branch(_MISSING if test is None else self._value(test, names), ways, names)
            case Final(ways=(tried, last)):
                way, end = self.block(tried, names), self.block(last, names)
                return way if end is _Way.GOES_ON else end
            case Inner(given=given, block=block):
                inner = {name: self._value(one, names) for name, one in given.items()}
                if self.block(block, inner) is _Way.REFUSED:
                    return _Way.REFUSED
        return _Way.GOES_ON

    def _branch(self, outcome: Any, ways: tuple[CodeBlock, CodeBlock], names: dict[str, Any]) -> _Way:
        if type(outcome) in _SCALARS:
            return self.block(ways[0 if outcome else 1], names)
        # A way that refuses the call is taken for the other one.
        for one, other in (ways, ways[::-1]):
            if one.refuses:
                return self.block(other, names)
        for one in ways:
            self._lose(one, names)
        return _Way.MAY_LEAVE if any(one.leaves for one in ways) else _Way.GOES_ON

    def _change(self, step: AttributeChange, names: dict[str, Any]) -> None:
        attribute, operator = step.attribute, step.operator
        value = _MISSING if step.expression is None else self._value(step.expression, names)
        self.changed.add(attribute)
        before, self.known[attribute] = self.known.get(attribute, _MISSING), _MISSING
        if value is _MISSING or attribute in self.lost or (operator != SET and not _is_number(value)):
            self.lost.add(attribute)
        elif operator == SET:
            self.known[attribute] = value
        else:
            value = -value if operator == "-" else value
            total = self.sums.get(attribute, 0)
            if not _adds_up(total, value):
                self.lost.add(attribute)
                return
            self.sums[attribute] = total + value
            if _is_number(before) and _adds_up(before, value):
                self.known[attribute] = before + value

    def _lose(self, lost: CodeBlock | Lose, names: dict[str, Any]) -> None:
        self.lost |= lost.attributes
        names.update(dict.fromkeys(lost.names, _MISSING))

    def _value(self, expression: Expression, names: Mapping[str, Any]) -> Any:
        """`_MISSING` for what is not known."""

        def find(name: str) -> Any:
            if name.endswith("]"):
                value = names.get(name)
            else:
                value = self._attribute(name[5:]) if name.startswith("self.") else names[name]
            if value is _MISSING:
                raise LookupError(name)
            return value

        try:
            return expression.evaluate(find)
        except Exception:  # noqa: BLE001 - the method will raise that itself
            return _MISSING

    def _attribute(self, name: str) -> Any:
        value = self._held(name)
        return value if type(value) in _SCALARS else _MISSING

    def _held(self, name: str) -> Any:
        if name in self.lost or ANY in self.lost:
            return _MISSING
        return self.known[name] if name in self.known else inspect.getattr_static(self.cls, name, _MISSING)
