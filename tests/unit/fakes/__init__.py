"""Stand-ins for what the relay is given (clock, target), parts that break real servers on purpose, and the audit."""
