"""What a row gets where an argument is left out is not answered by what it gets where one is given."""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from outbox.integrations.view.local_view import UnknownLocally
from tests.unit.fakes.waiting import until

from .small import Scene, scene
from .test_thresholds import BookManager


class Defaulting(BookManager):
    seen = 6

    def log_position(self, symbol: str, size: Any, score: float = 2.5) -> int:  # type: ignore[override]
        return super().log_position(symbol, size, score)


class Filling(BookManager):
    """Its signature does not show the default."""

    seen = 6

    def log_position(self, symbol: str, size: Any, **extra: Any) -> int:  # type: ignore[override]
        extra.setdefault("score", 7.5)
        return super().log_position(symbol, size, **extra)


class Computing(BookManager):
    seen = 10

    def log_position(self, symbol: str, size: Any, **extra: Any) -> int:  # type: ignore[override]
        return super().log_position(symbol, size, 3 * extra["score"] + len(symbol) if extra else 7.5)


@pytest.fixture
def here(request: pytest.FixtureRequest, postgres_url: str, outbox_dir: Path) -> Iterator[Scene]:
    with scene(postgres_url, outbox_dir, request.param) as made:
        made.relay.start()
        made.manager.create_trading_session()
        for number, score in enumerate((None, None, 1.25, 4.5, 5.5, 6.5, None, None, None, None)[: made.manager.seen]):
            given = {} if score is None else {"score": score}
            made.manager.log_position(f"A{number}", Decimal(20 + number), **given)
        assert made.drain()
        until(lambda: made.manager._adapter.view.is_sure(made.manager._current_session_id))
        made.relay.stop()
        yield made


def opened(here: Scene, *scores: float) -> Any:
    """The positions after one was opened, as the outage shows them, and as PostgreSQL does then."""
    given = {"score": scores[0]} if scores else {}
    here.manager.log_position("B", Decimal(70), **given)
    seen = here.manager.get_active_positions()
    assert here.drain()
    return seen, here.manager.get_active_positions()


@pytest.mark.parametrize("here", [Defaulting, Filling], indirect=True)
@pytest.mark.parametrize("scores", [(), (9.5,)])
def test_default_is_shown_as_the_manager_shows_it(here: Scene, scores: tuple[float, ...]) -> None:
    seen, plain = opened(here, *scores)
    assert seen == plain


@pytest.mark.parametrize("here", [Computing], indirect=True)
def test_value_is_told_apart_by_which_arguments_are_given(here: Scene) -> None:
    with pytest.raises(UnknownLocally, match="score"):
        opened(here, 9.5)
    assert here.drain()
    until(lambda: here.manager._adapter.view.is_sure(here.manager._current_session_id))
    seen, plain = opened(here)
    assert seen == plain


@pytest.mark.parametrize("manager", [Defaulting, Filling])
def test_argument_that_was_always_given_has_a_default(manager: Any, postgres_url: str, outbox_dir: Path) -> None:
    with scene(postgres_url, outbox_dir, manager) as here:
        here.relay.start()
        here.manager.create_trading_session()
        for number, score in enumerate((1.25, 4.5, 5.5, 6.5)):
            here.manager.log_position(f"A{number}", Decimal(20 + number), score=score)
        assert here.drain()
        until(lambda: here.manager._adapter.view.is_sure(here.manager._current_session_id))
        here.relay.stop()
        if manager is Filling:
            with pytest.raises(UnknownLocally, match="score is not known"):
                opened(here)
        else:
            seen, plain = opened(here)
            assert seen == plain
