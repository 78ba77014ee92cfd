"""The record of intent, operations, locks and audit, kept in SQLite or PostgreSQL; the only layer that speaks SQL."""
