"""Transfer: a store as lines of text, out and back in."""
