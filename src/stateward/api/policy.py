"""Whether a caller's role is enough: one rule for every API."""

from __future__ import annotations

from stateward.api.identity.tokens import Token
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Forbidden


def allow(token: Token, policy: Policy) -> None:
    """Go on only if the caller's role is enough.

    Raises:
        Forbidden: it is not.
    """
    match policy.role:
        case Role.READER:
            enough = token.is_admin or token.is_reader
        case Role.MEMBER:
            enough = token.is_admin or token.is_member
        case Role.ADMIN:
            enough = token.is_admin
        case Role.SYSTEM:
            enough = False
    if not enough:
        raise Forbidden(policy.rule)
