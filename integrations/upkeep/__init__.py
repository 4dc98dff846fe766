"""Upkeep: keeps the local view and the id reserves current, in the background and behind each call."""
