"""Telling files apart without asking for their times."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from outbox import file_identity as module
from outbox.file_identity import file_identity

Ask = Callable[[Path], tuple[int, int, int]]


def refused(*_: object) -> int:
    return -1


@pytest.fixture(params=["statx", "refused", "absent"])
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ask:
    if request.param != "statx":
        monkeypatch.setattr(module, "_statx", {"refused": refused, "absent": None}[request.param])
    return lambda path: file_identity(os.fsencode(path))


def test_it_is_what_stat_says(ask: Ask, tmp_path: Path) -> None:
    for path in (tmp_path, Path("/"), Path("/dev/null"), Path(__file__)):
        info = path.stat()
        assert ask(path) == (info.st_ino, os.major(info.st_dev), os.minor(info.st_dev))


def test_a_link_is_followed_and_another_file_of_the_same_name_is_another(ask: Ask, tmp_path: Path) -> None:
    first, second, link = tmp_path / "first", tmp_path / "second", tmp_path / "link"
    first.write_text("1", encoding="utf-8")
    second.write_text("2", encoding="utf-8")
    link.symlink_to(first)
    before = ask(first)
    assert ask(link) == before
    second.replace(first)
    assert ask(first) != before
    assert ask(link) == ask(first)


def test_it_fails_as_stat_does(ask: Ask, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="absent"):
        ask(tmp_path / "absent")
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        ask(tmp_path / "file" / "below")
    if os.getuid() != 0:
        (tmp_path / "closed").mkdir(mode=0)
        with pytest.raises(PermissionError):
            ask(tmp_path / "closed" / "below")
