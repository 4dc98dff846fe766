"""docs/tutorial.md, followed step by step: PostgreSQL is killed and started where the page says so."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from outbox.testing import PostgresServer
from tests.unit.fakes.database import query
from tests.unit.fakes.waiting import LONG

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")


def part(heading: str) -> str:
    """The text below a heading."""
    return PAGE.partition(f"## {heading}\n")[2].partition("\n## ")[0]


def steps(heading: str) -> Iterator[tuple[str, list[str]]]:
    """The commands of the console blocks below a heading, with the lines that they print."""
    for block in re.findall(r"^```console\n(.*?)^```$", part(heading), re.DOTALL | re.MULTILINE):
        for command, shown in re.findall(r"^\$ (.*)\n((?:[^$\n].*\n)*)", block, re.MULTILINE):
            yield command, shown.splitlines()


def is_printed(shown: str, printed: list[str]) -> bool:
    """Whether a line is among the printed ones; `...` stands for anything.  The log and the output are not in step."""
    pattern = ".*".join(re.escape(piece) for piece in shown.split("..."))
    return any(re.fullmatch(pattern, line) for line in printed)


def test_each_step_prints_what_the_page_shows(own_postgres: PostgresServer, tmp_path: Path) -> None:
    (create,) = re.findall(r'-c "(CREATE TABLE .*?)"$', PAGE, re.MULTILINE)
    query(own_postgres.url(), create)
    (program,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    (tmp_path / "trade.py").write_text(program)
    env = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    env |= {
        "DATABASE_URL": own_postgres.url(),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    }

    def follow(heading: str) -> None:
        for command, shown in steps(heading):
            done = subprocess.run(
                ["/bin/sh", "-c", command],
                cwd=tmp_path,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=LONG,
                check=False,
            )
            missing = [line for line in shown if not is_printed(line, done.stdout.splitlines())]
            assert missing == [], f"{command} printed\n{done.stdout}"

    follow("PostgreSQL is up")
    own_postgres.kill()
    follow("PostgreSQL is away")
    own_postgres.start()
    follow("PostgreSQL is back")
    rows = query(own_postgres.url(), "SELECT client_order_id FROM trades ORDER BY 1")
    assert rows == [("A-1",), ("A-2",), ("A-3",)]
    assert len(list(steps("PostgreSQL is away"))) == 3
