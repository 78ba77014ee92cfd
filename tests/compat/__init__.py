"""Stateward beside Nova: recorded exchanges, and the clients that people have."""
