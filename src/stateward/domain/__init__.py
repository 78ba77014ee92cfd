"""What is true of instances, locks, operations and verdicts: pure tables and functions, no I/O."""
