"""Simulates many lives: `python -m tests.simulation --seeds 20000`, or one with its trace: `--seed 123`."""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor

from .world import World

_CHUNK = 100


def violations_of(seed: int, say: Callable[[str], None] | None = None) -> list[str]:
    """What is wrong at the end of one life; an exception that gets out is wrong too."""
    try:
        return World(seed, say).run()
    except Exception as exc:  # noqa: BLE001 - whatever it is, the seed is to be reported
        return [f"{type(exc).__name__}: {exc}"]


def replay(seed: int) -> str:
    """How to see every step of one life."""
    return f"replay it with: make simulate SEED={seed}"


def violations_in(seeds: range) -> list[tuple[int, list[str]]]:
    """`(seed, violations)` of those that have some."""
    logging.disable(logging.CRITICAL)
    return [(seed, found) for seed in seeds if (found := violations_of(seed))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit code: 1 if some seed violates an invariant."""
    parser = argparse.ArgumentParser(description=__doc__, prog="python -m tests.simulation")
    parser.add_argument("--seeds", type=int, default=2000, help="how many seeds, from --first on")
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--seed", type=int, help="only this one, with every step")
    options = parser.parse_args(arguments)
    if options.seed is not None:
        logging.disable(logging.CRITICAL)
        found = violations_of(options.seed, print)
        print("\n".join(found) or "nothing is violated")  # noqa: T201
        return 1 if found else 0
    began = time.monotonic()
    last = options.first + options.seeds
    chunks = [range(first, min(first + _CHUNK, last)) for first in range(options.first, last, _CHUNK)]
    bad: list[tuple[int, list[str]]] = []
    with ProcessPoolExecutor() as pool:
        for some in pool.map(violations_in, chunks):
            bad += some
    for seed, sentences in bad[:10]:
        print(f"seed {seed}: {'; '.join(sentences[:3])}")  # noqa: T201
        print(f"  {replay(seed)}")  # noqa: T201
    print(f"simulate: seeds={options.seeds} failed={len(bad)} seconds={time.monotonic() - began:.1f}")  # noqa: T201
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
