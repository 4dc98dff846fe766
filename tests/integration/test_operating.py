"""The instructions of docs/how-to/install.md and docs/how-to/rotate-a-password.md, followed."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from outbox import Operation, Outbox, OutboxConfig, PostgresTarget, Relay
from outbox.testing import PostgresServer
from tests.unit.fakes.database import query
from tests.unit.fakes.waiting import LONG, until

pytestmark = pytest.mark.slow

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "how-to" / "install.md").read_text(encoding="utf-8")
BASH = shutil.which("bash") or "/bin/bash"
SCRIPTS = Path(sys.executable).parent
COMPLETIONS = re.findall(r"^eval .*$", PAGE, re.MULTILINE)

# As bash does when the tab key is pressed behind the last word.
PRESS_TAB = """
{line}
COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
$(complete -p {program} | sed -E 's/.*-F ([^ ]+) .*/\\1/') {program}
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


@pytest.mark.parametrize(("line", "program"), [*zip(COMPLETIONS, ("atb", "lmdb-outbox"), strict=True)])
def test_completion_of_commands_and_options(line: str, program: str) -> None:
    environment = {**os.environ, "PATH": f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"}

    def completed(words: str) -> list[str]:
        script = PRESS_TAB.format(line=line, words=words, program=program)
        done = subprocess.run([BASH, "-c", script], env=environment, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    assert completed(f"{program} outbox st") == ["status"]
    assert "--json" in completed(f"{program} outbox status --")


def test_password_changes_beside_a_running_relay(tmp_path: Path, no_leftovers: None) -> None:
    operations = [Operation("trade", table="trades")]
    config = OutboxConfig(backoff_base=0.01, backoff_cap=0.05, min_free_mb=0)
    passfile = tmp_path / "outbox.pgpass"

    def put(password: str) -> None:
        new = passfile.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_text(f"127.0.0.1:{server.port}:postgres:postgres:{password}\n")
        new.replace(passfile)

    with PostgresServer(password="old", fsync=False) as server:
        query(server.url(), "CREATE TABLE trades (number int)")
        put("old")
        url = f"postgresql://postgres@127.0.0.1:{server.port}/postgres?passfile={passfile}"
        with Outbox.open(tmp_path / "store", config, operations) as box:
            relay = Relay(box, PostgresTarget(url, operations, config=config))
            relay.start()
            box.enqueue("trade", {"number": 1})
            assert relay.drain(LONG)
            put("new")
            box.enqueue("trade", {"number": 2})
            assert relay.drain(LONG), "an open connection goes on"
            query(
                server.url(),
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'lmdb-outbox'",
            )
            box.enqueue("trade", {"number": 3})
            until(lambda: box.status().relay.stopped)
            assert not relay.drain(0.1), "the new password is not valid yet"
            query(server.url(), "ALTER ROLE postgres PASSWORD 'new'")
            assert relay.drain(LONG)
            relay.stop()
        assert query(server.url(password="new"), "SELECT number FROM trades ORDER BY 1") == [(1,), (2,), (3,)]
