"""Where Stateward answers other than Nova on purpose, and why; docs/compatibility.md tells it to users."""

from __future__ import annotations

from typing import Any, Final

import msgspec


class Deviation(msgspec.Struct, frozen=True, kw_only=True):
    """One recorded exchange that is answered differently."""

    reason: str
    #: Parts of the recorded answer that are otherwise here, by their path.
    changes: dict[str, Any] = {}
    #: The whole answer, where nothing of the recorded one is left.
    instead: dict[str, Any] | None = None


#: Members of a server that has ports. Nova leaves them out of one without, and here there are no such groups.
WITH_PORTS: Final = frozenset({"security_groups"})

_OWN_NETWORKS = "Networks are this installation's own, and the recorded id names none of them."
_CELLS = (
    "There are no cells: an instance that is not there is not found, in the words of every other request."
)
_VERSION = "A version that is not there cannot be the one an answer is in, so the answer names none."
_RELOCK = (
    "Locking again says what holds from now on: a reason replaces the old one, no reason clears it. Nova keeps the "
    "first reason of an owner, and the last one of an admin."
)
_STACKED = (
    "Locks are stacked: an admin's lock lies over the owner's and its unlock takes it alone, so the owner's lock is "
    "there again afterwards. In Nova the one overwrites the other."
)
_SHOWN = "The reason that is shown is that of the strongest lock; Nova shows the owner's reason for the admin's lock."
_RECORDED = (
    "Locking again changes what holds, so it is recorded; Nova passes it over for an owner, unrecorded."
)

#: What was done to the server of the story up to its end, the newest first.
_ACTIONS: Final = [
    "lock",
    "unlock",
    "lock",
    "unlock",
    "lock",
    "lock",
    "unlock",
    "lock",
    "unlock",
    "lock",
    "lock",
    "lock",
    "unlock",
    "lock",
    "lock",
    "lock",
    "unlock",
    "unlock",
    "lock",
    "unlock",
    "lock",
    "unlock",
    "lock",
    "unlock",
    "lock",
    "unlock",
    "lock",
    "unlock",
    "lock",
    "unlock",
    "lock",
    "unlock",
    "unlock",
    "lock",
    "lock",
    "lock",
    "create",
]

DEVIATIONS: Final = {
    "basic_003_create-v2.1": Deviation(
        reason=_OWN_NETWORKS,
        instead={
            "status": 400,
            "version": "2.1",
            "fault": "badRequest",
            "code": 400,
            "message": "Network {network} could not be found.",
        },
    ),
    "basic_048_os-stop-404": Deviation(
        reason=_CELLS,
        changes={"message": "Instance 11111111-1111-1111-1111-111111111111 could not be found."},
    ),
    "basic_056_bad-microversion-9.99": Deviation(reason=_VERSION, changes={"version": None}),
    "lock_010_after-relock-by-owner-with-reason-get-2.104": Deviation(
        reason=_RELOCK, changes={"values/locked_reason": "second reason"}
    ),
    "lock_054_after-unlock-by-admin-in-demo-get-2.73": Deviation(
        reason=_STACKED, changes={"values/locked": True, "values/locked_reason": "owner tries"}
    ),
    "lock_059_after-admin-relock-no-reason-get-2.73": Deviation(
        reason=_RELOCK, changes={"values/locked_reason": None}
    ),
    "lock_061_after-admin-unlock-get-2.73": Deviation(
        reason=_STACKED, changes={"values/locked": True, "values/locked_reason": "owner tries"}
    ),
    "lock_069_after-admin-lock-over-owner-lock-get-2.73": Deviation(
        reason=_SHOWN, changes={"values/locked_reason": None}
    ),
    **{
        name: Deviation(reason=_RECORDED, changes={"actions": _ACTIONS})
        for name in (
            "lock_098_instance-actions-member-2.1",
            "lock_099_instance-actions-member-2.51",
            "lock_100_instance-actions-member-2.58",
            "lock_101_instance-actions-member-2.62",
            "lock_102_instance-actions-member-2.104",
            "lock_103_instance-actions-admin-2.104",
            "lock_104_instance-actions-reader-2.104",
        )
    },
    "lock_113_instance-actions-deleted-2.21": Deviation(
        reason=_RECORDED, changes={"actions": ["delete", "unlock", *_ACTIONS]}
    ),
}
