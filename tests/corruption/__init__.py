"""Damaged stores, by the thousand: the engine's process never dies of one, and never returns wrong data in silence."""
