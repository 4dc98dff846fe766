"""Replay: a manager's call, made again inside the relay's transaction, at the time of the call."""
