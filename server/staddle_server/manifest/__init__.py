"""Entries ↔ pages: build a manifest, merge what changed with a base, find a path, list a directory, compare two."""
