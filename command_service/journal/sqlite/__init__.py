"""A journal in one SQLite file, with its WAL, its anchor and its lock beside it."""
