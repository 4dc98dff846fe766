"""What an SQL text does is what all of its statements do, whatever stands before, between and inside them."""

from __future__ import annotations

import pytest

from outbox.integrations import sql_text


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", ()),
        (" ; ;", ()),
        ("SELECT 1", ("SELECT 1",)),
        ("SELECT 1;", ("SELECT 1",)),
        ("-- hint\n/* a; b */ (SELECT 1); UPDATE t SET a = ';'", ("SELECT 1)", "UPDATE t SET a = ';'")),
        ("SELECT 'it''s;', \"a;b\", E'\\';', $$a;b$$, $x$ ; $$ ; $x$ -- ;\n; COMMIT", None),
    ],
)
def test_statements_end_only_at_their_semicolons(text: str, found: tuple[str, ...] | None) -> None:
    if found is None:
        assert [one.split()[0] for one in sql_text.statements(text)] == ["SELECT", "COMMIT"]
    else:
        assert sql_text.statements(text) == found
    assert "".join(sql_text.pieces(text)) == text


@pytest.mark.parametrize(
    ("text", "is_setting", "is_harmless", "only_reads"),
    [
        ("SET LOCAL lock_timeout = '2s'", True, True, True),
        ("/* x */ set time zone 'UTC'; SET a.b TO 1", True, True, True),
        ("SET LOCAL lock_timeout = '2s'; UPDATE t SET a = 1", False, False, False),
        ("SET LOCAL lock_timeout = '2s'; SELECT * FROM t FOR UPDATE", False, False, True),
        ("SELECT 1", False, True, True),
        ("SELECT f()", False, False, True),
        ("SELECT 1; DELETE FROM t", False, False, False),
        ("SAVEPOINT a; INSERT INTO t VALUES (1)", False, False, False),
        ("ROLLBACK TO SAVEPOINT a", False, True, True),
        ("WITH a AS (SELECT 1) SELECT * FROM a", False, False, True),
        ("WITH a AS (DELETE FROM t RETURNING *) SELECT * FROM a", False, False, False),
        ("EXPLAIN SELECT * FROM t", False, False, True),
        ("EXPLAIN (ANALYZE) DELETE FROM t", False, False, False),
        ("", False, True, True),
    ],
)
def test_a_text_is_what_all_of_its_statements_are(
    text: str, is_setting: bool, is_harmless: bool, only_reads: bool
) -> None:
    assert sql_text.is_setting(text) is is_setting
    assert sql_text.is_harmless(text) is is_harmless
    assert sql_text.only_reads(text) is only_reads


@pytest.mark.parametrize(
    ("text", "tables"),
    [
        ("UPDATE t SET a = 1", {"t"}),
        ('SET LOCAL a = 1; UPDATE ONLY s.t SET a = 1; INSERT INTO "u" VALUES (1)', {"t", "u"}),
        ("DELETE FROM t; CALL f()", {"t", ""}),
        ("WITH a AS (SELECT 1) INSERT INTO t SELECT * FROM a", {""}),
        ("SELECT f()", {""}),
    ],
)
def test_tables_written_are_those_of_each_statement(text: str, tables: set[str]) -> None:
    assert sql_text.tables_written(text) == tables


def test_the_last_statement_tells_the_number_of_rows() -> None:
    assert sql_text.looks_for_rows("SET LOCAL a = 1; UPDATE t SET a = 1;")
    assert not sql_text.looks_for_rows("UPDATE t SET a = 1; SELECT 1")


@pytest.mark.parametrize(
    ("text", "looks"),
    [
        ("WITH w AS (SELECT 1) UPDATE t SET a = 1", True),
        ("WITH u AS (\nUPDATE t SET a = 1 RETURNING id) SELECT id FROM u", True),
        ("WITH gone AS (DELETE FROM t RETURNING *) INSERT INTO old SELECT * FROM gone", True),
        ("WITH j AS (SELECT id FROM t FOR UPDATE) SELECT id FROM j", False),
        ("WITH j AS (SELECT id FROM t FOR  NO KEY  UPDATE) SELECT id FROM j", False),
        ("WITH w AS (SELECT 'UPDATE') SELECT 1", False),
        ("INSERT INTO fills SELECT id FROM orders WHERE id = 1", True),
        ("INSERT INTO fills (id) VALUES ((SELECT id FROM orders))", False),
        ("INSERT INTO fills SELECT 1 WHERE NOT EXISTS (SELECT FROM fills)", False),
        ("INSERT INTO fills SELECT id FROM orders ON CONFLICT DO NOTHING", False),
    ],
)
def test_statements_that_write_what_they_find_look_for_rows(text: str, looks: bool) -> None:
    assert sql_text.looks_for_rows(text) is looks


@pytest.mark.parametrize(
    ("text", "locks"),
    [
        ("SELECT id FROM t FOR UPDATE", True),
        ("SELECT id FROM t FOR NO KEY UPDATE SKIP LOCKED", True),
        ("SELECT id FROM t FOR KEY SHARE", True),
        ("SELECT pg_advisory_xact_lock(1)", True),
        ("SELECT 'FOR UPDATE' FROM t", False),
    ],
)
def test_queries_that_lock_are_known_by_their_words(text: str, locks: bool) -> None:
    assert sql_text.locks(text) is locks


def test_long_texts_are_judged_as_short_ones() -> None:
    assert sql_text.is_query("SET a = 1; SELECT 1" + " " * 20_000)
    assert sql_text.defines("SELECT 1; DROP TABLE t" + " " * 20_000)
