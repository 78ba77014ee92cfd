"""pytest-xdist, as far as tests/conftest.py needs it: it has no types of its own."""
