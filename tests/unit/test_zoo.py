"""The bug zoo fits the code that it is made for."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.zoo.bugs import BUGS, Bug

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name)
def test_a_bug_can_be_let_loose_and_has_tests_to_catch_it(bug: Bug) -> None:
    source = (ROOT / bug.file).read_text(encoding="utf-8")
    assert source.count(bug.old) == 1
    compile(source.replace(bug.old, bug.new), bug.file, "exec")
    assert [name for name in bug.tests if not (ROOT / name).exists()] == []


def test_names_tell_the_bugs_apart() -> None:
    assert len({bug.name for bug in BUGS}) == len(BUGS) >= 15
