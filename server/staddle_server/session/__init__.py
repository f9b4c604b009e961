"""One backup or restore from start to commit: order, limits, leases."""
