"""Rows: inserts the arguments of entries as rows of tables, straight from the stored JSON, by what tables hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from .. import codec
from ..fate import OperationFault
from ..store.envelope import Record
from .sources import OIDS, TYPE_NAMES, VALUE, ColumnType, Source, kinds_of, sources_of
from .transaction_settings import Cursor

# `FirstNormalObjectId` of PostgreSQL.
_FIRST_OWN_OID = 16384

# Types without their modifiers: numeric(18,8) is enforced by the insert into the column, where it cannot be outdated.
_COLUMNS = """
SELECT attname, format_type(atttypid, -1), atttypid::bigint, atthasdef,
    (SELECT concat(
        relpersistence, relkind <> 'r' OR relhasrules OR relhassubclass OR relhastriggers,
        relchecks > 0 OR relrowsecurity
    ) FROM pg_class WHERE oid = to_regclass(%s))
FROM pg_attribute WHERE attrelid = to_regclass(%s) AND attnum > 0 AND NOT attisdropped"""

# Rules, a view's table, and triggers other than BEFORE ... FOR EACH ROW (3 in tgtype; 4: for INSERT).
_SEES_STATEMENT = """
relkind = 'v' OR relhasrules OR relhastriggers AND EXISTS (
    SELECT FROM pg_trigger WHERE tgrelid = pg_class.oid AND tgtype & 4 > 0 AND tgtype & 3 <> 3
    AND NOT tgisinternal AND NOT tginitdeferred AND tgenabled <> 'D')"""
_TABLE = f"SELECT {_SEES_STATEMENT}, relhassubclass FROM pg_class WHERE oid = to_regclass(%s)"
# Partitions have triggers of their own.
_PARTITIONS = f"""
WITH RECURSIVE tree AS (
    SELECT to_regclass(%s)::oid AS rel UNION ALL SELECT inhrelid FROM tree JOIN pg_inherits ON inhparent = rel
)
SELECT EXISTS (SELECT FROM tree JOIN pg_class ON pg_class.oid = rel WHERE {_SEES_STATEMENT})"""

_INDEX = """
SELECT attname::text FROM pg_index JOIN pg_attribute ON attrelid = indrelid AND attnum = ANY(indkey)
WHERE indexrelid = to_regclass(format('%%I.%%I', %s::text, %s::text)) AND NOT 0 = ANY(indkey)
AND (indrelid = to_regclass(%s) OR to_regclass(%s) IN (SELECT relid FROM pg_partition_ancestors(indrelid)))"""

# A statement takes several times its size of memory, here and in PostgreSQL, and a group may be of any size.
_STATEMENT_BYTES = 8 << 20

# Tags, as JSON, of what the store keeps in another form than `json.dumps`: an integer of more than 64 bits as a text,
# and a dict with keys that are no texts as a list of pairs.  Both restore exactly, and neither is what a JSON column
# should hold.  An argument of that name makes no difference but time.
_OTHER_FORMS = (b'"int"', b'"pairs"')
_WORDS = {True: "true", False: "false", None: "null"}

# The parts of a table's name, schema first.
Table = tuple[str, ...]
Sources = tuple[Source | None, ...]


class RowWriter:
    """Inserts rows on one connection.  Knows the tables' columns until `forget`.

    A stale type would silently lose part of a value (a time of day through `date`), so each transaction takes the lock
    that its INSERT takes anyway, and then asks the catalog.
    """

    def __init__(self, behind_rows: Callable[[Any], None] | None = None) -> None:
        """`behind_rows` gets the driver's connection behind an INSERT whose table's code may have changed settings."""
        self._behind_rows = behind_rows
        self._types = ColumnTypes()
        self._columns: dict[Table, dict[str, ColumnType]] = {}
        # `pg_class.relpersistence`: whether a crash or the connection's end empties a table.
        self._persistence: dict[Table, str] = {}
        # Whether a table has triggers or rules, which may have changed settings, since `forget`.
        self.ran_code = False
        # Tables whose rows run no code of the database's: no trigger, default, check, policy or type of its own.
        self._plain: set[Table] = set()
        # Whether a table gets a statement for each row.
        self._row_by_row: dict[Table, bool] = {}
        # By table, columns, kinds of values and JSON columns.
        self._chosen: dict[tuple[object, ...], Sources] = {}

    def forget(self) -> None:
        """A transaction has ended, so tables may change."""
        self._types.forget()
        self._columns.clear()
        self._persistence.clear()
        self._plain.clear()
        self.ran_code = False
        self._row_by_row.clear()
        self._chosen.clear()

    def insert(
        self,
        cursor: Cursor,
        table: Table,
        names: tuple[str, ...],
        records: Sequence[Record],
        json_values: frozenset[str] = frozenset(),
        *,
        may_vanish: bool = True,
    ) -> int:
        """Insert one row for each record, all of which have exactly the arguments `names`, in order.

        Returns how many rows PostgreSQL has written.  In columns of `json_values` a text is a JSON string.  Raises
        `OperationFault` for a missing column, and for a table that a crash empties unless rows `may_vanish`.
        """
        if not names:
            written, self.ran_code = 0, True
            for _ in records:
                written += self._execute(cursor, table, f"INSERT INTO {quote_table(table)} DEFAULT VALUES")
            return written
        columns = self.columns_of(cursor, table, names)
        if not may_vanish:
            _check_kept(table, self._persistence.get(table, "p"))
        row_by_row = len(records) > 1 and self._goes_row_by_row(cursor, table)
        written = 0
        for sources, run in self.runs(table, columns, names, records, json_values):
            statement = _statement(table, columns, names, sources)
            for part in _parts(run, 0 if row_by_row else _STATEMENT_BYTES):
                written += self._execute(cursor, table, statement, json_of(part))
        return written

    def _execute(self, cursor: Cursor, table: Table, statement: str, *parameters: str) -> int:
        cursor.execute(statement, parameters or None)
        written = cursor.rowcount
        # To set them again takes as long as a short INSERT.
        if self._behind_rows is not None and table not in self._plain:
            self._behind_rows(cursor.connection)
        return written

    def _goes_row_by_row(self, cursor: Cursor, table: Table) -> bool:
        """Whether something that runs for an INSERT would see the rows behind its own, which no single INSERT has."""
        known = self._row_by_row.get(table)
        if known is None:
            name = quote_table(table)
            cursor.execute(_TABLE, (name,))
            sees, has_partitions = cursor.fetchone()
            if has_partitions and not sees:
                cursor.execute(_PARTITIONS, (name,))
                (sees,) = cursor.fetchone()
            known = self._row_by_row[table] = bool(sees)
        return known

    def columns_of(self, cursor: Cursor, table: Table, names: Sequence[str]) -> dict[str, ColumnType]:
        """The columns of a table, by name, with `names` among them; raises `OperationFault` for a missing one."""
        known = self._columns.get(table)
        if known is None:
            name = quote_table(table)
            # Analysing an INSERT takes its locks, and only them: neither partitions nor what is below a view.
            analyse = f"EXPLAIN INSERT INTO {name} DEFAULT VALUES;".replace("%", "%%")
            cursor.execute(analyse + _COLUMNS, (name, name))
            rows = cursor.fetchall()
            for *_, (persistence, has_triggers, has_rules) in rows[:1]:
                self._persistence[table] = persistence
                self.ran_code |= has_triggers == "t"
                if "t" not in (has_triggers, has_rules) and not any(map(_may_run_code, rows)):
                    self._plain.add(table)
            known = self._columns[table] = self._types.of(
                cursor, [(column, type_name, int(oid)) for column, type_name, oid, *_ in rows]
            )
        missing = [name for name in names if name not in known]
        if missing:
            name = ".".join(table)
            raise OperationFault(f"table {name!r} has no column {missing[0]!r}", hint="add it; the entries wait")
        return known

    def runs(
        self,
        table: Table,
        columns: dict[str, ColumnType],
        names: tuple[str, ...],
        records: Iterable[Record],
        json_values: frozenset[str],
    ) -> Iterator[tuple[Sources, list[Record]]]:
        """Neighbours that one statement can insert, with how it reads them: a column has one type in a statement."""
        merged: Sources = (None,) * len(names)
        run: list[Record] = []
        for item in records:
            kinds = kinds_of(item.args, item.types)
            own = self._chosen.get((table, names, kinds, json_values))
            if own is None:
                own = sources_of(columns, names, kinds, json_values)
                self._chosen[table, names, kinds, json_values] = own
            together = own if own == merged else _merge(merged, own)
            if together is None:
                yield merged, run
                together, run = own, []
            merged = together
            run.append(item)
        yield merged, run


def _may_run_code(column: tuple[Any, ...]) -> bool:
    """Whether a column has a default, or a type of the database's own, such as a domain with a check."""
    _, _, oid, has_default, *_ = column
    return bool(has_default) or int(oid) >= _FIRST_OWN_OID


