"""Malformed input, as tables: words, JSON lines, folders of models, runs and caches; and how a case is tried."""
