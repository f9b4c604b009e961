"""One backup from start to commit: order, limits, leases."""
