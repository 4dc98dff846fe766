"""Rescue: checks whether a store is sound, and salvages a damaged one."""
