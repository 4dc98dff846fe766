"""Faults on purpose: kills, failing system calls, a cut wire, a full disk.  Each asserts that it struck."""
