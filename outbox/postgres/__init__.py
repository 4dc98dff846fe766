"""PostgreSQL: the target of deliveries, with its receipts and watermarks."""
