"""PostgreSQL: the target that entries are delivered to, and what it remembers of them."""
