"""How tests run `atb outbox ...`: in a process of its own, or, where that is the same and faster, inside this one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from outbox.cli import atb
from tests.unit.fakes.waiting import LONG

# The demo, the longest, gives up by itself when nothing moves.
_HANGS_AFTER_S = 5 * LONG

COMMAND = (sys.executable, "-m", "outbox", "outbox")


def environment(**settings: str) -> dict[str, str]:
    """This process's environment with `settings` and without others of the outbox."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OUTBOX_", "DATABASE_URL"))}
    return {**kept, **settings}


def begin(*arguments: str, cwd: Path | str, **settings: str) -> subprocess.Popen[str]:
    """Start a command; the caller ends it."""
    return subprocess.Popen(
        [*COMMAND, *arguments],
        env=environment(**settings),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(*arguments: str, cwd: Path | str = "/", answer: str = "", **settings: str) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with `answer` on its stdin; a traceback fails the test."""
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment(**settings),
        cwd=cwd,
        input=answer,
        capture_output=True,
        text=True,
        timeout=_HANGS_AFTER_S,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def invoke(*arguments: str, **settings: str) -> Result:
    """Run a command inside this process; an exception other than its exit fails the test."""
    done = CliRunner().invoke(atb, ["outbox", *arguments], env=settings, prog_name="atb")
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done
