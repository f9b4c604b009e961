"""What was measured: figures, tables, checks, and the sections of docs/performance.md."""
