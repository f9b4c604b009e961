"""What looks after stored backups: retention, garbage collection, scrubbing, repair, rebuilding."""
