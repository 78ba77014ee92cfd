"""Tests of the table of actions, and of what is derived from it."""
