"""Servers and agents that are killed, and what must be true after (B3)."""
