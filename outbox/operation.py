"""Operation: the declaration of one kind of write: how its calls are validated, identified and ordered.

A row is completed and checked against its `sqlalchemy.Table` before it is stored, and served as SQLAlchemy would:
columns by key or by name, constant defaults filled in.  What only SQLAlchemy's own INSERT would add (defaults that are
functions or SQL) must be passed, else the row would lack it without a word.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, localcontext
from functools import cached_property, lru_cache
from numbers import Number
from typing import Any
from uuid import UUID

from . import codec
from .errors import ConfigError, InvalidEntry
from .handlers import check_callable, discard, is_unfinished


class Columns:
    """The declared columns of one operation's table."""

    def __init__(self, operation: str, table: Any) -> None:
        self._operation, self._table = operation, table
        self._columns: dict[str, Any] = {str(column.name): column for column in table.columns}
        self._named = {str(column.key): str(column.name) for column in table.columns}
        self._named = {**{name: name for name in self._columns}, **self._named}
        generated = getattr(table, "autoincrement_column", None)
        self._generated = {
            str(column.name)
            for column in table.columns
            if column.server_default is not None or column.identity is not None or column is generated
        }
        # Values that SQLAlchemy would put into the INSERT; None where only it could say which.
        self._defaults = {
            str(column.name): column.default.arg if getattr(column.default, "is_scalar", False) else None
            for column in table.columns
            if column.default is not None
        }
        # In them a text is a JSON string, as SQLAlchemy stores it.
        self.json_names = frozenset(
            name for name, column in self._columns.items() if hasattr(column.type, "none_as_null")
        )

    def name_of(self, key: str) -> str:
        """The column's name by its key in the program, or by itself.  Raises `ConfigError`."""
        if key not in self._named:
            raise ConfigError(
                f"operation {self._operation!r}: {key!r} is not a column of {self._table.name}",
                hint=f"columns: {', '.join(sorted(self._columns))}",
            )
        return self._named[key]

    def complete(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        """The row by column names, with constant defaults for columns that are not given.  Raises `InvalidEntry`."""
        row: dict[str, Any] = {}
        for key, value in args.items():
            if key not in self._named:
                raise InvalidEntry(
                    f"operation {self._operation!r} has no column {key!r}",
                    hint=f"columns: {', '.join(sorted(self._columns))}",
                )
            name = self._named[key]
            if name in row:
                raise InvalidEntry(
                    f"operation {self._operation!r}: column {name!r} is given twice, by key and by name",
                    hint="leave one of them out",
                )
            row[name] = value
        for name, default in self._defaults.items():
            if name not in row and default is not None:
                row[name] = default
        return row

    def check(self, row: Mapping[str, Any]) -> None:
        """Raise `InvalidEntry` for a row, by column names, that PostgreSQL would refuse, or would take with a gap."""
        for name, column in self._columns.items():
            if row.get(name) is None:
                self._check_missing(name, column, given=name in row)
            else:
                self._check_value(name, column, row[name])

    def _check_missing(self, name: str, column: Any, *, given: bool) -> None:
        if not given and name in self._defaults:
            raise InvalidEntry(
                f"operation {self._operation!r}: column {name!r} must be given",
                hint="its default is made by SQLAlchemy's INSERT, which is not used here",
            )
        if not column.nullable and (given or name not in self._generated):
            raise InvalidEntry(
                f"operation {self._operation!r}: column {name!r} must not be empty",
                hint="pass a value that is not None",
            )

    def _check_value(self, name: str, column: Any, value: Any) -> None:
        where = f"operation {self._operation!r}: {name!r}"
        if column.computed is not None or (column.identity is not None and column.identity.always):
            raise InvalidEntry(f"{where} is always made by PostgreSQL", hint="leave it out")
        precision, scale = getattr(column.type, "precision", None), getattr(column.type, "scale", None)
        if isinstance(precision, int) and isinstance(scale, int) and is_beyond(value, precision, scale):
            raise InvalidEntry(
                f"{where} is {value}, beyond numeric({precision},{scale})",
                hint=f"at most {precision - scale} digits before the decimal point",
            )
        if isinstance(precision, int) and isinstance(value, bool):
            raise InvalidEntry(f"{where} is {value}, which is no number", hint="pass int or Decimal")
        length = getattr(column.type, "length", None)
        if isinstance(length, int) and isinstance(value, str) and len(value) > length:
            raise InvalidEntry(f"{where} has {len(value)} characters", hint=f"at most {length}")


def is_beyond(value: Any, precision: int, scale: int) -> bool:
    """Whether a number does not fit numeric(precision, scale) after PostgreSQL has rounded it."""
    if isinstance(value, bool) or not isinstance(value, Number):
        return False
    # Compared exactly: copying and comparing do not round.
    return not (value if isinstance(value, Decimal) else Decimal(str(value))).copy_abs() < _limit(precision, scale)


@lru_cache(maxsize=1024)
def _limit(precision: int, scale: int) -> Decimal:
    with localcontext() as context:
        context.prec = precision + scale + 2
        return Decimal(10) ** (precision - scale) - Decimal(5).scaleb(-scale - 1)


_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.:-]{0,127}\Z")
_MAX_ORDER_BYTES = 255
_MAX_KEY_CHARS = 1024


