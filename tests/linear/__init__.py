"""Recorded histories of requests, and whether a lock that works could have answered them so (B1)."""
