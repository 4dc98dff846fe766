"""Preflight: whether a manager can be served, decided by reading it before it is wired."""
