"""What all rooms stand on: types, errors, limits, logs, threads, clock."""
