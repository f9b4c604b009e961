"""One restore or one read-only query from start to end."""
