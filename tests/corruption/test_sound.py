"""Some of the sound stores; `make corruption` makes twenty thousand."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .campaign import ROOT

_PER_TEST = 60


@pytest.mark.parametrize("first", [1, 1000])
def test_sound_store_is_opened_whatever_was_done_to_it(first: int) -> None:
    """In a process of its own, which forks all the time."""
    command = [sys.executable, "-m", "tests.corruption.sound", str(_PER_TEST), str(first)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), *(path for path in sys.path if path)))}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=800)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith(f"{_PER_TEST} sound stores")
