"""Telling files apart without asking for their times, and where files lie."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from outbox import ConfigError, Outbox
from outbox.store import filesystem, kept_files
from outbox.store.kept_files import file_identity

Ask = Callable[[Path], tuple[int, int, int]]


def refused(*_: object) -> int:
    return -1


@pytest.fixture(params=["statx", "refused", "absent"])
def ask(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Ask:
    if request.param != "statx":
        monkeypatch.setattr(kept_files, "_statx", {"refused": refused, "absent": None}[request.param])
    return lambda path: file_identity(os.fsencode(path))


def test_identity_of_a_file_agrees_with_stat(ask: Ask, tmp_path: Path) -> None:
    for path in (tmp_path, Path("/"), Path("/dev/null"), Path(__file__)):
        info = path.stat()
        assert ask(path) == (info.st_ino, os.major(info.st_dev), os.minor(info.st_dev))


def test_link_is_followed_and_a_replaced_file_is_another_file(ask: Ask, tmp_path: Path) -> None:
    first, second, link = tmp_path / "first", tmp_path / "second", tmp_path / "link"
    first.write_text("1", encoding="utf-8")
    second.write_text("2", encoding="utf-8")
    link.symlink_to(first)
    before = ask(first)
    assert ask(link) == before
    second.replace(first)
    assert ask(first) != before
    assert ask(link) == ask(first)


def test_identity_of_an_unreachable_file_fails_as_stat_does(ask: Ask, tmp_path: Path) -> None:
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
    monkeypatch.setattr(Path, "read_text", lambda self, **_: MOUNTS)
    assert filesystem.filesystem_of(Path(path)) == kind


def test_a_platform_that_does_not_tell_its_file_systems_is_trusted(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(self: Path, **_: str) -> str:
        raise FileNotFoundError(self)

    monkeypatch.setattr(Path, "read_text", fail)
    filesystem.refuse_remote(Path("/srv"))


def mounted(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, **_: MOUNTS + "".join(f"{line}\n" for line in lines))


@pytest.mark.parametrize(
    ("written", "path"),
    [
        ("/srv/données", "/srv/données/s"),
        ("/srv/市場", "/srv/市場"),
        ("/srv/back\\134slash", "/srv/back\\slash/s"),
        ("/srv/tab\\011", "/srv/tab\t/s"),
        ("/srv/\udce9t", "/srv/\udce9t/s"),
    ],
)
def test_mount_with_other_letters_is_found(monkeypatch: pytest.MonkeyPatch, written: str, path: str) -> None:
    mounted(monkeypatch, f"25 22 0:24 / {written} rw - nfs4 host:/x rw")
    assert filesystem.filesystem_of(Path(path)) == "nfs4"


@pytest.mark.parametrize(
    "kind",
    [
        "nfs4",
        "cifs",
        "smb2",
        "9p",
        "fuse.glusterfs",
        "fuse.ceph-fuse",
        "fuse.s3fs",
        "fuse.juicefs",
        "lustre",
        "beegfs",
        "gfs2",
        "ocfs2",
        "virtiofs",
        "fuse.virtiofs",
        "vboxsf",
        "prl_fs",
        "drvfs",
        "fuse.grpcfuse",
        "fuse.vmhgfs-fuse",
    ],
)
def test_shared_file_system_is_refused(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    mounted(monkeypatch, f"25 22 0:24 / /srv/x rw - {kind} host:/x rw")
    with pytest.raises(ConfigError, match="network file system or a shared folder"):
        filesystem.refuse_remote(Path("/srv/x/s"))


def test_doubtful_file_system_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for kind, warnings in (("fuse.novel", 1), ("fuseblk", 0), ("ext4", 0), ("overlay", 1), ("fuse.fuse-overlayfs", 1)):
        caplog.clear()
        mounted(monkeypatch, f"25 22 0:24 / /srv/x rw - {kind} /dev/sdc rw")
        filesystem.refuse_remote(Path("/srv/x/s"))
        assert len(caplog.records) == warnings, kind


@pytest.mark.parametrize(("code", "passes"), [(errno.EINVAL, True), (errno.EROFS, True), (errno.EIO, False)])
def test_parent_without_flush_is_passed_over(monkeypatch: pytest.MonkeyPatch, code: int, passes: bool) -> None:
    def refuse(_: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", refuse)
    if passes:
        filesystem.flush_parent(Path("/tmp/x"))  # noqa: S108 - it is not written to
        return
    with pytest.raises(OSError, match=os.strerror(code)):
        filesystem.flush_parent(Path("/tmp/x"))  # noqa: S108


def test_disk_of_unknown_size_does_not_stop_enqueueing(outbox_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Outbox.open(outbox_dir) as box:
        real = os.statvfs(outbox_dir)
        answer = {name: getattr(real, name) for name in dir(real) if name.startswith("f_")}
        unknown = SimpleNamespace(**{**answer, "f_blocks": 0, "f_bfree": 0, "f_bavail": 0})
        monkeypatch.setattr(os, "statvfs", lambda _: unknown)
        assert box.enqueue("log", {}).seq == 1
        status = box.status()
    assert not status.needs_operator
    assert not [sentence for sentence in status.degraded if "disk" in sentence]