def _check_kept(table: Table, persistence: str) -> None:
    """Raise `OperationFault` for a table whose rows vanish by themselves."""
    if persistence == "u":
        raise OperationFault(
            f"table {'.'.join(table)!r} is UNLOGGED: a crash of PostgreSQL empties it",
            hint="ALTER TABLE ... SET LOGGED, or declare the operation with may_vanish=True; the entries wait",
        )
    if persistence == "t":
        raise OperationFault(
            f"table {'.'.join(table)!r} is a temporary table of the relay's connection",
            hint="a trigger or a function has made it: give it another name; the entries wait",
        )


def _parts(records: Iterable[Record], most_bytes: int) -> Iterator[list[Record]]:
    """Neighbours with at most so many bytes of arguments; one that has more is alone."""
    part: list[Record] = []
    size = 0
    for one in records:
        size += len(one.args)
        if part and size > most_bytes:
            yield part
            part, size = [], len(one.args)
        part.append(one)
    yield part


def columns_of_index(cursor: Cursor, table: Table, schema: str, index: str) -> list[str]:
    """The columns of an index of `table` or of a partition of it.

    None where it is another table's, or is on expressions.
    """
    name = quote_table(table)
    cursor.execute(_INDEX, (schema, index, name, name))
    return [row[0] for row in cursor.fetchall()]


