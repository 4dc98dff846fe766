"""`python -m tests.corruption [COUNT] [FIRST]`: judges so many mutants and prints the outcomes.

Exit code 1 if a promise was broken; then it says which mutant broke it, and `python -m tests.corruption 1 NUMBER`
judges that one again.
"""

from __future__ import annotations

import os
import sys
import time

from .campaign import run
from .judge import Verdict, table


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main(count: int, first: int) -> int:
    """Judge them and report; returns the exit code."""
    began = time.monotonic()

    def tell(verdict: Verdict) -> None:
        if count == 1 or verdict.wrong:
            _say(f"mutant {verdict.number}: {verdict.kind}, {verdict.told}: {verdict.outcome}")
            for sentence in verdict.wrong:
                _say(f"  !! {sentence}")

    verdicts = run(first, first + count, processes=os.cpu_count() or 1, tell=tell)
    broken = [verdict.number for verdict in verdicts if verdict.wrong]
    _say(table(verdicts))
    _say(
        f"{len(verdicts)} mutants in {time.monotonic() - began:.0f} s, promises broken by {len(broken)}\n"
        f"entries on untouched pages: {sum(verdict.untouched for verdict in verdicts)}, all exported; "
        f"exported altogether: {sum(verdict.salvaged for verdict in verdicts)}, "
        f"of these {sum(verdict.uncertain for verdict in verdicts)} in an older state"
    )
    return 1 if broken or len(verdicts) != count else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, (sys.argv[1:] + ["500", "1"][len(sys.argv) - 1 :])[:2])))
