"""The relay: reads what is pending, has it delivered, and records the outcome."""
