"""Sources: the kinds of an entry's values, and the PostgreSQL type of each before it is assigned to its column.

The driver gives a parameter the type of its Python value, and PostgreSQL's assignment cast brings it into the column:
`5.00` into an integer, a number into `money`, an aware time into a `timestamp` of the session's zone.  Values from
stored JSON take the same way, so that a table operation stores what a parameterised INSERT stores.  Where no such cast
exists, the column's own input function reads the JSON value.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from .. import codec, scalars

# Object ids of built-in types: they never change (src/include/catalog/pg_type.dat).
OIDS = {
    "boolean": 16,
    "bytea": 17,
    "bigint": 20,
    "text": 25,
    "numeric": 1700,
    "date": 1082,
    "time": 1083,
    "timestamp": 1114,
    "timestamptz": 1184,
    "interval": 1186,
    "timetz": 1266,
    "uuid": 2950,
}
TYPE_NAMES = {oid: name for name, oid in OIDS.items()}
_JSON = frozenset({114, 3802})

# By kind of value (`kinds_of`): the types that the driver would give it, the first that can be assigned.
_NATURAL = {
    "bool": ("boolean",),
    "int": ("numeric", "bigint"),
    "bigint": ("numeric",),
    "float": ("numeric",),
    "decimal": ("numeric",),
    "number": ("numeric",),
    "aware": ("timestamptz",),
    "naive": ("timestamp",),
    "date": ("date",),
    "time": ("time",),
    "timetz": ("timetz",),
    "interval": ("interval",),
    "uuid": ("uuid",),
    "bytes": ("bytea",),
    "str": ("text",),
}


# What `kinds_of` calls a value, by its tag, or by its type in JSON.
_KINDS = {"int": "bigint"}
_PLAIN_KINDS: Mapping[type, str] = {
    type(None): "null",
    bool: "bool",
    int: "int",
    float: "float",
    str: "str",
    dict: "object",
}
_NUMBERS = {"int", "float", "decimal", "bigint", "number"}

# Stands for the value in an expression; no name can contain it.
VALUE = "\0"


def kinds_of(plain: bytes, types: bytes) -> tuple[str, ...]:
    """What the values of an encoded argument object are, in the order of `codec.field_names`.

    One of null, bool, int, float, str, object, bigint, decimal, aware, naive, date, time, timetz, interval, uuid and
    bytes; the kind of a list's elements with `[]` behind it; of a tuple's elements `(int,str)`.  Raises `Unrestorable`
    where the types are malformed.
    """
    args = codec.from_json(plain)
    names = tuple(args)
    try:
        kinds, lists = _flat_kinds(names, tuple(map(type, args.values())), types)
        if not lists:
            return kinds
        tags, found = _tags_of(types), list(kinds)
        for index in lists:
            found[index] = _kind(args[names[index]], tags.get(names[index]))
        return tuple(found)
    except codec.MALFORMED as exc:
        raise codec.malformed(exc) from exc


@lru_cache(maxsize=4096)
def _flat_kinds(
    names: tuple[str, ...], python: tuple[type, ...], types: bytes
) -> tuple[tuple[str, ...], tuple[int, ...]]:
    """The kinds of all values but lists, whose kind depends on what is in them; and where those are."""
    tags = _tags_of(types)
    kinds = tuple(_scalar_kind(kind, tags.get(name)) for name, kind in zip(names, python, strict=True))
    return kinds, tuple(index for index, kind in enumerate(python) if kind is list)


@lru_cache(maxsize=4096)
def _tags_of(types: bytes) -> Mapping[str, Any]:
    tags: Mapping[str, Any] = codec.from_json(types).get("dict", {}) if types else {}
    return tags


def _kind(value: Any, tag: Any) -> str:
    tag = codec.tag_within(tag)
    if type(value) is not list:
        return _scalar_kind(type(value), tag)
    ((name, marks),) = tag.items() if isinstance(tag, dict) else (("list", {}),)
    if name == "pairs":
        return "object"
    elements = [_kind(item, marks.get(str(index))) for index, item in enumerate(value)]
    return f"({','.join(elements)})" if name == "tuple" and "(" not in "".join(elements) else _list_kind(elements)


def _list_kind(elements: Iterable[str]) -> str:
    """The kind of the elements with `[]` behind it; `null[]` of none, `number[]` and `mixed[]` where they differ."""
    found = {kind.removesuffix("[]") for kind in elements} - {"null"}
    if len(found) < 2:
        return f"{found.pop() if found else 'null'}[]"
    return "number[]" if found <= _NUMBERS else "mixed[]"


def _scalar_kind(python: type, tag: Any) -> str:
    tag = codec.tag_within(tag)
    if isinstance(tag, list) and tag[0] == "record":
        return "object"
    if isinstance(tag, list) and tag[0] != "enum":
        # An offset, or the second of two equal times of a day.
        kind: str = {"aware": "aware", "time": "timetz", "fold": tag[1]}.get(tag[0], "mixed")
        return _KINDS.get(kind, kind)
    if isinstance(tag, str):
        if tag not in scalars.RESTORED:
            raise KeyError(tag)
        return _KINDS.get(tag, tag)
    return _PLAIN_KINDS.get(python, "mixed")


@dataclass(frozen=True, slots=True)
class Source:
    """How a value is read from JSON, and the SQL by which it becomes what is assigned."""

    type: str
    # With `VALUE` for the value.
    expression: str = VALUE


@dataclass(frozen=True, slots=True)
class ColumnType:
    """A column's type: its SQL name, what it is below its domains, and what can be assigned to it."""

    name: str
    oid: int
    category: str
    is_array: bool
    attributes: tuple[str, ...]
    assignable: frozenset[str]

    def source(self, kind: str, *, json_value: bool) -> Source:
        """How a value of `kind` is read; a text for a JSON column is JSON text unless it is a `json_value`."""
        own = Source(self.name)
        if kind.startswith("("):
            kinds = kind[1:-1].split(",")
            if not self.is_array and (self.category == "S" or len(self.attributes) == len(kinds)):
                return _row(kinds, "text" if self.category == "S" else self.name)
            kind = _list_kind(kinds)
        element = kind.removesuffix("[]")
        listed = element != kind
        if self.oid in _JSON:
            text = kind == "str" and not json_value and not self.is_array
            return Source("text", f"CAST({VALUE} AS {self.name})") if text else own
        if element == "str" and listed == self.is_array:
            return own
        if listed and not self.is_array:
            if element == "null":
                return Source("text", f"CAST(translate(upper({VALUE}), '[]', '{{}}') AS {self.name})")
            # An array becomes text as PostgreSQL writes it.
            return _array(_NATURAL[element][0]) if self.category == "S" and element in _NATURAL else own
        if self.is_array and not listed:
            return own
        for name in _NATURAL.get(element, ()):
            if OIDS[name] == self.oid or name in self.assignable or self.category == "S":
                return _array(name) if listed else _scalar(name)
        return own