def quote(name: str) -> str:
    """`name` as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def quote_table(table: Table) -> str:
    """A table's quoted name."""
    return ".".join(quote(part) for part in table)


def _merge(one: Sources, other: Sources) -> Sources | None:
    """What reads both, or None where a column would need two types; a NULL goes with every type."""
    both = []
    for left, right in zip(one, other, strict=True):
        if left is not None and right is not None and left != right:
            return None
        both.append(left or right)
    return tuple(both)


def _statement(table: Table, columns: dict[str, ColumnType], names: Sequence[str], sources: Sources) -> str:
    read = [source or Source(columns[name].name) for name, source in zip(names, sources, strict=True)]
    quoted = [quote(name) for name in names]
    values = ", ".join(source.expression.replace(VALUE, name) for name, source in zip(quoted, read, strict=True))
    types = ", ".join(f"{name} {source.type}" for name, source in zip(quoted, read, strict=True))
    # json, not jsonb: it keeps each number's text, and is not parsed twice.
    before = f"INSERT INTO {quote_table(table)} ({', '.join(quoted)}) SELECT {values} FROM json_to_recordset("
    return before.replace("%", "%%") + "%s" + f") AS row ({types})".replace("%", "%%")


def json_of(records: Sequence[Record]) -> str:
    """A JSON array with an object of the arguments for each record, as `json.dumps` writes them."""
    return (b"[" + b",".join(_document(one) for one in records) + b"]").decode()


def _document(record: Record) -> bytes:
    if not any(form in record.types for form in _OTHER_FORMS):
        return record.args
    try:
        return codec.to_json(_value(codec.from_json(record.args), codec.from_json(record.types)))
    except codec.MALFORMED as exc:
        raise codec.malformed(exc) from exc


def _value(plain: Any, tag: Any) -> Any:
    tag = codec.tag_within(tag[2] if isinstance(tag, list) and tag[0] == "record" else tag)
    if tag == "int":
        return codec.raw_json(plain.encode())
    if not isinstance(tag, dict):
        return plain
    ((name, marks),) = tag.items()
    if name == "dict":
        return {key: _value(item, marks.get(key)) for key, item in plain.items()}
    items = [_value(item, marks.get(str(index))) for index, item in enumerate(plain)]
    if name != "pairs":
        return items
    texts = [_key(pair[0]) for pair in plain]
    keys = [text for text in texts if text is not None]
    if len({*keys}) < len(plain):
        # A tuple has no text, and of two equal texts an object would keep one.
        return items
    values = {key: value for key, (_, value) in zip(keys, items, strict=True)}
    return {key: values[key] for key in sorted(values)}


