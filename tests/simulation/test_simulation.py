"""Simulated lives end well, and each deliberate defect makes some of them end badly."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from .__main__ import replay, violations_of
from .defects import DEFECTS
from .world import World

_PER_TEST = 40


@pytest.fixture(autouse=True)
def quiet() -> Any:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("first", range(0, 10 * _PER_TEST, _PER_TEST))
def test_simulated_lives_violate_nothing(first: int) -> None:
    seeds = range(first, first + _PER_TEST)
    bad = {replay(seed): found for seed in seeds if (found := violations_of(seed))}
    assert bad == {}


def test_every_kind_of_fault_strikes() -> None:
    struck: Counter[str] = Counter()
    for seed in range(60):
        world = World(seed)
        world.run()
        struck.update(world.database.struck)
        struck.update(world.environment.struck)
    assert set(struck) == {
        "refused", "cut before commit", "cut after commit", "cut after the answer", "read only",
        "deadlock", "stall", "misconfigured", "defect",
        "killed before commit", "killed after commit",
        "failed and lost", "failed and kept", "killed and lost", "killed and kept", "full", "truncated",
    }  # fmt: skip


def test_a_seed_gives_the_same_life_twice() -> None:
    said: list[list[str]] = [[], []]
    for lines in said:
        World(7, lines.append).run()
    assert said[0] == said[1]
    assert len(said[0]) > 20


@pytest.mark.parametrize("defect", DEFECTS, ids=lambda defect: defect.__name__)
def test_a_defect_is_found(defect: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    defect(monkeypatch)
    assert any(violations_of(seed) for seed in range(2000)), f"{defect.__name__} was not found in 2000 seeds"
