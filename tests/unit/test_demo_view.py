"""What the demo shows on terminals and in pipes."""

from __future__ import annotations

import io
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from outbox.cli import demo as demo_command
from outbox.cli import demo_view
from outbox.cli.demo import Demo, _verdict, demo
from outbox.cli.demo_view import DemoFigures, View
from outbox.cli.screen import screen
from outbox.integrations.paper.check import Report
from tests.unit.fakes.rig import Rig


@pytest.fixture
def rig(outbox_dir: Path) -> Rig:
    rig = Rig(outbox_dir)
    rig.enqueue(*"abc" * 20)
    return rig


@pytest.mark.parametrize("width", [40, 80])
def test_view_draws_bars_that_fit_the_terminal(rig: Rig, monkeypatch: pytest.MonkeyPatch, width: int) -> None:
    shown = io.StringIO()
    console = Console(file=shown, force_terminal=True, width=width, color_system="standard")
    monkeypatch.setattr(demo_view, "screen", lambda: console)
    with rig, View() as view:
        view.event("PostgreSQL was killed", good=False)
        view.figures(DemoFigures(1200, 2000, rig.box.status(), engine=True, postgres=False))
    plain = Console(file=io.StringIO(), width=width)
    with plain.capture() as captured, rig:
        plain.print(view._panel(DemoFigures(1200, 2000, None, engine=True, postgres=False)))
    lines = captured.get().splitlines()
    assert {len(line) for line in lines} == {width}
    assert "1,200 of 2,000" in lines[1]
    assert "60 on disk" in shown.getvalue()
    assert "\x1b[1;37;41mDOWN" in shown.getvalue()


def test_view_in_a_pipe_has_plain_lines(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # as services for continuous integration set it
    with rig, View() as view:
        view.event("PostgreSQL was killed", good=False)
        view.figures(DemoFigures(1200, 2000, rig.box.status(), engine=True, postgres=False))
    said = capsys.readouterr().out
    assert "\x1b" not in said
    assert "bar 1200/2000   engine up   PostgreSQL DOWN   pending 60   applied 0" in said


def test_screen_is_none_without_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert screen() is screen(err=True) is None


@pytest.mark.parametrize(
    ("report", "sentence"),
    [
        (
            Report(acknowledged=6745, applied=6745),
            "Nothing lost, nothing doubled: 6,745 of 6,745 acknowledged writes are in PostgreSQL, through 2 outages.",
        ),
        (
            Report(acknowledged=6745, applied=6743, lost=2, duplicated=1),
            "2 of 6,745 acknowledged writes are lost, 1 is doubled, after 2 outages.",
        ),
        (Report(), "Nothing was shown: the engine got no write acknowledged."),
    ],
)
def test_verdict_is_a_sentence(report: Report, sentence: str) -> None:
    assert _verdict(report, 2) == sentence


def test_verdict_tells_one_from_several() -> None:
    assert _verdict(Report(acknowledged=9, applied=8, lost=1), 1) == (
        "1 of 9 acknowledged writes is lost, 0 are doubled, after 1 outage."
    )


@pytest.mark.parametrize("lost", [0, 1])
def test_a_demo_that_finds_a_loss_keeps_its_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lost: int) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    # The handlers of the process that tests stay its own.
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(demo_command, "_server", nullcontext)
    report = Report(acknowledged=3, applied=3 - lost, lost=lost)
    monkeypatch.setattr(Demo, "run", lambda _: (2, report))

    run = CliRunner().invoke(demo, ["--fast"])

    assert run.exit_code == lost
    kept = re.search(r"^store and record are kept in (\S+)$", run.output, re.MULTILINE)
    assert ([kept[1]] if kept else []) == [str(path) for path in tmp_path.iterdir()]
    assert (kept is not None) == bool(lost)