@dataclass(frozen=True, eq=False)
class Operation:
    """One kind of write.  Immutable; raises `ConfigError` at declaration where it could never work.

    `name`: what entries are stored under; letters, digits and `_.:-`, at most 128.
    `table`: its arguments are a row of this table, columns by name: `"trades"`, `"schema.trades"`, or a
        `sqlalchemy.Table`, whose column types and NOT NULLs are then checked when an entry is enqueued.
    `handler`: or else `handler(conn, entry)` applies it on a SQLAlchemy Connection inside the relay's transaction
        (it must not commit, roll back or close it); what it returns is kept in the receipt.
    `identity`: names of the arguments that make two calls the same intent, or a callable `f(args)`.  Where one of
        them is None, or `f` returns None, the call gets a fresh key.
    `order_by`: the argument whose value is the ordering key, or a callable `f(args)`; None for no order.
    `validate`: `validate(args)` raises for input that must not be stored.
    `best_effort`: a rejection of this operation never holds back others and needs no operator.
    `may_vanish`: triggers or rules of the table may keep rows out on purpose, or write them elsewhere; also those that
        a handler inserts.  The table may be UNLOGGED, so that a crash of PostgreSQL empties it.
    """

    name: str
    table: Any = None
    handler: Callable[..., Any] | None = None
    identity: str | tuple[Any, ...] | Callable[[Mapping[str, Any]], Any] = ()
    order_by: str | Callable[[Mapping[str, Any]], Any] | None = None
    validate: Callable[[Mapping[str, Any]], Any] | None = None
    best_effort: bool = False
    may_vanish: bool = False
    # What a `sqlalchemy.Table` declares of its rows.
    _columns: Columns | None = field(init=False, repr=False, default=None)

    def __post_init__(self) -> None:
        try:
            check_operation_name(self.name)
        except InvalidEntry as exc:
            raise ConfigError(exc.message, hint=exc.hint) from None
        if (self.table is None) == (self.handler is None):
            raise ConfigError(
                f"operation {self.name!r} must have exactly one effect", hint="give either table=... or handler=..."
            )
        if self.handler is not None:
            check_callable(f"operation {self.name!r}", "handler", self.handler, 2)
        if self.validate is not None:
            check_callable(f"operation {self.name!r}", "validate", self.validate, 1)
        if isinstance(self.identity, str):
            object.__setattr__(self, "identity", (self.identity,))
        elif isinstance(self.identity, Iterable):
            object.__setattr__(self, "identity", tuple(self.identity))
        elif callable(self.identity):
            check_callable(f"operation {self.name!r}", "identity", self.identity, 1)
        else:
            raise ConfigError(
                f"operation {self.name!r}: identity is {self.identity!r}",
                hint="allowed: names of arguments, or a callable",
            )
        if self.order_by is not None and not isinstance(self.order_by, str) and not callable(self.order_by):
            raise ConfigError(
                f"operation {self.name!r}: order_by is {self.order_by!r}",
                hint="allowed: an argument's name, a callable or None",
            )
        if callable(self.order_by):
            check_callable(f"operation {self.name!r}", "order_by", self.order_by, 1)
        if self.table is not None and not hasattr(self.table, "columns"):
            parts = self.table.split(".") if isinstance(self.table, str) else []
            if len(parts) not in (1, 2) or not all(parts):
                raise ConfigError(
                    f"operation {self.name!r}: table {self.table!r} is not a table's name",
                    hint="allowed: 'table', 'schema.table' or a sqlalchemy.Table",
                )
        names = [*(() if callable(self.identity) else self.identity)]
        names += [self.order_by] if isinstance(self.order_by, str) else []
        for name in names:
            if not isinstance(name, str) or not name:
                raise ConfigError(
                    f"operation {self.name!r}: {name!r} is not an argument's name",
                    hint="allowed: text that is not empty",
                )
        columns = Columns(self.name, self.table) if hasattr(self.table, "columns") else None
        object.__setattr__(self, "_columns", columns)
        if columns is not None and not callable(self.identity):
            object.__setattr__(self, "identity", tuple(columns.name_of(name) for name in self.identity))
        if columns is not None and isinstance(self.order_by, str):
            object.__setattr__(self, "order_by", columns.name_of(self.order_by))

    @cached_property
    def table_name(self) -> str | None:
        """`table` or `schema.table`, unquoted; None for an operation with a handler."""
        if self.table is None or isinstance(self.table, str):
            return self.table
        return f"{self.table.schema}.{self.table.name}" if self.table.schema else str(self.table.name)

    @cached_property
    def table_path(self) -> tuple[str, ...]:
        """The parts of the table's name, schema first; empty for an operation with a handler."""
        if self.table is None or isinstance(self.table, str):
            return tuple(self.table.split(".")) if self.table else ()
        return (*([str(self.table.schema)] if self.table.schema else []), str(self.table.name))

    @cached_property
    def json_columns(self) -> frozenset[str]:
        """Columns in which a text is a JSON string, as SQLAlchemy stores it; elsewhere a text is JSON text."""
        return frozenset() if self._columns is None else self._columns.json_names

    def complete(self, args: Mapping[str, Any]) -> Mapping[str, Any]:
        """The arguments as they are stored: with a `sqlalchemy.Table` by column names, constant defaults included."""
        return args if self._columns is None else self._columns.complete(args)

    def check(self, args: Mapping[str, Any]) -> None:
        """Raise for arguments that must not be stored: `InvalidEntry`, or whatever `validate` raises."""
        if self._columns is not None:
            self._columns.check(self._columns.complete(args))
        if self.validate is not None:
            # A copy: what it changes must not be half stored.
            answer = self.validate(dict(args))
            if is_unfinished(answer):
                discard(answer)
                raise ConfigError(
                    f"validate of operation {self.name!r} returned {type(answer).__name__}, which has checked nothing",
                    hint="it must be a plain function",
                )

    def identity_of(self, args: Mapping[str, Any]) -> Any:
        """The value that identifies this intent, or None where every call is an intent of its own."""
        if callable(self.identity):
            return self.identity(args)
        if not self.identity:
            return None
        values = []
        for name in self.identity:
            value = self._argument(args, name, "identity")
            if value is None:
                return None
            values.append(value)
        return values

    def order_of(self, args: Mapping[str, Any]) -> Any:
        """The ordering key that `args` give, before `ordering_key` checks it."""
        if callable(self.order_by):
            return self.order_by(args)
        return None if self.order_by is None else self._argument(args, self.order_by, "ordering key")

    def _argument(self, args: Mapping[str, Any], name: str, use: str) -> Any:
        if name not in args:
            raise InvalidEntry(
                f"operation {self.name!r} needs argument {name!r} as its {use}, and it is missing",
                hint=f"given: {', '.join(map(repr, args)) or 'none'}; pass None to do without",
            )
        return args[name]


