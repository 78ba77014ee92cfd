"""Tests of the simulation, and the scenarios."""
