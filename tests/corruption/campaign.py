"""Judges many mutants, in processes that stand for the engine's: when one dies of a mutant, that is an outcome too.

`python -m tests.corruption.campaign FIRST STEP END` is such a process; it says each verdict as a line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from .judge import Judge, Verdict
from .template import build

DIED = "THE PROCESS DIED"
ROOT = Path(__file__).resolve().parents[2]
# In memory, where there is: what is on the disk is damaged on purpose anyway.
_MEMORY = Path("/dev/shm")  # noqa: S108 - a folder of our own is made in it


def run(first: int, end: int, *, processes: int = 1, tell: Callable[[Verdict], None] | None = None) -> list[Verdict]:
    """The verdicts on mutants `first` to `end`, without it, in order."""
    verdicts: list[Verdict] = []
    lock = threading.Lock()

    def take(verdict: Verdict) -> None:
        with lock:
            verdicts.append(verdict)
            if tell is not None:
                tell(verdict)

    shares = [threading.Thread(target=_share, args=(first + at, processes, end, take)) for at in range(processes)]
    for share in shares:
        share.start()
    for share in shares:
        share.join()
    return sorted(verdicts, key=lambda verdict: verdict.number)


def _share(first: int, step: int, end: int, take: Callable[[Verdict], None]) -> None:
    """Every `step`th mutant, by one process after the other, as often as one dies."""
    while first < end:
        command = [sys.executable, "-m", "tests.corruption.campaign", str(first), str(step), str(end)]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join((str(ROOT), *(path for path in sys.path if path)))}
        # A file, since the warnings of many mutants fill a pipe that nobody reads meanwhile.
        with (
            tempfile.TemporaryFile("w+") as errors,
            subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True
            ) as process,
        ):
            assert process.stdout is not None
            for line in process.stdout:
                take(Verdict(**json.loads(line)))
                first += step
            process.wait()
            errors.seek(0)
            said = errors.read().strip().splitlines()[-1:]
        if process.returncode:
            told = f"ended with {process.returncode}: {' '.join(said)}"
            take(Verdict(first, "unknown", "", DIED, [told]))
            first += step


def main(first: int, step: int, end: int) -> None:
    """Judge and say so."""
    with tempfile.TemporaryDirectory(prefix="outbox-mutants-", dir=_MEMORY if _MEMORY.is_dir() else None) as name:
        folder = Path(name)
        judge = Judge(build(folder), folder)
        for number in range(first, end, step):
            sys.stdout.write(json.dumps(asdict(judge.judge(number))) + "\n")
            sys.stdout.flush()


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