def operations_by_name(operations: Iterable[Operation]) -> dict[str, Operation]:
    """Index declarations by name.  Raises `ConfigError` for a duplicate or for something that is no Operation."""
    table: dict[str, Operation] = {}
    if isinstance(operations, Operation):
        raise ConfigError(f"operations is {operations.name!r} alone", hint="allowed: a list of Operation(...)")
    for operation in operations:
        if not isinstance(operation, Operation):
            raise ConfigError(f"operations contains {operation!r}", hint="allowed: Operation(...) instances")
        if operation.name in table:
            raise ConfigError(f"operation {operation.name!r} is declared twice", hint="names must be unique")
        table[operation.name] = operation
    return table


def check_operation_name(name: object) -> str:
    """`name` if it can name an operation; raises `InvalidEntry`."""
    if not isinstance(name, str) or not _NAME.match(name):
        raise InvalidEntry(
            f"operation {name!r} is not a valid name",
            hint="allowed: a letter or _, then letters, digits and _.:-, at most 128",
        )
    return name


def ordering_key(value: Any) -> str | None:
    """`value` as the text of an ordering key; None stays None.

    Allowed: non-empty text, integers and UUIDs, at most 255 bytes.  Raises `InvalidEntry`.
    """
    if value is None:
        return None
    if type(value) is not str and hasattr(value, "item") and type(value).__module__ == "numpy":
        value = value.item()
    # Equal values are one key, whatever a subclass shows itself as: `class Symbol(str, Enum)`, for instance.
    if isinstance(value, str):
        text = str.__str__(value)
    elif isinstance(value, (int, UUID)) and not isinstance(value, bool):
        text = int.__repr__(value) if isinstance(value, int) else str(value)
    else:
        text = ""
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        size = 0
    if not 0 < size <= _MAX_ORDER_BYTES or "\0" in text:
        raise InvalidEntry(
            f"order_by is {value!r}", hint=f"allowed: text of 1 to {_MAX_ORDER_BYTES} bytes, an integer, a UUID or None"
        )
    return text


