"""What the tests use of PyYAML, which ships no types."""

from typing import Any

def safe_load(stream: str | bytes) -> Any: ...
