"""Benchmarks: what durability costs, how fast a backlog drains, and how little the one disturbs the other.

Every scenario runs its contenders in turns inside one run, since machines drift, and compares ratios.  A contender
counts only if it did the same work: its rows are counted afterwards, and the kernel is asked which flushes it made
(`flushes.py`).  Run `python -m benchmarks --help`.
"""
