"""Transfer: exports a store as lines of text, and imports them."""
