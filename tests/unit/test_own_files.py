"""A link or a stranger's file in the place of one of the store's, and what root does in another user's store."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from outbox import ConfigError, Outbox, StoreUnavailable, codec
from outbox.store import own_files
from outbox.store.locks import Role, holder
from outbox.store.own_files import StateFile
from outbox.transfer import exporting

OWNER = 65534
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at the store of another user")
FILES = ["opening.lock", "access.lock", "engine.lock", "lock.mdb", "data.mdb", "outbox.json", "clean"]


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A folder that every user can pass, unlike pytest's own."""
    with tempfile.TemporaryDirectory(prefix="outbox-owner-") as name:
        os.chmod(name, 0o755)  # noqa: S103 - that is the point
        yield Path(name)


def entries_of(directory: Path) -> int:
    with Outbox.attach(directory, readonly=True) as box:
        return box.status().pending


def make(directory: Path, owner: int | None = None) -> Path:
    with Outbox.open(directory) as box:
        box.enqueue("log", {})
    if owner is not None:
        for path in (directory, *directory.iterdir()):
            os.chown(path, owner, owner)
    return directory


def secret(folder: Path) -> Path:
    path = folder / "secret"
    path.write_bytes(b"root:SECRET:1:\n" * 300)
    path.chmod(0o600)
    return path


def untouched(path: Path, owner: int) -> bool:
    info = path.stat()
    whole = path.read_bytes() == b"root:SECRET:1:\n" * 300
    return whole and info.st_uid == owner and stat.S_IMODE(info.st_mode) == 0o600


def touch_everything(use: Callable[[Path], Outbox], directory: Path) -> None:
    with use(directory):
        for role in (Role.ENGINE, Role.RELAY):
            holder(directory, role)
            StateFile(directory / f"{role.value}.state").write({"pid": 1})


@pytest.mark.slow
@pytest.mark.parametrize("link", [os.symlink, os.link])
@pytest.mark.parametrize("name", [*FILES, "engine.state", "relay.state", "relay.lock"])
def test_link_in_the_place_of_a_file_is_not_followed(
    outbox_dir: Path, tmp_path: Path, name: str, link: Callable[[Path, Path], None]
) -> None:
    make(outbox_dir)
    victim = secret(tmp_path)
    (outbox_dir / name).unlink(missing_ok=True)
    link(victim, outbox_dir / name)
    for use in (Outbox.open, Outbox.attach):
        with pytest.raises(StoreUnavailable, match="is a symbolic link|is a file with several links"):
            touch_everything(use, outbox_dir)
    assert untouched(victim, os.geteuid())


def test_pipe_in_the_place_of_a_file_is_refused(outbox_dir: Path) -> None:
    make(outbox_dir)
    (outbox_dir / "opening.lock").unlink()
    os.mkfifo(outbox_dir / "opening.lock")
    with pytest.raises(StoreUnavailable, match="no regular file"):
        Outbox.attach(outbox_dir)


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("name", FILES)
def test_root_gives_nothing_away_through_a_link(reachable: Path, name: str) -> None:
    directory, victim = make(reachable / "store", OWNER), secret(reachable)
    (directory / name).unlink(missing_ok=True)
    (directory / name).symlink_to(victim)
    os.lchown(directory / name, OWNER, OWNER)
    with pytest.raises((StoreUnavailable, PermissionError)):
        Outbox.attach(directory, readonly=True).status()
    assert untouched(victim, 0)


@pytest.mark.slow
@needs_root
def test_root_acts_as_the_owner_of_the_store(reachable: Path) -> None:
    """A file of root's where the owner cannot write is not written to either, nor left behind."""
    directory = make(reachable / "store", OWNER)
    for name in ("access.lock", "clean", "engine.lock", "lock.mdb"):
        (directory / name).unlink()
    with Outbox.open(directory) as box:
        box.enqueue("log", {})
        box.compact(timedelta(0), vacuum=True)
        box._publish_halt(None)
    lines: list[bytes] = []
    exporting.export(directory, lines.append)
    assert {path.name for path in directory.iterdir() if path.stat().st_uid != OWNER} == set()
    assert [codec.from_json(line)["kind"] for line in lines].count("entry") == 2


@pytest.mark.slow
@needs_root
def test_root_opens_a_store_whose_owner_cannot_reach_it(reachable: Path) -> None:
    """As a backup of the owner's store in a folder of root's."""
    directory = make(reachable / "store", OWNER)
    closed = reachable / "closed"
    closed.mkdir(mode=0o700)
    shutil.copytree(directory, closed / "store")
    for path in (closed / "store", *(closed / "store").iterdir()):
        os.chown(path, OWNER, OWNER)
    with Outbox.open(closed / "store") as box:
        assert box.enqueue("log", {}).seq == 2
    assert {path.name for path in (closed / "store").iterdir() if path.stat().st_uid != OWNER} == set()


@needs_root
def test_root_fills_a_mounted_folder_as_its_owner(reachable: Path) -> None:
    folder = reachable / "mounted"
    folder.mkdir(mode=0o700)
    os.chown(folder, OWNER, OWNER)
    make(folder)
    assert {path.stat().st_uid for path in folder.iterdir()} == {OWNER}


@needs_root
def test_root_refuses_where_it_cannot_become_the_owner(reachable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    directory = make(reachable / "store", OWNER)
    monkeypatch.setattr(own_files, "_libc", None)
    with pytest.raises(StoreUnavailable, match="belongs to user 65534.*run this as that user"):
        Outbox.attach(directory)


@pytest.mark.parametrize("mode", [0o777, 0o757])
def test_folder_that_others_may_write_to_gets_no_store(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigError, match=r"can be written to by every user \(mode 0\d{3}\).*chmod o-w"):
        Outbox.open(folder / "outbox")
    assert list(folder.iterdir()) == []
    # What the message proposes.
    Outbox.open(folder / "private" / "outbox").close()


@pytest.mark.parametrize("mode", [0o1777, 0o775, 0o755, 0o700])
def test_folder_with_files_of_their_owners_gets_a_store(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "shared"
    folder.mkdir()
    folder.chmod(mode)
    make(folder / "outbox")
    assert entries_of(folder / "outbox") == 1


def test_existing_store_in_a_shared_folder_is_opened(tmp_path: Path) -> None:
    make(tmp_path / "outbox")
    tmp_path.chmod(0o777)
    make(tmp_path / "outbox")
    assert entries_of(tmp_path / "outbox") == 2


@pytest.mark.parametrize("closed", [(0, 1, 2), (1,), (2,)])
def test_output_of_a_daemon_does_not_overwrite_the_store(outbox_dir: Path, closed: tuple[int, ...]) -> None:
    """A daemon closes its standard descriptors, and the next files that it opens get their numbers."""
    program = f"""
        import os, subprocess
        for fd in {closed}:
            os.close(fd)
        from outbox import Outbox
        box = Outbox.open({str(outbox_dir)!r})
        held = [os.readlink(f"/proc/self/fd/{{fd}}") for fd in range(3)]
        assert not any(name.startswith({str(outbox_dir)!r}) for name in held), held
        subprocess.run(["sh", "-c", "echo from a child; echo from a child >&2"], check=True)
        box.enqueue("note", {{}})
        box.close()
    """
    child = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert child.returncode == 0, child.stderr
    with Outbox.open(outbox_dir) as box:
        assert box.status().pending == 1
