"""Exact round trip of arguments through JSON that PostgreSQL can read as it stands.

An encoded value is two byte strings: *plain* JSON, which `json_to_recordset` casts to a table's columns without
any help from Python, and a *types* tree, which restores the Python types that JSON lacks.  The types tree names
no code: decoding never imports, never executes, and enum classes must have been registered by the program.

What PostgreSQL would refuse later (NaN, NUL in text, lone surrogates, numbers beyond `numeric`) is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, Flag
from functools import reduce
from operator import or_
from typing import Any
from uuid import UUID

import orjson

from . import registered
from .errors import InvalidEntry, Unrestorable
from .records import attributes, fields_of, has_fields, made_of, names_of, put
from .registered import class_name, coerced, collection_name, collection_of, derived_of, is_column_name, plain_of
from .scalars import RESTORED, checked_decimal, checked_text, lowered_datetime, lowered_time

# Levels of nesting; deeper values are refused, and so are values that contain themselves.
MAX_DEPTH = 64
# Up to so many, a Decimal needs no closer look.
_FLAT_DIGITS = 1000
_TEXT = {str}
# As JSON; also found in a text of a backslash and u0000, which is harmless.
_NUL = b"\\u0000"
_INT64 = 2**63

# What wrong types make of values, as of an import that was written by hand.
MALFORMED = (KeyError, ValueError, TypeError, AttributeError, IndexError, ArithmeticError, RecursionError)


# Compact JSON of plain values and datetimes, for state files and `--json` output; and back, or `ValueError`.
to_json: Callable[[Any], bytes] = orjson.dumps
from_json: Callable[[bytes], Any] = orjson.loads
# JSON that `to_json` takes over as it is.
raw_json: Callable[[bytes], Any] = orjson.Fragment


def encode(value: Any, *, what: str = "args") -> tuple[bytes, bytes]:
    """`(plain, types)` for `value`; `types` is empty where JSON alone is exact.

    Keys are sorted, so equal values give equal bytes.  Raises `InvalidEntry` naming the path (`what` is its root),
    the value and what is allowed.
    """
    return encode_flat(value) or encode_deep(value, what=what)


def encode_deep(value: Any, *, what: str = "args") -> tuple[bytes, bytes]:
    """`encode` of any value."""
    plain, types = _lower(value, what, 0)
    try:
        return (
            orjson.dumps(plain, option=orjson.OPT_SORT_KEYS),
            b"" if types is None else orjson.dumps(types, option=orjson.OPT_SORT_KEYS),
        )
    except orjson.JSONEncodeError as exc:
        raise InvalidEntry(f"{what} cannot be encoded: {exc}", hint="pass values of the documented types") from exc


def encode_flat(value: Any) -> tuple[bytes, bytes] | None:
    """`encode` of what is common in one pass: an object of scalars, Decimals, naive or UTC times; or a list of texts.

    What `decode` will give is then equal to `value`, type by type.  None where anything else is inside, or something
    that may have to be refused: `encode_deep` decides, and its error has the reason.
    """
    kind = type(value)
    if kind is list:
        return _dump_flat(value, {}) if {*map(type, value)} <= _TEXT else None
    if kind is not dict:
        return None
    plain: dict[str, Any] = value
    tags: dict[str, str] = {}
    for name, item in value.items():
        kind = type(item)
        if kind is str:
            continue
        if kind is Decimal:
            if not item.is_finite() or not -_FLAT_DIGITS < item.adjusted() < _FLAT_DIGITS:
                return None
            text = str(item)
            if len(text) > _FLAT_DIGITS:
                return None
            if plain is value:
                plain = value.copy()
            plain[name], tags[name] = text, "decimal"
        elif kind is int:
            if not -_INT64 <= item < _INT64:
                return None
        elif kind is float:
            if not math.isfinite(item):
                return None
        elif kind is datetime and (item.tzinfo is UTC or (item.tzinfo is None and not item.fold)):
            tags[name] = "naive" if item.tzinfo is None else "aware"  # orjson writes both as `isoformat` does
        elif item is not None and kind is not bool:
            return None
    return _dump_flat(plain, tags)


def _dump_flat(plain: Any, tags: dict[str, str]) -> tuple[bytes, bytes] | None:
    try:
        data = orjson.dumps(plain, option=orjson.OPT_SORT_KEYS)
    except orjson.JSONEncodeError:  # a lone surrogate, or a key that is no text
        return None
    if _NUL in data:
        return None
    return data, orjson.dumps({"dict": tags}, option=orjson.OPT_SORT_KEYS) if tags else b""


def decode(plain: bytes, types: bytes = b"", *, strict: bool = True) -> Any:
    """The value that `encode` was given.

    An enum class that this process has not registered, a member that the class has no more, and types that are
    malformed raise `Unrestorable`; with `strict=False` (for display) the plain value is given instead.
    """
    value = orjson.loads(plain)
    return restored(value, types, strict=strict) if types else value


def restored(value: Any, types: bytes, *, strict: bool) -> Any:
    """Values with their types, or as they are where the types are malformed and it is not `strict`."""
    try:
        return _lift(value, orjson.loads(types), strict)
    except Unrestorable:
        raise
    except MALFORMED as exc:
        if strict:
            raise malformed(exc) from exc
        return value


def malformed(exc: Exception) -> Unrestorable:
    """What to raise for types that are malformed."""
    return Unrestorable(f"the stored types are malformed: {type(exc).__name__}: {exc}", hint="discard the entry")


def field_names(plain: bytes) -> tuple[str, ...]:
    """The names of the top-level arguments of an encoded argument object."""
    return tuple(orjson.loads(plain))


def _is_exact(text: str) -> bool:
    """Whether JSON surely has a text as it is."""
    return text.isascii() and "\0" not in text


def _lower(value: Any, path: str, depth: int) -> tuple[Any, Any]:
    """Split `value` into its plain JSON form and its type tag (None where JSON is exact)."""
    kind = type(value)
    if value is None or kind is bool:
        return value, None
    if kind is str:
        return checked_text(value, path), None
    if kind is int:
        if -_INT64 <= value < _INT64:
            return value, None
        try:
            text = str(value)
        except ValueError as exc:  # Python's limit on digits of int -> str
            raise InvalidEntry(f"{path} has too many digits: {exc}", hint="pass a Decimal") from exc
        return text, "int"
    if kind is float:
        if not math.isfinite(value):
            raise InvalidEntry(f"{path} is {value}, which is not a finite number", hint="pass a finite number or None")
        return value, None
    if kind is Decimal:
        return checked_decimal(value, path), "decimal"
    if kind is datetime:
        return lowered_datetime(value, path)
    if kind in (dict, list, tuple, set, frozenset):
        return _lower_container(value, path, depth)
    if isinstance(value, Enum):
        return _lower_enum(value, path, depth)
    if kind is date:
        return value.isoformat(), "date"
    if kind is time:
        return lowered_time(value, path)
    if kind is timedelta:
        # PostgreSQL reads "N days M microseconds" as an interval.
        seconds = value.seconds * 1_000_000 + value.microseconds
        return f"{value.days} days {seconds} microseconds", "interval"
    if kind is UUID:
        return str(value), "uuid"
    if kind is bytes:
        return "\\x" + value.hex(), "bytes"
    if registered.records.get(name := class_name(kind)) is kind:
        return _lower_record(value, name, path, depth)
    if (collection := collection_name(value)) is not None:
        plain, tags = _lower(dict(value), path, depth + 1)
        return plain, ["collection", collection, tags]
    return _lower(coerced(value, path), path, depth + 1)


def _lower_record(value: Any, name: str, path: str, depth: int) -> tuple[Any, Any]:
    kind = type(value)
    if not has_fields(kind):
        plain, tags = _lower(plain_of(value), path, depth + 1)
        return plain, ["derived", name, tags, *(_lower(attributes(value) or None, path, depth + 1))]
    plain, tags = _lower_container(given := fields_of(value), path, depth)
    return plain, ["record", name, tags, sorted(given.keys() - {*names_of(kind)})]


def _lower_enum(value: Enum, path: str, depth: int) -> tuple[Any, Any]:
    name = class_name(type(value))
    if registered.enums.get(name) is not type(value):
        raise InvalidEntry(
            f"{path} is {value!r} of the unregistered enum {name}",
            hint="register the class with outbox.register_enum",
        )
    member = _member_of(value)
    if member is None:
        raise InvalidEntry(f"{path} is {value!r}, which {name} does not define", hint="pass members of it")
    plain = value.value if isinstance(value.value, (str, int, float, Decimal)) else member
    return _lower(plain if not isinstance(plain, Enum) else member, path, depth + 1)[0], ["enum", name, member]


def _member_of(value: Enum) -> str | None:
    """The name of a member, or those of the flags that make a value up; None for a value that no members make."""
    cls = type(value)
    if cls.__members__.get(value.name) is value:
        return value.name
    if not isinstance(value, Flag):
        return None
    names = "|".join(str(one.name) for one in value)
    return names if _flags(cls, names) == value else None


def _flags(cls: Any, names: str) -> Any:
    """The value that flags make up; None where the class has not all of them."""
    flags = names.split("|") if names else []
    return reduce(or_, (cls[one] for one in flags), cls(0)) if set(flags) <= cls.__members__.keys() else None


def _lower_container(value: Any, path: str, depth: int) -> tuple[Any, Any]:
    if depth > MAX_DEPTH:
        raise InvalidEntry(
            f"{path[:80]}... is nested deeper than {MAX_DEPTH} levels, or contains itself", hint="pass a flatter value"
        )
    if type(value) is dict:
        has_text_keys = _are_texts(value)
        if not has_text_keys:
            value = {str(key) if is_column_name(key) else key: item for key, item in value.items()}
            has_text_keys = _are_texts(value)
        if has_text_keys:
            return _lower_object(value, path, depth)
        # JSON objects have text keys only; a list of pairs keeps the others exact.
        pairs = enumerate(value.items())
        items = [_lower_container(list(pair), f"{path}[{index}]", depth + 1) for index, pair in pairs]
        return _tagged("pairs", sorted(items, key=_canonical))
    if type(value) is list and _are_texts(value) and _is_exact("".join(value)):
        return list(value), None
    items = [_lower(item, f"{path}[{index}]", depth + 1) for index, item in enumerate(value)]
    if type(value) in (set, frozenset):
        items.sort(key=_canonical)
    return _tagged(type(value).__name__, items)


def _lower_object(value: dict[str, Any], path: str, depth: int) -> tuple[Any, Any]:
    plain: dict[str, Any] = {}
    tags: dict[str, Any] = {}
    if not _is_exact("".join(value)):
        for key in value:
            checked_text(key, f"{path} key {key!r}")
    for key, item in value.items():
        kind = type(item)
        # Spelling the path out takes longer than to see that JSON has a value as it is.
        if item is None or kind is bool or (kind is str and _is_exact(item)):
            plain[key] = item
            continue
        plain[key], tag = _lower(item, f"{path}.{key}", depth + 1)
        if tag is not None:
            tags[key] = tag
    return plain, {"dict": tags} if tags else None


def _tagged(name: str, items: list[tuple[Any, Any]]) -> tuple[Any, Any]:
    """A JSON list and its type tag, from the items' forms and tags."""
    marks = {str(index): tag for index, (_, tag) in enumerate(items) if tag is not None}
    return [plain for plain, _ in items], {name: marks} if marks or name != "list" else None


