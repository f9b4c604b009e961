"""One restore or one look from start to end."""
