"""Upkeep of stored backups: retention, garbage collection, scrubbing, repair, rebuilding."""
