"""Tests on real QEMU guests."""
