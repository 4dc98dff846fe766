"""Monitoring: the status of an outbox, its parts, and their sources."""
