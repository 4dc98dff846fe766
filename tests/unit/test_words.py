"""A message says "1 entry", and "0 entries"."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from outbox.relay.reconcile_orders import Reconciliation
from outbox.words import counted, entries, first_line

ROOT = Path(__file__).resolve().parents[2]
# A number of something that is counted, put into a sentence without `counted`.
_UNCOUNTED = re.compile(r"\{[^{}]*\} (entries|dead letters|damaged entries|rows|calls)\b|%\(\w+\)s entries")
# These are never 1.
_MANY = ("_MAX_GROUP", "len(peeked.damaged)")


@pytest.mark.parametrize(("count", "said"), [(0, "0 entries"), (1, "1 entry"), (2, "2 entries")])
def test_a_count_has_its_words(count: int, said: str) -> None:
    assert entries(count) == said
    assert counted(count, "entry", "entries") == said


def test_no_message_puts_a_count_before_a_plural() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {line.strip()}"
        for folder in ("outbox", "cli")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if _UNCOUNTED.search(line) and not any(one in line for one in _MANY)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("put_back", "said"),
    [
        (0, "compared 1 entry, none was missing"),
        (1, "compared 1 entry, 1 was missing and was put back (first 3, last 4)"),
        (2, "compared 1 entry, 2 were missing and were put back (first 3, last 4)"),
    ],
)
def test_a_reconciliation_is_one_sentence(put_back: int, said: str) -> None:
    assert Reconciliation(compared=1, put_back=put_back, first_seq=3, last_seq=4).sentence() == said


def test_error_with_several_lines_is_said_in_its_first() -> None:
    assert first_line(ValueError("\nconnection refused\n\n[SQL: connect]")) == "connection refused"


def test_error_without_text_is_said_by_its_class() -> None:
    assert first_line(TimeoutError()) == "TimeoutError()"
