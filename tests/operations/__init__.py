"""Tests of the admission, dispatch and completion of operations."""