def sources_of(
    columns: Mapping[str, ColumnType], names: Sequence[str], kinds: Sequence[str], json_values: frozenset[str]
) -> tuple[Source | None, ...]:
    """How the values of a row are read, by the kinds of its values; None of a NULL, which goes with every type."""
    return tuple(
        None if kind == "null" else columns[name].source(kind, json_value=name in json_values)
        for name, kind in zip(names, kinds, strict=True)
    )


def _scalar(name: str) -> Source:
    if name == "interval":
        # Under `IntervalStyle = sql_standard` the sign of the days would hold for what follows.
        return Source("text", f"CAST(replace({VALUE}, 'days ', 'days +') AS interval)")
    if name == "bigint":
        # Object ids have no sign; PostgreSQL wraps the negative numbers of four bytes.
        wraps = f"{VALUE} BETWEEN -2147483648 AND -1"
        return Source(name, f"CASE WHEN {wraps} THEN {VALUE} + 4294967296 ELSE {VALUE} END")
    return Source(name)


def _row(kinds: list[str], name: str) -> Source:
    """A tuple becomes a row, and a row becomes the composite type."""
    values = []
    for index, kind in enumerate(kinds):
        value = f"{VALUE} ->> {index}"
        if kind == "interval":
            value = f"replace({value}, 'days ', 'days +')"
        values.append(f"CAST({value} AS {_NATURAL.get(kind, ('text',))[0]})")
    return Source("json", f"CASE WHEN {VALUE} IS NOT NULL THEN CAST(ROW({', '.join(values)}) AS {name}) END")


def _array(name: str) -> Source:
    if name == "interval":
        return Source("text[]", f"CAST(replace(CAST({VALUE} AS text), 'days ', 'days +') AS interval[])")
    return Source(f"{name}[]")
