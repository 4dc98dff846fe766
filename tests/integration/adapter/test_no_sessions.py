"""A manager that has no sessions is asked nothing about them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import sessionmaker

from outbox.integrations.durable import ManagerOperation

from .small import Scene, scene


class Notes:
    def __init__(self, url: str) -> None:
        self.engine = create_engine("postgresql+psycopg2://" + url.partition("://")[2])
        self.session_factory = sessionmaker(self.engine)
        with self.engine.begin() as connection:
            connection.execute(text("CREATE TABLE IF NOT EXISTS notes (what text)"))

    def note(self, what: str) -> None:
        with self.session_factory.begin() as session:
            session.execute(text("INSERT INTO notes VALUES (:what)"), {"what": what})


def test_background_work_without_sessions_connects_to_nothing(
    postgres_url: str, outbox_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[Any] = []
    with scene(postgres_url, outbox_dir, Notes, (ManagerOperation("note"),)) as here:
        _note(here)
        keeper, engine = here.manager._adapter.keeper, here.manager.engine
        monkeypatch.setattr(engine, "connect", lambda *args, **kwargs: made.append(args))
        keeper._tend()
    assert made == []


def _note(here: Scene) -> None:
    here.manager.note("a")
    assert here.drain()
    assert here.rows("SELECT * FROM notes") == [("a",)]
