"""The pytest plugin in a project that is not ours: a real pytest runs in a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from psycopg2 import OperationalError, connect

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
TO_PASTE, WITHOUT_SERVER, SERVER_ALONE = re.findall(
    r"^```python\n(.*?)^```$",
    (ROOT / "docs" / "how-to" / "test-your-outage.md").read_text(encoding="utf-8"),
    re.DOTALL | re.MULTILINE,
)

NOT_USED = """
import sys

def test_of_a_project_that_uses_nothing():
    assert "outbox.testing.plugin" in sys.modules
    libraries = {"lmdb", "orjson", "sqlalchemy", "psycopg2", "psutil", "click", "rich"}
    assert libraries & set(sys.modules) == set()
    assert {name for name in sys.modules if name.startswith("outbox")} == {
        "outbox", "outbox.testing", "outbox.testing.plugin",
    }
"""

ON_A_WORKER = """
import os
import pytest

@pytest.mark.parametrize("number", range(4))
def test_server(number, outbox_postgres_server, outbox_postgres, outbox_outage):
    with outbox_outage():
        assert not outbox_postgres_server.is_running
    with open(os.environ["SERVERS"], "a") as file:
        print(os.environ["PYTEST_XDIST_WORKER"], outbox_postgres_server.port, file=file)
"""

NO_OPERATIONS = """
def test_store(outbox_store):
    pass
"""


def run(folder: Path, code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run pytest on `code`, as a project of its own in `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / "test_outage.py").write_text(code)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OUTBOX_", "PYTEST_", "COV"))}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *arguments, str(folder)],
        cwd=folder,
        env={**kept, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.mark.parametrize("code", [TO_PASTE, WITHOUT_SERVER], ids=["to paste", "without a server"])
def test_example_of_the_documentation_passes(code: str, tmp_path: Path) -> None:
    done = run(tmp_path / "project", code)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_example_fails_where_a_repeated_call_is_a_new_trade(tmp_path: Path) -> None:
    doubled = TO_PASTE.replace('    trade("A-3")  # a repeated call\n', '    trade("A-4")\n')
    assert doubled != TO_PASTE
    done = run(tmp_path / "project", doubled)
    assert "table trades has 4 rows, expected 3" in done.stdout, done.stdout + done.stderr


def test_plugin_loads_no_library_before_a_fixture_is_used(tmp_path: Path) -> None:
    done = run(tmp_path / "project", NOT_USED)
    assert "1 passed" in done.stdout, done.stdout + done.stderr


def test_each_xdist_worker_has_its_own_server(tmp_path: Path) -> None:
    servers = tmp_path / "servers"
    done = run(tmp_path / "project", ON_A_WORKER, "-n", "2", SERVERS=str(servers))
    assert "4 passed" in done.stdout, done.stdout + done.stderr
    ports = {tuple(line.split()) for line in servers.read_text().splitlines()}
    workers = {worker for worker, _ in ports}
    assert len(workers) == 2
    assert len({port for _, port in ports}) == len(ports) == 2


def test_missing_operations_are_explained(tmp_path: Path) -> None:
    done = run(tmp_path / "project", NO_OPERATIONS)
    assert done.returncode == 1
    assert "define a fixture `outbox_operations`" in done.stdout
    assert "Traceback" not in done.stdout


def test_server_without_pytest_is_used_as_the_page_says() -> None:
    names: dict[str, Any] = {}
    exec(SERVER_ALONE, names)  # noqa: S102 - the page's own example
    # It was restored from the backup, ran until the end of the block, and is removed.
    assert names["url"].endswith("/trading")
    assert not names["backup"].exists()
    with pytest.raises(OperationalError, match="refused"):
        connect(names["url"])
