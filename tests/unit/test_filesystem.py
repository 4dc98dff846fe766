"""Telling files apart without asking for their times, and where files lie."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from outbox import filesystem
from outbox.filesystem import file_identity

Ask = Callable[[Path], tuple[int, int, int]]


def refused(*_: object) -> int:
    return -1


@pytest.fixture(params=["statx", "refused", "absent"])
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ask:
    if request.param != "statx":
        monkeypatch.setattr(filesystem, "_statx", {"refused": refused, "absent": None}[request.param])
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


MOUNTS = """\
21 1 0:20 / / rw - ext4 /dev/root rw
22 21 0:21 / /srv rw - xfs /dev/sdb rw
23 22 0:22 / /srv/with\\040space rw shared:1 - nfs4 host:/x rw
24 21 0:23 / /srv/with rw - tmpfs tmpfs rw
"""


@pytest.mark.parametrize(
    ("path", "kind"),
    [("/home", "ext4"), ("/srv", "xfs"), ("/srvx", "ext4"), ("/srv/a/b", "xfs"), ("/srv/with space/a", "nfs4")],
)
def test_the_file_system_is_that_of_the_innermost_mount(monkeypatch: pytest.MonkeyPatch, path: str, kind: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self: MOUNTS)
    assert filesystem.filesystem_of(Path(path)) == kind


def test_a_platform_that_does_not_tell_its_file_systems_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", fail)
    filesystem.refuse_remote(Path("/srv"))
