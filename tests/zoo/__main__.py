"""Lets each bug of the zoo loose in a copy of the project and tells which test has caught it.

`python -m tests.zoo [WORDS]`: all bugs, or those whose names contain all words.  Exit code 1 if one survives.
"""

from __future__ import annotations

import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from .bugs import BUGS, Bug

ROOT = Path(__file__).resolve().parents[2]
_PATIENCE_S = 600


def copy_project(to: Path) -> None:
    """The project without what is not part of it, shaped so that it is imported from there."""
    ignored = shutil.ignore_patterns(".git", ".venv", "*.egg-info", "__pycache__", ".*_cache", ".hypothesis", "build")
    shutil.copytree(ROOT, to, ignore=ignored)
    for name in ("cli", "integrations"):
        (to / "outbox" / name).symlink_to(to / name)


def hunt(bug: Bug, folder: Path) -> str | None:
    """The test that fails with `bug` in the copy in `folder`, or None."""
    path = folder / bug.file
    sound = path.read_text(encoding="utf-8")
    path.write_text(sound.replace(bug.old, bug.new), encoding="utf-8")
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *bug.tests]
    environment = {**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, text=True, timeout=_PATIENCE_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"none in time: nothing ended within {_PATIENCE_S} s"
    finally:
        path.write_text(sound, encoding="utf-8")
    caught = re.search(r"^(?:FAILED|ERROR) \S*?([^/\s]+\.py(?:::\S+)?)", done.stdout, re.MULTILINE)
    if done.returncode not in (0, 1) or (done.returncode == 1 and caught is None):
        raise RuntimeError(f"the tests for {bug.name!r} could not be run:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return caught[1] if caught is not None else None


def main(words: list[str]) -> int:
    """Hunt them all, one bug per processor at a time; returns the exit code."""
    bugs = [bug for bug in BUGS if all(word in bug.name for word in words)]
    survivors = 0
    with tempfile.TemporaryDirectory(prefix="outbox-zoo-") as name:
        copies: queue.SimpleQueue[Path] = queue.SimpleQueue()
        workers = os.cpu_count() or 1
        for number in range(workers):
            copy_project(Path(name) / str(number))
            copies.put(Path(name) / str(number))

        def let_loose(bug: Bug) -> tuple[Bug, float, str | None]:
            folder, began = copies.get(), time.monotonic()
            try:
                caught = hunt(bug, folder)
                return bug, time.monotonic() - began, caught
            finally:
                copies.put(folder)

        with ThreadPoolExecutor(workers) as pool:
            for number, (bug, took_s, caught) in enumerate(pool.map(let_loose, bugs), 1):
                survivors += caught is None
                print(f"{number:3}/{len(bugs)} {took_s:6.1f} s  {bug.name}")  # noqa: T201
                print(f"                  {'SURVIVED' if caught is None else 'caught by ' + caught}", flush=True)  # noqa: T201
    print(f"zoo: bugs={len(bugs)} caught={len(bugs) - survivors} survived={survivors}")  # noqa: T201
    return 1 if survivors else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
