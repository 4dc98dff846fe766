"""`atb outbox status --watch`: the lines of the last minutes, narrow terminals, pipes, a store that is gone."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from rich.console import Console

from outbox import OutboxStatus, Relay, StoreMissing, TargetUnavailable
from outbox.cli import watch as watch_command
from outbox.cli.history import History, sparkline
from outbox.cli.watch import watch
from outbox.cli.watch_view import WatchLook, WatchView
from tests import atb as command_line
from tests.unit.fakes.rig import Rig, permanent

_AT = datetime(2024, 5, 1, 9, 30, tzinfo=UTC)


@pytest.fixture
def rig(outbox_dir: Path) -> Iterator[Rig]:
    with Rig(outbox_dir, min_free_mb=0) as rig:
        yield rig


# -- the history


def look_after(rig: Rig, history: History, seconds: float, enqueued: int = 0) -> None:
    """Let entries come, time pass and the relay deliver what it can, then look."""
    rig.enqueue(*[None] * enqueued)
    rig.clock.advance(seconds)
    rig.settle()
    history.look(rig.clock.monotonic(), rig.box.status())


def test_sparkline_of_an_outage_rises_and_falls(rig: Rig) -> None:
    history = History(10.0)
    for number in range(30):
        away = 10 <= number < 20
        rig.target.down = TargetUnavailable("connection refused") if away else None
        look_after(rig, history, 10.0, enqueued=2)
    assert [history.column_s(width) for width in (10, 30, 100)] == [30.0, 10.0, 10.0]
    pending = history.pending(30)
    assert [value for value in pending if value] == [2.0 * number for number in range(1, 11)]
    assert sparkline(pending) == "▁" * 10 + "▂▂▃▄▅▅▆▇▇█" + "▁" * 10
    assert set(history.enqueued_per_s(30)[1:]) == {0.2}
    assert sparkline(history.delivered_per_s(30)).lstrip("▂") == "▁" * 10 + "█" + "▂" * 10


def test_columns_without_a_look_are_blank(rig: Rig) -> None:
    history = History(2.0)
    look_after(rig, history, 1.0)
    look_after(rig, history, 100.0)
    line = sparkline(history.pending(30))
    assert (len(line), line.strip()) == (30, "▁" + " " * 9 + "▁")
    assert sparkline(History(2.0).pending(30)) == ""


def test_looks_that_come_a_little_late_leave_no_gap(rig: Rig) -> None:
    history = History(10.0)
    for _ in range(40):
        look_after(rig, history, 10.4)
    assert sparkline(history.pending(30)) == "▁" * 30


def test_rates_are_those_of_the_last_seconds(rig: Rig) -> None:
    history = History(1.0)
    look_after(rig, history, 0.0)
    assert history.rates() is None
    for enqueued in (50, 0, 0, 0, 0, 10):
        look_after(rig, history, 1.0, enqueued=enqueued)
    assert history.rates() == (2.0, 2.0)


def test_another_store_begins_a_new_history(rig: Rig, tmp_path: Path) -> None:
    history = History(1.0)
    for _ in range(3):
        look_after(rig, history, 1.0, enqueued=1)
    with Rig(tmp_path / "other") as other:
        history.look(rig.clock.monotonic() + 1, other.box.status())
    assert history.rates() is None
    assert history.pending(30)[-2:] == [None, 0.0]


def test_sparkline_shows_the_smallest_backlog_above_none() -> None:
    assert sparkline([0, 1, 1000, None]) == "▁▂█ "
    assert sparkline([0, 1, 1000, None], ascii_only=True) == "_.# "


# -- the terminal


def drawn(look: WatchLook, history: History, width: int, **settings: str) -> list[str]:
    console = Console(file=io.StringIO(), width=width, **settings)  # type: ignore[arg-type]
    with console.capture() as captured:
        console.print(WatchView(look, history))
    return [line.rstrip() for line in captured.get().splitlines()]


@pytest.mark.parametrize("width", [40, 60, 120])
def test_view_fits_the_terminal(rig: Rig, width: int) -> None:
    history = History(10.0)
    rig.target.down = TargetUnavailable("connection to server at postgresql://u:s3cret@h/d failed: refused")
    with rig.relay:
        rig.group(*[None] * 1000)
        for _ in range(30):
            look_after(rig, history, 10.0, enqueued=1)
        found = replace(rig.box.status(), path="/srv/engine/data/outbox")
        lines = drawn(WatchLook.seen(found, _AT), history, width)
    text = "\n".join(lines)
    assert max(map(len, lines)) == width
    assert lines[1].startswith("degraded")
    assert lines[1].endswith(" 09:30:00 UTC")
    for name, figure in (("pending", "1,030"), ("enqueued", "6.0/min"), ("delivered", "0/s")):
        (line,) = [line for line in lines if line.startswith(name)]
        assert line.endswith(f" {figure}")
    assert [line.split() for line in lines if line.startswith("breaker")] == [["breaker", "open"]]
    assert re.search(r"the last \d+ min", text)
    assert "s3cret" not in text


def lane_lines(rig: Rig, history: History) -> list[str]:
    lines = drawn(WatchLook.seen(rig.box.status(), _AT), history, 60)
    # The first line, the store's path, may be folded.
    return [line for line in lines if line.startswith("lanes ")]


@pytest.mark.parametrize(("lanes", "line"), [(1, []), (2, ["lanes        1: 3.0/s, 2: 1.0/s"])])
def test_view_shows_the_pace_of_each_of_several_lanes(rig: Rig, lanes: int, line: list[str]) -> None:
    history = History(1.0)
    rig.target.lanes = lanes
    rig.target.by_lane = [3, 1] if lanes > 1 else []
    for _ in range(8):
        look_after(rig, history, 1.0, enqueued=4)
    assert lane_lines(rig, history) == line


def test_pace_of_lanes_outlives_the_relay(rig: Rig) -> None:
    history = History(1.0)
    rig.target.lanes, rig.target.by_lane = 2, [3, 1]
    for _ in range(3):
        look_after(rig, history, 1.0, enqueued=4)
    rig.relay.stop()
    rig.relay = Relay(rig.box, rig.target)
    look_after(rig, history, 1.0, enqueued=4)
    assert rig.box.status().relay.lanes == [3, 1]
    assert history.lane_rates() == [3.0, 1.0]


def test_first_look_at_lanes_shows_what_they_delivered(rig: Rig) -> None:
    history = History(1.0)
    rig.target.lanes, rig.target.by_lane = 2, [3000, 1]
    look_after(rig, history, 1.0, enqueued=4)
    assert lane_lines(rig, history) == ["lanes        delivered by 1: 3,000, 2: 1"]


def test_view_of_a_store_that_is_gone_says_since_when(rig: Rig) -> None:
    history = History(2.0)
    look_after(rig, history, 2.0)
    gone = WatchLook(rig.box.status(), _AT, _AT.replace(minute=31), "there is no outbox at /srv/data")
    # The first line, the store's path, may be folded.
    assert "cannot be read since 09:30:00 UTC: there is no outbox at /srv/data" in drawn(gone, history, 80)


def test_view_without_utf8_is_ascii(rig: Rig) -> None:
    history = History(2.0)
    for _ in range(10):
        look_after(rig, history, 2.0, enqueued=3)
    console = Console(file=io.TextIOWrapper(io.BytesIO(), encoding="ascii"), width=40)
    with console.capture() as captured:
        console.print(WatchView(WatchLook.seen(rig.box.status(), _AT), history))
    assert captured.get().isascii()


def test_a_terminal_is_drawn_in_place_and_keeps_the_last_status(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shown = io.StringIO()
    terminal = Console(file=shown, force_terminal=True, width=60, height=24)
    monkeypatch.setattr(watch_command, "screen", lambda: terminal)
    waited: list[float] = []
    found = watch(rig.box.status, 0.9, clock=rig.clock, wait=interrupted_after(3, rig, waited))
    assert found is not None
    assert waited == pytest.approx([0.5, 0.4, 0.5])
    assert shown.getvalue().startswith("\x1b[?1049h")  # the other screen
    assert "\x1b[?25h\x1b[?1049l" in shown.getvalue()  # the cursor, and back
    assert shown.getvalue().count("enqueued") >= 2
    assert "healthy" in capsys.readouterr().out


# -- pipes


def interrupted_after(times: int, rig: Rig, waited: list[float] | None = None) -> Callable[[float], None]:
    """A wait that lets time pass, and presses Ctrl-C in the last one."""
    left = [times]

    def wait(seconds: float) -> None:
        if waited is not None:
            waited.append(seconds)
        left[0] -= 1
        rig.clock.advance(seconds)
        if not left[0]:
            raise KeyboardInterrupt

    return wait


def unsteady(rig: Rig, readable: str) -> Callable[[], OutboxStatus]:
    """Looks of which those marked `-` find no store."""
    looks = iter(readable)

    def look() -> OutboxStatus:
        if next(looks) == "-":
            raise StoreMissing("there is no outbox at /srv/data", hint="start the engine once")
        return rig.box.status()

    return look


def test_a_pipe_gets_a_block_for_each_look(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    found = watch(rig.box.status, 60.0, clock=rig.clock, wait=interrupted_after(3, rig))
    blocks = capsys.readouterr().out.split("\n\n")[:-1]
    assert [block.splitlines()[0] for block in blocks] == [
        "2024-01-01 00:16:40 UTC",
        "2024-01-01 00:17:40 UTC",
        "2024-01-01 00:18:40 UTC",
    ]
    assert all(block.splitlines()[1].endswith(": healthy") for block in blocks)
    assert found is not None
    assert found.store_id == rig.box.status().store_id


def test_a_store_that_is_missing_for_a_moment_is_looked_for_again(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    found = watch(unsteady(rig, "+--+"), 1.0, clock=rig.clock, wait=interrupted_after(4, rig))
    said = capsys.readouterr().out
    assert said.count("cannot be read: there is no outbox at /srv/data") == 2
    assert said.count(": healthy") == 2
    assert found is not None


def test_a_store_that_is_missing_at_the_end_is_no_status(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    assert watch(unsteady(rig, "+-"), 1.0, clock=rig.clock, wait=interrupted_after(2, rig)) is None
    assert "cannot be read" in capsys.readouterr().out


def test_a_store_that_is_missing_at_the_first_look_is_an_error(rig: Rig) -> None:
    with pytest.raises(StoreMissing):
        watch(unsteady(rig, "-"), 1.0, clock=rig.clock, wait=interrupted_after(1, rig))


def test_json_is_one_object_a_line(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    rig.enqueue("a")
    watch(unsteady(rig, "+-+"), 1.0, as_json=True, clock=rig.clock, wait=interrupted_after(3, rig))
    out, err = capsys.readouterr()
    assert [json.loads(line)["pending"] for line in out.splitlines()] == [1, 1]
    assert err.splitlines() == ["cannot be read: there is no outbox at /srv/data (start the engine once)"]


def test_looks_keep_their_rhythm_when_one_takes_long(rig: Rig, capsys: pytest.CaptureFixture[str]) -> None:
    waited: list[float] = []
    slow = iter([0.0, 0.25, 5.0, 0.0])

    def look() -> OutboxStatus:
        rig.clock.advance(next(slow))
        return rig.box.status()

    watch(look, 1.0, clock=rig.clock, wait=interrupted_after(4, rig, waited))
    assert waited == [1.0, 0.75, 0.0, 1.0]
    assert capsys.readouterr().err == ""


# -- the command


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--interval", "5"), "--interval needs --watch"),
        (("--watch", "--interval", "0"), "'0' (allowed: a number from 0.1 to 3600)"),
        (("--watch", "--interval", "soon"), "'soon' (allowed: a number from"),
    ],
)
def test_a_wrong_interval_is_one_sentence(outbox_dir: Path, arguments: tuple[str, ...], words: str) -> None:
    done = command_line.invoke("status", "--dir", str(outbox_dir), *arguments)
    assert (done.exit_code, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert words in done.stderr


@pytest.mark.parametrize(
    ("last", "fail_on", "code"),
    [
        ("healthy", "degraded", 0),
        ("degraded", "degraded", 1),
        ("degraded", "needs-operator", 0),
        ("needs_operator", "needs-operator", 2),
        ("unreadable", "needs-operator", 2),
    ],
)
def test_exit_code_is_that_of_the_last_status(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, last: str, fail_on: str, code: int
) -> None:
    rig.enqueue("a")
    if last == "needs_operator":
        rig.target.refuse[1] = permanent()
    if last in ("healthy", "needs_operator"):
        rig.settle()
    looks = unsteady(rig, "+-" if last == "unreadable" else "++")
    monkeypatch.setattr(watch_command, "look_at", lambda _: looks())
    kept = watch_command.watch
    monkeypatch.setattr(
        watch_command,
        "watch",
        lambda look, interval, **options: kept(
            look, interval, **options, clock=rig.clock, wait=interrupted_after(2, rig)
        ),
    )
    done = command_line.invoke("status", "--watch", "--fail-on", fail_on)
    assert done.exit_code == code, done.output