def idempotency_hash(namespace: str, operation: str, kind: str, identity: bytes) -> bytes:
    """16 bytes over namespace, operation, kind of identity and its canonical bytes, each length-prefixed."""
    prefix = _hash_prefix(namespace, operation, kind)
    return hashlib.blake2b(prefix + len(identity).to_bytes(4, "big") + identity, digest_size=16).digest()


@lru_cache(maxsize=1024)
def _hash_prefix(*parts: str) -> bytes:
    encoded = [part.encode() for part in parts]
    return b"".join(len(part).to_bytes(4, "big") + part for part in encoded)


def payload_hash(operation: str, plain: bytes, types: bytes) -> bytes:
    """16 bytes that tell two payloads of one key apart."""
    parts = (operation.encode(), b"\0%d\0" % len(plain), plain, types)
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def shape_hash(args: Mapping[str, Any]) -> bytes:
    """8 bytes over the argument names, so that rows with the same columns can be inserted together."""
    return _shape_of(tuple(args))


@lru_cache(maxsize=1024)
def _shape_of(names: tuple[str, ...]) -> bytes:
    return hashlib.blake2b(codec.to_json(sorted(names)), digest_size=8).digest()


def caller_key(key: object) -> bytes:
    """The bytes of a caller's `key`; raises `InvalidEntry` where it is not usable text."""
    if not isinstance(key, str) or not 0 < len(key) <= _MAX_KEY_CHARS:
        raise InvalidEntry(f"key is {key!r:.100}", hint=f"allowed: text of 1 to {_MAX_KEY_CHARS} characters, or None")
    try:
        return key.encode()
    except UnicodeEncodeError as exc:
        raise InvalidEntry(f"key {key!r:.100} is not valid Unicode", hint="pass text without lone surrogates") from exc
