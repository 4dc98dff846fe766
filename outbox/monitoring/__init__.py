"""Monitoring: what a person or a program is told of an outbox, and from what."""
