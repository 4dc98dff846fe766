"""Adapters that put the outbox in front of a trading engine, and a paper engine to try them on."""