def _key(key: Any) -> str | None:
    """The text of a dict's key; None where it has none.  Dates, decimals and the like are stored as texts."""
    if isinstance(key, str):
        return key
    if key is None or isinstance(key, bool):
        return _WORDS[key]
    return repr(key) if isinstance(key, int | float) else None


_COMPOSITE = "C"

_TYPES = """
WITH RECURSIVE base AS (
    SELECT oid AS typ, oid, typtype, typbasetype, typcategory, typelem, typrelid FROM pg_type WHERE oid = ANY(%s::oid[])
    UNION ALL
    SELECT base.typ, one.oid, one.typtype, one.typbasetype, one.typcategory, one.typelem, one.typrelid
    FROM base JOIN pg_type one ON base.typtype = 'd' AND one.oid = base.typbasetype
)
SELECT typ::bigint, oid::bigint, typcategory::text, typelem::bigint, ARRAY(
        SELECT format_type(atttypid, atttypmod) FROM pg_attribute
        WHERE attrelid = typrelid AND typrelid <> 0 AND attnum > 0 AND NOT attisdropped ORDER BY attnum)
FROM base WHERE typtype <> 'd'"""

_CASTS = """
SELECT casttarget::bigint, castsource::bigint FROM pg_cast
WHERE castcontext IN ('a', 'i') AND casttarget = ANY(%s::oid[]) AND castsource = ANY(%s::oid[])"""


class ColumnTypes:
    """What is known of types, by object id.  Holds for one connection: types do not change, casts hardly ever do.

    But a composite type's attributes do, like a table's columns.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[int, str], ColumnType] = {}

    def of(self, cursor: Cursor, columns: Iterable[tuple[str, str, int]]) -> dict[str, ColumnType]:
        """The types of `(column, type name, type oid)` by column."""
        columns = list(columns)
        missing = {(oid, name) for _, name, oid in columns} - self._known.keys()
        if missing:
            self._learn(cursor, missing)
        return {column: self._known[oid, name] for column, name, oid in columns}

    def forget(self) -> None:
        """A transaction has ended, so types may be altered."""
        for key in [key for key, known in self._known.items() if known.category == _COMPOSITE]:
            del self._known[key]

    def _learn(self, cursor: Cursor, missing: set[tuple[int, str]]) -> None:
        bases = _bases(cursor, {oid for oid, _ in missing})
        elements = _bases(cursor, {element for _, category, element, _ in bases.values() if category == "A"} - {0})
        leaves = {**bases}
        for oid, (_, category, element, _) in bases.items():
            if category == "A" and element in elements:
                leaves[oid] = elements[element]
        cursor.execute(_CASTS, (_ids(leaf[0] for leaf in leaves.values()), _ids(OIDS.values())))
        casts: dict[int, set[str]] = {}
        for target, source in cursor.fetchall():
            casts.setdefault(int(target), set()).add(TYPE_NAMES[int(source)])
        for oid, name in missing:
            leaf, category, _, attributes = leaves[oid]
            self._known[oid, name] = ColumnType(
                name=name,
                oid=leaf,
                category=category,
                is_array=bases[oid][1] == "A",
                attributes=attributes,
                assignable=frozenset(casts.get(leaf, ())),
            )


def _bases(cursor: Cursor, oids: set[int]) -> dict[int, tuple[int, str, int, tuple[str, ...]]]:
    """By type: the type below its domains, its category, the type of its elements, its attributes' types."""
    if not oids:
        return {}
    cursor.execute(_TYPES, (_ids(oids),))
    return {
        int(typ): (int(oid), category, int(element), tuple(attributes))
        for typ, oid, category, element, attributes in cursor.fetchall()
    }


def _ids(oids: Iterable[int]) -> str:
    return "{" + ",".join(str(oid) for oid in sorted(set(oids))) + "}"
