"""Which guests libvirt keeps, or kept, a saved memory of.

That it has deleted one it does not say: a guest whose managed save was removed is off by a save, with no image, exactly
as one whose memory somebody saved to a file of theirs (``virsh save``). Of the latter nothing may be started but from
that file, so the two must be told apart: the first had an image when it was seen before.
"""

from __future__ import annotations

import threading

from stateward.domain.states import Cause, Observed


class Memories:
    """Remembers whose memory libvirt was seen to keep since they ran; a new one knows of nobody."""

    def __init__(self) -> None:
        """Begin."""
        self._lock = threading.Lock()
        self._kept: set[bytes] = set()

    def cause(self, uuid: bytes, now: Observed, cause: Cause) -> Cause:
        """Note how a guest was seen, and return why it is so: by a save only if that is not known to be gone."""
        with self._lock:
            if now is Observed.SUSPENDED:
                self._kept.add(uuid)
            elif now is not Observed.SHUTOFF:
                self._kept.discard(uuid)
            elif cause is Cause.SAVED and uuid in self._kept:
                return Cause.OTHER
        return cause
