"""SQL text: what the statements of a text do, as far as their words show.

A text may have several statements: what holds for the first need not hold for the rest.  Names and words inside
strings and comments are not looked at.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache, wraps
from itertools import pairwise
from typing import TypeVar

T = TypeVar("T")

# What is quoted or said in a comment; the name of a table or column may be quoted too.
_QUOTED = re.compile(
    r"""\bE'(?:[^'\\]|\\.|'')*' | '(?:[^']|'')*' | "(?P<name>(?:[^"]|"")*)" | \$(?P<tag>\w*)\$.*?\$(?P=tag)\$
      | --[^\n]* | /\*.*?\*/""",
    re.IGNORECASE | re.DOTALL | re.VERBOSE,
)
_BEFORE = re.compile(r"(?:\s|--[^\n]*(?:\n|$)|/\*.*?\*/|\()*", re.DOTALL)

_SETTING = re.compile(
    r"SET\s+(?:(LOCAL|SESSION)\s+)?(?:(TIME\s+ZONE)\b|([A-Za-z_][A-Za-z0-9_.]*)\s*(?:=|\bTO\b))", re.IGNORECASE
)
_ISOLATION = re.compile(r"SET\s+(TRANSACTION|SESSION\s+CHARACTERISTICS)\b", re.IGNORECASE)
_OF_SAVEPOINT = re.compile(r"(SAVEPOINT|RELEASE|ROLLBACK)\b", re.IGNORECASE)
_OF_SESSION = re.compile(r"(SET|SHOW|RESET|BEGIN|START|SAVEPOINT|RELEASE|ROLLBACK|COMMIT|DISCARD)\b", re.IGNORECASE)
_CONSTANT = re.compile(r"SELECT\b(?!.*(\bFROM\b|\())", re.IGNORECASE | re.DOTALL)
_READS = re.compile(
    r"(SELECT|SHOW|VALUES|TABLE|FETCH|DECLARE|CLOSE|EXPLAIN(?!.*\bANALY[SZ]E\b))\b"
    r"|WITH\b(?!.*\b(INSERT|UPDATE|DELETE|MERGE)\b)",
    re.IGNORECASE | re.DOTALL,
)
_QUERY = re.compile(r"(SELECT|INSERT|UPDATE|DELETE|WITH|MERGE)\b", re.IGNORECASE)
# Statements that change rows which are there, or make rows of them; not those that insert what is missing.
_LOOKS = re.compile(
    r"(UPDATE|DELETE|MERGE)\b|WITH\b.*(?:(?<!FOR )(?<!KEY )(?<!DO )UPDATE|DELETE|MERGE)\b"
    r"|(WITH\b.*)?INSERT\b(?!.*(\bVALUES\b|\bON\s+CONFLICT\b|\bNOT\s+EXISTS\b)).*\bFROM\b",
    re.IGNORECASE | re.DOTALL,
)
_LOCKS = re.compile(r"\bFOR\s+(NO\s+KEY\s+)?UPDATE\b|\bFOR\s+(KEY\s+)?SHARE\b|\bpg_(try_)?advisory_", re.IGNORECASE)
_DEFINES = re.compile(r"(CREATE|DROP|TRUNCATE|ALTER)\b", re.IGNORECASE)
# The table that a statement writes, where it begins with its name.
_WRITTEN = re.compile(
    r"(?:INSERT\s+INTO|UPDATE(?:\s+ONLY)?|DELETE\s+FROM(?:\s+ONLY)?|MERGE\s+INTO|TRUNCATE(?:\s+TABLE)?)\s+([\w\".]+)",
    re.IGNORECASE,
)
_WRITES_PLAINLY = re.compile(r"(INSERT\s+INTO|UPDATE\s+\S+\s+SET|DELETE\s+FROM|TRUNCATE|MERGE\s+INTO)\b", re.IGNORECASE)

# Longer texts have their values in them, and do not come again.
_KEPT_CHARS = 10_000


def _kept(function: Callable[[str], T]) -> Callable[[str], T]:
    """Remember what a function found of the texts that may come again."""
    remembered = lru_cache(maxsize=1024)(function)

    @wraps(function)
    def found(text: str) -> T:
        return remembered(text) if len(text) <= _KEPT_CHARS else function(text)

    return found


def bare(text: str) -> str:
    """The text, as long as it is, with blanks for what is quoted or said in a comment, but for quoted names."""
    return _QUOTED.sub(_blank, text)


def _blank(found: re.Match[str]) -> str:
    name = found["name"]
    return " " * len(found[0]) if name is None else '"' + re.sub(r"\W", "_", name) + '"'


def pieces(text: str) -> list[str]:
    """The text as one piece for each statement, with its semicolon; together they are the text."""
    ends = [found.end() for found in re.finditer(";", bare(text))] if ";" in text else []
    return [text[first:end] for first, end in pairwise((0, *ends, len(text)))]


@_kept
def statements(text: str) -> tuple[str, ...]:
    """The statements of a text, from their first word on: without what only separates them."""
    found = (one[_BEFORE.match(one).end() :].rstrip("; \t\r\n") for one in pieces(text))  # type: ignore[union-attr]
    return tuple(one for one in found if one)


def _are_all(kind: re.Pattern[str], text: str) -> bool:
    found = statements(text)
    return bool(found) and all(map(kind.match, found))


@_kept
def is_setting(text: str) -> bool:
    """Whether all of it is settings, by which nothing is read or written."""
    return _are_all(_SETTING, text)


@_kept
def is_of_savepoints(text: str) -> bool:
    """Whether all of it makes or ends savepoints, or ends a transaction without effect."""
    return _are_all(_OF_SAVEPOINT, text)


@_kept
def is_contact(text: str) -> bool:
    """Whether it turns to the database for more than settings, or savepoints."""
    return not (is_of_savepoints(text) or is_setting(text))


@_kept
def isolates(text: str) -> bool:
    """Whether it sets an isolation level."""
    return any(map(_ISOLATION.match, statements(text)))


@_kept
def is_of_session(text: str) -> bool:
    """Whether all of it concerns the session or the transaction, and asks for nothing."""
    return _are_all(_OF_SESSION, text)


@_kept
def is_harmless(text: str) -> bool:
    """Whether no part of it reads or writes a table."""
    return all(_OF_SESSION.match(one) or _CONSTANT.match(one) for one in statements(text))


@_kept
def only_reads(text: str) -> bool:
    """Whether all of it is settings, savepoints and queries; the functions that these call may write."""
    return all(_READS.match(one) or _SETTING.match(one) or _OF_SAVEPOINT.match(one) for one in statements(text))


@_kept
def is_query(text: str) -> bool:
    """Whether it is SQL that names tables, perhaps behind settings."""
    found = [one for one in statements(text) if not _SETTING.match(one)]
    return bool(found) and all(map(_QUERY.match, found))


@_kept
def looks_for_rows(text: str) -> bool:
    """Whether its last statement, of which the driver tells the number of rows, writes what it finds in other rows."""
    found = statements(text)
    return bool(found) and _LOOKS.match(" ".join(bare(found[-1]).split())) is not None


@_kept
def locks(text: str) -> bool:
    """Whether it is a query that locks rows, or takes an advisory lock."""
    return _LOCKS.search(bare(text)) is not None


@_kept
def defines(text: str) -> bool:
    """Whether it makes, alters, empties or drops a table or something else."""
    return any(map(_DEFINES.match, statements(text)))


@_kept
def tables_written(text: str) -> frozenset[str]:
    """The tables that it writes, without their schemas; "" among them for a statement that does not begin with one."""
    found = set[str]()
    for one in statements(text):
        table = _WRITTEN.match(one)
        if table is not None:
            found.add(table[1].rpartition(".")[2].strip('"'))
        elif not (_READS.match(one) or _OF_SESSION.match(one)):
            found.add("")
    return frozenset(found or {""})


@_kept
def writes_plainly(text: str) -> bool:
    """Whether one of its statements begins as one that writes rows."""
    return any(map(_WRITES_PLAINLY.match, statements(text)))
