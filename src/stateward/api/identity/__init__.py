"""The embedded identity service: Keystone's API v3, as far as clients of one machine's cloud need it."""

from stateward.api.identity.routes import identity_routes
from stateward.api.identity.service import Identity
from stateward.api.identity.tokens import Token

__all__ = ["Identity", "Token", "identity_routes"]
