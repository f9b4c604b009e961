"""A backup into a directory or an archive."""
