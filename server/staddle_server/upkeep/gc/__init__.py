"""Garbage collection: removes what no backup needs, beside running backups and restores."""
