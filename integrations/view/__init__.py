"""The local view: what a manager would answer, while PostgreSQL is away."""
