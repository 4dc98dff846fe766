"""The benchmarks run, every contender does the same work, and one that does not is caught."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from benchmarks import __main__ as program
from benchmarks import durability, enqueue, flushes, outage, report, writers
from benchmarks.measure import TINY, Goal, Line, NotTheSameWork, Result, Setting, turns
from benchmarks.writers import BARE, JSON_LINES, LIMIT, OUTBOX, WRITERS, JsonLines


@pytest.fixture(scope="module")
def counting(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Skips where the system does not let flushes be counted."""
    try:
        flushes.audit(tmp_path_factory.mktemp("counting"), _nothing)
    except flushes.CannotCount as exc:
        pytest.skip(str(exc))


def _nothing() -> list[tuple[float, float]]:
    return []


class NeverFlushes(JsonLines):
    """Does all of the work but the flush."""

    def write(self, number: int, args: dict[str, Any]) -> None:
        os.write(self._file, b"{}\n")


class FlushesFirst(JsonLines):
    """Flushes, and then writes what it says is durable."""

    def write(self, number: int, args: dict[str, Any]) -> None:
        os.fsync(self._file)
        os.write(self._file, b"{}\n")


class DropsSome(JsonLines):
    """Every third trade is gone."""

    def write(self, number: int, args: dict[str, Any]) -> None:
        if number % 3:
            super().write(number, args)


@pytest.fixture
def setting(tmp_path: Path, postgres_url: str) -> Setting:
    return Setting(TINY, tmp_path, postgres_url)


