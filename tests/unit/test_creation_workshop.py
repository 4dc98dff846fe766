"""Temporary directories and files: removed at their end, and by the next command where a process was killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from outbox.store import creation as module
from outbox.store.creation import clear, prefix_of, workpiece, workshop

MAKES = """
import sys, time
from pathlib import Path
from outbox.store.creation import workpiece, workshop
with workshop(".x.making-", Path(sys.argv[1])) as folder, workpiece(".x.writing-", Path(sys.argv[1])):
    (folder / "data").write_bytes(b"confidential")
    print("made", flush=True)
    time.sleep(600)
"""
PREFIXES = (".x.making-", ".x.writing-")


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process in the middle of its work."""
    with subprocess.Popen([sys.executable, "-c", MAKES, str(tmp_path)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "made\n"
        yield process
        process.kill()


def names(folder: Path) -> list[str]:
    return sorted(path.name.rpartition("-")[0] for path in folder.iterdir())


@pytest.mark.slow
def test_leftovers_of_a_killed_process_are_removed(maker: subprocess.Popen[str], tmp_path: Path) -> None:
    maker.send_signal(signal.SIGKILL)
    maker.wait()
    assert names(tmp_path) == [".x.making", ".x.writing"]
    with workshop(".x.making-", tmp_path), workpiece(".x.writing-", tmp_path):
        assert names(tmp_path) == [".x.making", ".x.writing"]
    assert names(tmp_path) == []


@pytest.mark.slow
def test_what_a_living_process_makes_stays(maker: subprocess.Popen[str], tmp_path: Path) -> None:
    with workshop(".x.making-", tmp_path), workpiece(".x.writing-", tmp_path):
        assert len(names(tmp_path)) == 4
    for prefix in PREFIXES:
        clear(prefix, tmp_path)
    assert names(tmp_path) == [".x.making", ".x.writing"]


@pytest.mark.parametrize("make", [workshop, workpiece])
def test_only_what_has_the_prefix_is_removed(make: Callable[..., object], tmp_path: Path) -> None:
    (tmp_path / ".x.json").write_text("a user's")
    (tmp_path / ".xx.making-").mkdir()
    for prefix in PREFIXES:
        clear(prefix, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {".x.json", ".xx.making-"}


def test_link_with_the_prefix_is_left_alone(tmp_path: Path) -> None:
    """In a folder of all users, as /tmp, it may be another user's trap."""
    kept = tmp_path / "kept"
    kept.mkdir()
    (tmp_path / ".x.making-trap").symlink_to(kept)
    clear(".x.making-", tmp_path)
    assert kept.is_dir()
    assert (tmp_path / ".x.making-trap").is_symlink()


def test_what_is_another_users_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".x.making-1").mkdir()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    clear(".x.making-", tmp_path)
    assert (tmp_path / ".x.making-1").is_dir()


@pytest.mark.parametrize("make", [workshop, workpiece])
def test_what_is_taken_for_a_leftover_at_once_is_made_again(
    make: Callable[..., object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its making and its lock another command may look."""
    hold, looks = module._hold, iter([True, True, False])

    def late(descriptor: int) -> None:
        if next(looks):
            clear(".x.", tmp_path)
        hold(descriptor)

    monkeypatch.setattr(module, "_hold", late)
    with make(".x.making-", tmp_path):  # type: ignore[attr-defined]
        assert names(tmp_path) == [".x.making"]
    assert names(tmp_path) == []


def test_what_was_moved_away_stays(tmp_path: Path) -> None:
    with workshop(".x.making-", tmp_path) as folder:
        folder.rename(tmp_path / "x")
    with workpiece(".y.writing-", tmp_path) as (path, _):
        path.rename(tmp_path / "y")
    assert {path.name for path in tmp_path.iterdir()} == {"x", "y"}


def test_folder_that_cannot_be_listed_is_no_hindrance(tmp_path: Path) -> None:
    clear(".x.making-", tmp_path / "absent")


def test_prefix_leaves_room_in_a_name(tmp_path: Path) -> None:
    name = "ü" * 127
    with workpiece(prefix_of(name, "writing"), tmp_path) as (path, _):
        path.rename(tmp_path / name)
