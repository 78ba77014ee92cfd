"""Tests of the agent and its drivers."""