def test_every_scenario_runs_and_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, own_postgres: Any
) -> None:
    class Server:
        """The fixture's server, which is not the program's to close."""

        def __init__(self, options: object) -> None: ...

        def __enter__(self) -> Any:
            return own_postgres

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(program, "PostgresServer", Server)
    monkeypatch.setattr(program, "QUICK", TINY)
    document = tmp_path / "performance.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n", encoding="utf-8")
    arguments = ["--quick", "--dir", str(tmp_path / "out"), "--report", str(document)]
    done = CliRunner().invoke(program.main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    found = json.loads((tmp_path / "out" / "results.json").read_bytes())
    results = {one["scenario"]: one for one in found["results"]}
    assert list(results) == list(program.SCENARIOS)
    assert not any(goal["judged"] for one in results.values() for goal in one["goals"])
    lines = {line["contender"]: line for line in results["enqueue"]["lines"]}
    assert set(lines) == set(WRITERS)
    assert {line["count"] for line in lines.values()} == {TINY.enqueue}
    for one in results.values():
        assert one["title"] in done.output
    text = document.read_text(encoding="utf-8")
    assert text.startswith("before\n")
    assert text.endswith("after\n")
    assert "old" not in text
    assert all(f"| {name} |" in text for name in WRITERS)


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize(
    ("cheat", "message"), [(NeverFlushes, "without a flush"), (FlushesFirst, "before flushing it")]
)
def test_a_contender_that_does_not_flush_is_caught(cheat: type[JsonLines], message: str, tmp_path: Path) -> None:
    seen = flushes.audit(tmp_path, _calls_of, cheat, str(tmp_path))
    with pytest.raises(NotTheSameWork, match=message):
        seen.require_durable("cheat", alone=True)


@pytest.mark.usefixtures("counting")
def test_an_honest_contender_passes(tmp_path: Path) -> None:
    seen = flushes.audit(tmp_path, _calls_of, JsonLines, str(tmp_path))
    seen.require_durable("honest", alone=True)
    assert seen.flushes_per_call == 1


@pytest.mark.usefixtures("counting")
@pytest.mark.parametrize(("name", "expected"), [(LIMIT, 1), (BARE, 2), (OUTBOX, 2), (JSON_LINES, 1)])
def test_synchronous_writes_of_a_meta_page_count_as_flushes(setting: Setting, name: str, expected: int) -> None:
    assert durability.flushes_per_write(setting, [name]) == ({name: expected}, [])


@pytest.mark.usefixtures("counting")
def test_threads_that_share_a_flush_are_all_covered_by_it(tmp_path: Path) -> None:
    seen = flushes.audit(tmp_path, writers.audited_calls, OUTBOX, str(tmp_path), 5, 8)
    seen.require_durable(OUTBOX, alone=False)
    assert len(seen.calls) == 40
    assert seen.flushes_per_call < 2


def _calls_of(kind: type[JsonLines], directory: str) -> list[tuple[float, float]]:
    writer, calls = kind(Path(directory), ""), []
    for number in range(3):
        begin = time.monotonic()
        writer.write(number, {"number": number})
        calls.append((begin, time.monotonic()))
    return calls


def test_a_contender_that_loses_rows_is_caught(setting: Setting, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(enqueue, "flushes_per_write", lambda *_: ({}, []))
    monkeypatch.setattr(enqueue, "available", lambda: [LIMIT, BARE, OUTBOX, JSON_LINES])
    monkeypatch.setitem(WRITERS, JSON_LINES, DropsSome)
    with pytest.raises(NotTheSameWork, match=r"JSON lines \+ flock \+ fsync: rows: 6, expected 10"):
        enqueue.run(setting)


def test_a_session_that_does_not_wait_for_the_disk_is_caught(setting: Setting) -> None:
    separator = "&" if "?" in setting.url else "?"
    # So many commits that the flushes that PostgreSQL makes by itself, five a second, are fewer on any machine.
    sizes = dataclasses.replace(setting.sizes, audited=100)
    options = "options=-csynchronous_commit%3Doff"
    lax = dataclasses.replace(setting, sizes=sizes, url=f"{setting.url}{separator}{options}")
    name = "psycopg2 INSERT + COMMIT"
    with pytest.raises(NotTheSameWork, match="flushes of the log for 100 commits"):
        durability.flushes_per_write(lax, [name])


def test_each_round_starts_with_another_contender() -> None:
    assert list(turns(3, ["a", "b"])) == ["a", "b", "b", "a", "a", "b"]


def test_goals_know_their_direction() -> None:
    assert Goal(text="", value=1, limit=2).met
    assert not Goal(text="", value=1, limit=2, at_most=False).met


def test_a_document_without_a_place_for_the_results_is_left_alone(tmp_path: Path) -> None:
    document = tmp_path / "other.md"
    document.write_text("text", encoding="utf-8")
    with pytest.raises(ValueError, match=r"has no <!-- measured: begin --> \.\.\. <!-- measured: end -->"):
        report.replace_block(document, "block")
    assert document.read_text(encoding="utf-8") == "text"


def test_columns_without_a_value_are_left_out_of_the_document() -> None:
    lines = [Line(contender=name, count=3, median_us=1.5, p99_us=2.5, per_second=7.0) for name in "ab"]
    run = dict.fromkeys(("run", "at", "system", "cpus", "load", "file_system", "python", "postgresql"), "x")
    text = report.markdown({**run, "packages": {}}, [Result(scenario="s", title="Title", reference="a", lines=lines)])
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[0] == "| contender | n | median | p99 | per second |"
    assert table[1] == "|---|---:|---:|---:|---:|"
    assert len(table) == 4


def _measured(result: Result) -> list[str]:
    """The lines of the measured block for one result."""
    run = dict.fromkeys(("run", "at", "system", "cpus", "load", "file_system", "python", "postgresql"), "x")
    return report.markdown({**run, "packages": {}}, [result]).splitlines()


def test_answers_have_their_targets_and_all_targets_are_counted() -> None:
    goals = [
        Goal(text="a / b", value=2, limit=1, question="An enqueue", answer="{value:.1f} times b"),
        Goal(text="c / d", value=2, limit=1, at_most=False),
        Goal(text="e / f", value=1, limit=2, at_most=False),
    ]
    lines = [Line(contender="a", count=3, median_us=1.5, p99_us=2.5)]
    text = _measured(Result(scenario="s", title="T", reference="", lines=lines, goals=goals, tabled=False))
    assert [line for line in text if line.startswith("|")] == [
        "| What you may rely on | In this run | Target |",
        "|---|---|---|",
        "| An enqueue | 2.0 times b | at most 1, missed |",
    ]
    assert "1 of 3 targets were met: `make bench` prints each." in text


def test_the_picture_of_an_outage_shows_a_backlog_that_drains(tmp_path: Path) -> None:
    done = outage.run(tmp_path, seconds=10.0, away=(2.0, 7.0), per_s=50.0)
    killed, back = done.away_s
    assert 2.0 <= killed < back
    during = [look for look in done.looks if killed + 1 < look.at_s < back - 1]
    # The program goes on, PostgreSQL gets nothing.
    assert during[-1].acknowledged > during[0].acknowledged
    assert during[-1].applied == during[0].applied
    assert during[-1].pending > during[0].pending
    assert done.looks[-1].pending <= 25
    assert outage.draw(done).count("<polyline") == 3


def test_the_pictures_in_the_documents_are_small() -> None:
    for path in (Path(__file__).parents[2] / "docs").rglob("*.svg"):
        assert path.stat().st_size < 30_000
