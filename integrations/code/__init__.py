"""Code: what the source of a manager's methods shows; nothing here runs it."""
