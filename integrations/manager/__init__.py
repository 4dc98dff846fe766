"""Manager: the engine's own manager, its connection, and the classes that stand for it."""
