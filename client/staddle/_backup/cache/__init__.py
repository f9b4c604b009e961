"""The client's cache of what the newest backups hold."""
