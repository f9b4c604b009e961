"""A directory to a dataset: walk, compare, read and cut, ask, send, entries."""
