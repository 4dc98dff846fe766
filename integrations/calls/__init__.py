"""Calls: what happens while the engine waits for one call of its manager."""
