"""docs/how-to/recover.md: each command is run where it belongs, and prints what the page shows."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest

from outbox import Outbox
from tests.unit.fakes.audit import query
from tests.unit.fakes.failover import Desk, Past
from tests.unit.fakes.waiting import LONG

ROOT = Path(__file__).resolve().parents[2]
DOCUMENT = ROOT / "docs" / "how-to" / "recover.md"
POSTGRESQL_PAGE = ROOT / "docs" / "reference" / "postgresql.md"


def set_back(desk: Desk, past: Past) -> None:
    """12 entries survive, 20 are lost, and the relay knows it."""
    desk.trade(12)
    desk.deliver()
    copy = past.remember()
    desk.trade(20)
    desk.deliver()
    past.set_back(copy)
    desk.stop_at_loss()


def beside_the_engine(desk: Desk, past: Past) -> None:
    set_back(desk, past)
    desk.relay.start()


def without_engine(desk: Desk, past: Past) -> None:
    set_back(desk, past)
    desk.close()


def another(desk: Desk, past: Past) -> None:
    empty = past.remember()
    desk.trade(32)
    desk.deliver()
    past.set_back(empty)
    desk.stop_at_loss()
    desk.close()


def deleted(desk: Desk, past: Past) -> None:
    desk.trade(32)
    desk.deliver()
    past.execute("DELETE FROM trades WHERE number >= 27")
    past.execute("DELETE FROM outbox_receipts WHERE seq >= 28")
    desk.close()


def pruned(desk: Desk, past: Past) -> None:
    desk.trade(12)
    desk.deliver()
    copy = past.remember()
    desk.trade(20)
    desk.deliver()
    desk.box.compact(timedelta(0))
    desk.trade(3)
    desk.deliver()
    past.set_back(copy)
    desk.stop_at_loss()
    desk.close()


# By the headings that have commands: how things stand before, and how many rows there are after.
PROCEDURES: dict[str, tuple[Callable[[Desk, Past], None], int]] = {
    "What it looks like": (beside_the_engine, 12),
    "A restored backup, or a failover with one host": (beside_the_engine, 32),
    "The engine is not running": (without_engine, 32),
    "Another database": (another, 32),
    "Accept PostgreSQL as it is": (without_engine, 12),
    "Rows and receipts were deleted": (deleted, 32),
    "Entries that cannot be delivered again": (pruned, 15),
}


def sections() -> dict[str, list[tuple[str, list[str]]]]:
    """The commands and the output shown for them, by heading."""
    found = {}
    text = DOCUMENT.read_text(encoding="utf-8").partition("## PostgreSQL has")[2]
    for part in re.split(r"^### ", text, flags=re.MULTILINE):
        steps: list[tuple[str, list[str]]] = []
        for block in re.findall(r"^```console\n(.*?)^```$", part, re.DOTALL | re.MULTILINE):
            for line in block.splitlines():
                if line.startswith("$ "):
                    steps.append((line[2:], []))
                else:
                    steps[-1][1].append(line)
        if steps:
            found[part.partition("\n")[0]] = steps
    return found


def pattern(lines: list[str]) -> str:
    """Output as it is shown: numbers and the store's path may differ, `...` stands for anything."""
    text = re.escape("\n".join(lines)).replace(re.escape("/srv/engine/data/outbox"), r"\S+")
    text = re.sub(r"process \d+", r"process \\d+", text.replace(r"process\ ", "process "))
    return text.replace(re.escape("..."), r"(?:.|\n)*") + r"\n?"


def test_every_procedure_is_run() -> None:
    assert list(sections()) == list(PROCEDURES)


@pytest.mark.parametrize("heading", PROCEDURES)
def test_a_procedure_does_what_is_written(heading: str, past: Past, outbox_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "myengine").mkdir()
    (tmp_path / "myengine" / "outbox.py").write_text("from tests.unit.fakes.audit import OPERATIONS\n")
    prepare, expected = PROCEDURES[heading]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    settings = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "OUTBOX_DIR": str(outbox_dir),
        "DATABASE_URL": past.url,
    }
    with Desk(outbox_dir, past.url) as desk:
        prepare(desk, past)
        for command, shown in sections()[heading]:
            done = subprocess.run(
                shlex.split(command),
                cwd=tmp_path,
                env={**kept, **settings},
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=False,
                timeout=LONG,
            )
            assert re.fullmatch(pattern(shown), done.stdout), f"{command} printed\n{done.stdout}"
    [(rows,)] = query(past.url, "SELECT count(DISTINCT number) FROM trades")
    assert rows == expected
    [(copies,)] = query(past.url, "SELECT count(*) FROM trades")
    assert copies == expected
    with Outbox.attach(outbox_dir) as box:
        assert bool(box.status().alarms) == (heading == "What it looks like")


def test_the_look_at_the_watermark_runs(past: Past, outbox_dir: Path) -> None:
    with Desk(outbox_dir, past.url) as desk:
        desk.trade(3)
        desk.deliver()
    text = POSTGRESQL_PAGE.read_text(encoding="utf-8")
    *_, look = re.findall(r"^```sql\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    assert len(past.execute(look)) == 1
    columns = past.execute("SELECT column_name FROM information_schema.columns WHERE table_name = 'outbox_watermarks'")
    described = set(re.findall(r"`(\w+)`", "".join(line for line in text.splitlines() if line.startswith("| `"))))
    assert {name for (name,) in columns} <= described
