"""Preflight: whether a manager can be served, decided before it is wired."""
