"""The store: one LMDB environment, its records, its files, and who may write them."""
