"""Ids: numbers of the manager's sequences, reserved before an outage."""
