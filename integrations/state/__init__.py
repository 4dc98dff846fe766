"""State: what a manager keeps in its own attributes."""
