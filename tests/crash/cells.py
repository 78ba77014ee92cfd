"""The count of the crash matrix's cells."""

from __future__ import annotations

from collections import Counter
from typing import Final

#: Cells that were carried out and compared, by dimension.
RAN: Final[Counter[str]] = Counter()
