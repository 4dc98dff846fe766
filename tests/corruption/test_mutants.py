"""Some of the mutants; `make corruption` judges ten thousand."""

from __future__ import annotations

import pytest

from .campaign import run
from .judge import CLEAN, QUARANTINE, REFUSED, REPORTED

_PER_TEST = 50


@pytest.mark.parametrize("first", range(1, 6 * _PER_TEST, _PER_TEST))
def test_damaged_store_is_reported_and_its_untouched_part_is_salvaged(first: int) -> None:
    verdicts = run(first, first + _PER_TEST)
    assert [verdict for verdict in verdicts if verdict.wrong] == []
    assert [verdict.number for verdict in verdicts] == list(range(first, first + _PER_TEST))
    outcomes = {verdict.outcome.partition(":")[0] for verdict in verdicts}
    # The damage has struck, and nothing else became of it.
    assert {REFUSED} < outcomes <= {CLEAN, QUARANTINE, REPORTED, REFUSED}
    assert sum(verdict.salvaged for verdict in verdicts) >= sum(verdict.untouched for verdict in verdicts) > 0
