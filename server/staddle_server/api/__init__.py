"""Who may call what, limits, the error table, page tokens, and conversion between messages and values."""
