"""References: what an attribute refers to, in a copy of the manager that has copies of its own of that.

A method bound to the manager or to an object in it, a table of such, and a weak reference are no data.  In a copy they
stand for what the copy has: what the method behind them changes is the copy's, and what it writes is the replay's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from types import MethodType
from typing import Any
from weakref import ReferenceType, WeakKeyDictionary, WeakMethod, WeakSet, WeakValueDictionary

from ..plain_data import Copies

# A table of methods is a few levels deep; a larger collection is something else.
_DEEPEST = 4
_MOST = 1000
_WEAK_DICTS = (WeakKeyDictionary, WeakValueDictionary)


def referring(value: Any, known: Copies, name: str, replica: Any) -> Any:
    """`value` of the attribute `name`, with the copies in place of what it refers to; itself where there are none.

    `known`: what the attributes of the manager hold, and the copies of it.
    """

    def of(held: Any) -> Any:
        if id(held) in known:
            return known[id(held)][1]
        is_manager = held is not replica and type(held) in type(replica).__mro__ and _has(held, name, value)
        return replica if is_manager else held

    return _referring(value, of, _DEEPEST)


def _has(held: Any, name: str, value: Any) -> bool:
    """Whether it is the object in whose attribute `value` was found: another may be of its class."""
    own: Mapping[str, Any] = getattr(held, "__dict__", {})
    return own.get(name) is value


def _referring(value: Any, of: Callable[[Any], Any], depth: int) -> Any:
    kind, own = type(value), of(value)
    if own is not value:
        return own
    if kind is MethodType:
        held = of(value.__self__)
        return value if held is value.__self__ else MethodType(value.__func__, held)
    if kind is WeakMethod:
        method = value()
        held = _referring(method, of, 0)
        return value if held is method else WeakMethod(held)
    if kind is ReferenceType:
        held = value()
        return value if of(held) is held else ReferenceType(of(held))
    if depth == 0:
        return value
    if isinstance(value, partial) and kind is partial:
        given = _each([value.func, *value.args], of, depth)
        keywords = _referring(value.keywords, of, depth)
        are_same = _are_same([value.func, *value.args], given) and keywords is value.keywords
        return value if are_same else partial(given[0], *given[1:], **keywords)
    if kind is WeakSet:
        found = [*value]
        made = [of(one) for one in found]
        return value if _are_same(found, made) else WeakSet(made)
    if kind in _WEAK_DICTS:
        pairs = [one for pair in value.items() for one in pair]
        made = [of(one) for one in pairs]
        return value if _are_same(pairs, made) else kind(zip(made[::2], made[1::2], strict=True))
    if kind in (list, tuple) and len(value) <= _MOST:
        made = _each(value, of, depth)
        return value if _are_same(value, made) else kind(made)
    if kind is dict and len(value) <= _MOST:
        found = [*value.values()]
        made = _each(found, of, depth)
        return value if _are_same(found, made) else dict(zip(value, made, strict=True))
    return value


def _each(values: Iterable[Any], of: Callable[[Any], Any], depth: int) -> list[Any]:
    return [_referring(one, of, depth - 1) for one in values]


def _are_same(values: Iterable[Any], made: Iterable[Any]) -> bool:
    return all(one is other for one, other in zip(values, made, strict=True))
