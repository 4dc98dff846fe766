"""What a role tells other processes about itself: readable by anybody, and never half of it."""

from __future__ import annotations

import os
import zlib
from datetime import timedelta
from pathlib import Path

import pytest

from outbox import Outbox, codec
from outbox.store import own_files as state_file
from outbox.store.own_files import StateFile, read_own


@pytest.fixture
def state(tmp_path: Path) -> StateFile:
    return StateFile(tmp_path / "state")


def test_the_last_state_is_read(state: StateFile) -> None:
    state.write({"pid": 1, "held_back": 5, "halted": "disk full: ü"})
    state.write({"pid": 2})
    assert state.read() == {"pid": 2}


def test_state_that_was_never_written_reads_as_absent(state: StateFile) -> None:
    assert state.read() is None


def test_the_file_keeps_its_size_and_is_private(state: StateFile, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        state.write({"pid": 1})
    finally:
        os.umask(before)
    info = (tmp_path / "state").stat()
    assert (info.st_mode & 0o777, info.st_size) == (0o600, 4096)
    state.write({"pid": 1, "error": "x" * 3000})
    assert ((tmp_path / "state").stat().st_size, (tmp_path / "state").stat().st_ino) == (4096, info.st_ino)


def test_text_with_lone_surrogates_is_written_with_their_codes(state: StateFile) -> None:
    """As in the message of an error about a file whose name is in another encoding."""
    state.write({"pid": 1, "waiting": {"7": "no file caf\udce9"}, "lanes": [1], "last_error": "x" * 5000})
    said = state.read()
    assert said is not None
    assert (said["pid"], said["waiting"], said["lanes"]) == (1, {"7": "no file caf\\udce9"}, [1])


def test_long_text_is_cut_and_the_rest_stays(state: StateFile, tmp_path: Path) -> None:
    said = {
        "pid": 7,
        "breaker": "half-open",
        "since": "2024-05-01T09:30:00.123456+00:00",
        "last_error": "x" * 5000,
        "parked": {"note": {"reason": "short", "best_effort": False}},
        "moved_at": 17.25,
    }
    state.write(said)
    found = state.read()
    assert found is not None
    error = found.pop("last_error")
    assert found == {name: value for name, value in said.items() if name != "last_error"}
    assert len(error) > 3800
    assert error == "x" * (len(error) - 1) + "…"
    assert (tmp_path / "state").stat().st_size == 4096


def test_longest_texts_are_cut_first(state: StateFile) -> None:
    parked = {f"operation_{number}": {"reason": "é" * 300, "best_effort": True} for number in range(8)}
    state.write({"pid": 7, "last_error": "m" * 200, "parked": parked})
    found = state.read()
    assert found is not None
    assert found["last_error"] == "m" * 200
    lengths = {len(one["reason"]) for one in found["parked"].values()}
    assert len(lengths) == 1
    assert 200 < lengths.pop() < 300
    assert all(one["reason"].endswith("…") and one["best_effort"] for one in found["parked"].values())


@pytest.mark.parametrize("character", ["x", "ü", "\U0001f4a5", "\x01", '"', "\\"])
def test_whatever_is_written_can_be_read(state: StateFile, character: str) -> None:
    """A character takes one to six bytes in JSON."""
    for length in (600, 1100, 4000, 9000):
        state.write({"pid": 7, "died": character * length, "waiting": {str(n): character * 300 for n in range(8)}})
        found = state.read()
        assert found is not None
        assert (found["pid"], len(found["waiting"])) == (7, 8)
        assert found["died"].startswith(character * 30)


def test_where_names_are_too_long_the_figures_stay(state: StateFile) -> None:
    state.write({"pid": 7, "held_back": 3, "waiting": {"n" * 3000: "a", "m" * 3000: "b"}})
    assert state.read() == {"pid": 7, "held_back": 3}


def test_a_state_of_many_figures_leaves_the_pid(state: StateFile) -> None:
    state.write({"pid": 7, **{f"figure_{number}": number for number in range(1000)}})
    assert state.read() == {"pid": 7}


def test_a_state_of_just_the_size_of_the_file_is_kept(state: StateFile) -> None:
    room = 4096 - 8 - len('{"pid":7,"error":""}')
    for length in (room - 1, room):
        state.write({"pid": 7, "error": "x" * length})
        assert state.read() == {"pid": 7, "error": "x" * length}
    state.write({"pid": 7, "error": "x" * (room + 1)})
    # The sign of the cut takes three bytes.
    assert state.read() == {"pid": 7, "error": "x" * (room - 3) + "…"}


@pytest.mark.parametrize("position", [0, 7, 8, 20, 4095])
def test_a_torn_state_reads_as_absent(state: StateFile, tmp_path: Path, position: int) -> None:
    state.write({"pid": 1})
    data = bytearray((tmp_path / "state").read_bytes())
    data[position] ^= 1
    (tmp_path / "state").write_bytes(data)
    assert state.read() is None


@pytest.mark.parametrize("torn_reads", [1, 3])
def test_state_that_is_torn_while_it_is_written_is_read_again(
    state: StateFile, monkeypatch: pytest.MonkeyPatch, torn_reads: int
) -> None:
    """The writer does not lock it: a look in the middle of a write must not show a relay that never reported."""
    state.write({"pid": 1})
    looks: list[bytes] = []

    def read_while_written(path: Path) -> bytes:
        data = read_own(path)
        looks.append(data if len(looks) >= torn_reads else data[:2000] + b"x" * 2096)
        return looks[-1]

    monkeypatch.setattr(state_file, "read_own", read_while_written)
    assert state.read() == {"pid": 1}
    assert len(looks) == torn_reads + 1


@pytest.mark.parametrize("size", [0, 8, 4095])
def test_a_cut_state_reads_as_absent(state: StateFile, tmp_path: Path, size: int) -> None:
    state.write({"pid": 1})
    os.truncate(tmp_path / "state", size)
    assert state.read() is None


def test_state_of_a_wrong_size_reads_as_absent(state: StateFile, tmp_path: Path) -> None:
    body = b'{"pid":1}'
    (tmp_path / "state").write_bytes(b"%08x" % zlib.crc32(body) + body)
    assert state.read() is None


def test_something_else_than_a_state_reads_as_absent(state: StateFile, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "to_json", lambda value: b"[1]")
    state.write({"pid": 1})
    assert state.read() is None


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can look at the store of another user")
def test_the_look_of_root_leaves_everything_to_the_owner(outbox_dir: Path) -> None:
    with Outbox.open(outbox_dir) as box:
        box.enqueue("log", {})
    for name in ("access.lock", "clean", "engine.lock"):
        (outbox_dir / name).unlink()
    for path in (outbox_dir, *outbox_dir.iterdir()):
        os.chown(path, 65534, 65534)
    with Outbox.attach(outbox_dir) as box:
        box.compact(timedelta(0), vacuum=True)
    assert {path.name: path.stat().st_uid for path in outbox_dir.iterdir() if path.stat().st_uid != 65534} == {}
    assert (outbox_dir / "relay.lock").exists()
