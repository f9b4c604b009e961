"""What all packages build on: types, errors, limits, logs, threads, clock."""
