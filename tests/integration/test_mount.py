"""A host that owns an `atb` script mounts our commands into it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from outbox import Outbox
from tests.unit.fakes.waiting import LONG

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "commands.md").read_text(encoding="utf-8")
WITH_ARGPARSE, WITH_CLICK = re.findall(
    r"^```python\n(.*?)^```$", PAGE.partition("## In a host's own script")[2], re.DOTALL | re.MULTILINE
)[:2]
HOSTS = {"argparse": WITH_ARGPARSE, "click": WITH_CLICK + "\natb(prog_name='atb')\n"}


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    script = tmp_path / "bin" / "atb.py"
    script.parent.mkdir()
    script.write_text(HOSTS[request.param])
    return script


def run(script: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    env = {name: value for name, value in os.environ.items() if not name.startswith("OUTBOX_")}
    done = subprocess.run(
        [sys.executable, str(script), *arguments], env=env, capture_output=True, text=True, timeout=LONG, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def test_commands_work_inside_the_hosts_script(host: Path, outbox_dir: Path) -> None:
    Outbox.open(outbox_dir).close()
    done = run(host, "outbox", "status", "--dir", str(outbox_dir), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    assert '"pending"' in done.stdout


def test_exit_codes_and_errors_come_through(host: Path, tmp_path: Path) -> None:
    done = run(host, "outbox", "status", "--dir", str(tmp_path / "absent"))
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    done = run(host, "outbox", "status", "--nonsense")
    assert done.returncode == 2
    assert "--nonsense" in done.stderr


@pytest.mark.parametrize("arguments", [("--help",), ("-h",), ("drain", "--help")])
def test_help_is_ours_and_names_the_hosts_program(host: Path, arguments: tuple[str, ...]) -> None:
    done = run(host, "outbox", *arguments)
    assert done.returncode == 0
    assert re.match(r"Usage: atb outbox", done.stdout)