def _canonical(item: tuple[Any, Any]) -> bytes:
    """Sort key of what has no order of its own: equal values must give equal bytes."""
    return orjson.dumps(item, option=orjson.OPT_SORT_KEYS)


def _are_texts(values: Iterable[Any]) -> bool:
    return {*map(type, values)} <= _TEXT


def _lift(plain: Any, tag: Any, strict: bool) -> Any:
    """The inverse of `_lower`."""
    if tag is None:
        return plain
    if isinstance(tag, str):
        return RESTORED[tag](plain)
    if isinstance(tag, list):
        if tag[0] == "aware":
            return datetime.fromisoformat(plain).astimezone(timezone(timedelta(seconds=tag[1])))
        if tag[0] == "time":
            return time.fromisoformat(plain).replace(tzinfo=timezone(timedelta(seconds=tag[1])))
        if tag[0] == "fold":  # the second of two times of a day on which the clock is set back
            return RESTORED[tag[1]](plain).replace(fold=1)
        if tag[0] == "record":
            return _lift_record(plain, *tag[1:], strict=strict)
        if tag[0] == "derived":
            return _lift_derived(plain, *tag[1:], strict=strict)
        if tag[0] == "collection":
            return collection_of(tag[1], _lift(plain, tag[2], strict))
        _, name, member = tag
        cls = registered.enums.get(name)
        if cls is not None and member in cls.__members__:
            return cls[member]
        if cls is not None and issubclass(cls, Flag) and (flags := _flags(cls, member)) is not None:
            return flags
        if strict and cls is not None:
            raise Unrestorable(
                f"enum {name} has no member {member!r} any more", hint="give the value its old name, too"
            )
        if strict:
            raise Unrestorable(
                f"enum {name} is not registered in this process",
                hint="call outbox.register_enum on it",
                class_is_unknown=True,
            )
        return plain
    ((name, marks),) = tag.items()
    if name == "dict":
        return {key: _lift(item, marks.get(key), strict) for key, item in plain.items()}
    items = [_lift(item, marks.get(str(index)), strict) for index, item in enumerate(plain)]
    return _CONTAINERS[name](items)


def tag_within(tag: Any) -> Any:
    """The tag of the built-in value that one of a derived class, or of a collection, is stored as."""
    while isinstance(tag, list) and tag[0] in ("derived", "collection"):
        tag = tag[2]
    return tag


def _lift_record(plain: Any, name: str, tags: Any, more: Any = (), *, strict: bool) -> Any:
    fields, cls = _lift(plain, tags, strict), _class_named(name, strict)
    return fields if cls is None else made_of(cls, fields, more)


def _lift_derived(plain: Any, name: str, tags: Any, attached: Any, attached_tags: Any, *, strict: bool) -> Any:
    value, cls = _lift(plain, tags, strict), _class_named(name, strict)
    if cls is None:
        return value
    value = derived_of(cls, value)
    for attribute, item in (_lift(attached, attached_tags, strict) or {}).items():
        put(value, attribute, item)
    return value


def _class_named(name: str, strict: bool) -> Any:
    cls = registered.records.get(name)
    if cls is None and strict:
        raise Unrestorable(
            f"the class {name} is not registered in this process",
            hint="call outbox.register_record on it",
            class_is_unknown=True,
        )
    return cls


_CONTAINERS: Mapping[str, Any] = {
    "list": list,
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "pairs": dict,
}
