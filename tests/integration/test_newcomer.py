"""The README's example on a bad day: a program without any logging set up learns at once why nothing arrives."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.fakes.audit import query

ROOT = Path(__file__).resolve().parents[2]
AWAY = "postgresql://trader:s3cret@127.0.0.1:1/x"


@pytest.fixture
def example(tmp_path: Path) -> Path:
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert found is not None
    file = tmp_path / "example.py"
    file.write_text(found[1])
    return file


def said(example: Path, url: str) -> Iterator[str]:
    """What it says on stderr, line by line, while it runs."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")} | {"DATABASE_URL": url}
    process = subprocess.Popen(
        [sys.executable, example], cwd=example.parent, env=env, stderr=subprocess.PIPE, text=True
    )
    with process:
        assert process.stderr is not None
        try:
            yield from process.stderr
        finally:
            process.kill()


def test_postgres_away_is_said_at_the_first_try(example: Path) -> None:
    first = next(said(example, AWAY))
    assert "delivery failed" in first
    assert "Connection refused" in first
    assert "s3cret" not in first


def test_missing_table_is_named_at_the_first_try(example: Path, postgres_url: str) -> None:
    first = next(said(example, postgres_url))
    assert "'log_trade' is parked" in first
    assert "trades" in first


def test_deleted_data_file_is_named_when_the_store_is_opened(example: Path) -> None:
    next(said(example, AWAY))
    (example.parent / "data" / "outbox" / "data.mdb").unlink()
    *_, last = said(example, AWAY)
    assert "StoreCorrupt" in last
    assert "data.mdb" in last


def test_deleted_store_is_told_by_the_refused_duplicate(example: Path, postgres_url: str) -> None:
    tables = re.search(r"```sql\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    assert tables is not None
    query(postgres_url, tables[1])
    assert list(said(example, postgres_url)) == []
    shutil.rmtree(example.parent / "data")
    (line,) = said(example, postgres_url)
    assert "duplicate key value" in line
    # The way out.
    assert line.endswith("(see `atb outbox list`)\n")


def test_foreign_directory_is_refused_with_a_way_out(example: Path) -> None:
    foreign = example.parent / "data" / "outbox"
    foreign.mkdir(parents=True)
    (foreign / "notes.txt").touch()
    *_, last = said(example, AWAY)
    assert "is not an outbox store: it has no outbox.json" in last
    assert "(name another directory, by OUTBOX_DIR or --dir, or move this one away)" in last
