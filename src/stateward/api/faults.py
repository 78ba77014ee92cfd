"""Faults: every refusal becomes an answer in the API's own format, here and nowhere else."""

from __future__ import annotations

import re
from collections import Counter
from typing import Final

import msgspec
from starlette.responses import Response

from stateward.domain.errors import Conflict, Forbidden, HostUnavailable, Invalid, NotFound, Refusal, Refused
from stateward.store.engine import StoreUnavailable
from stateward.store.idempotency import KeyReused

_NAMES: Final = {
    400: "badRequest",
    401: "unauthorized",
    403: "forbidden",
    404: "itemNotFound",
    405: "badMethod",
    409: "conflictingRequest",
    413: "overLimit",
    415: "badMediaType",
    422: "unprocessableEntity",
    501: "notImplemented",
    503: "serviceUnavailable",
}
_STATUS_OF_REFUSAL: Final = {
    Refusal.NOT_FOUND: 404,
    Refusal.WRONG_VM_STATE: 409,
    Refusal.WRONG_TASK_STATE: 409,
    Refusal.LOCKED: 409,
    Refusal.ADOPTED: 409,
    Refusal.NOT_ADOPTED: 409,
    Refusal.NO_HOST: 409,
    Refusal.NOT_FENCED: 409,
    Refusal.DISK_IS_THERE: 409,
    Refusal.NO_VALID_HOST: 409,
    Refusal.OVERTAKEN: 409,
    Refusal.FROZEN: 409,
}
_STATUS_OF_KIND: Final[dict[type[Exception], int]] = {
    Invalid: 400,
    NotFound: 404,
    Conflict: 409,
    KeyReused: 422,
    HostUnavailable: 503,
    StoreUnavailable: 503,
}


_CAPITAL: Final = re.compile(r"(?<!^)(?=[A-Z])")
#: Refusals by what refused, since this process began: for metrics.
REFUSED: Final[Counter[str]] = Counter()


class Unauthorized(Exception):
    """The request has no token that is good now; ``str()`` says what is wrong with it."""


class ApiFault(Exception):
    """An answer that only the API layer can know: a status of its own and a sentence."""

    def __init__(self, status: int, message: str) -> None:
        """Keep both."""
        self.status = status
        super().__init__(message)


def fault(status: int, message: str) -> Response:
    """Make an answer in the Compute API's fault format."""
    name = _NAMES.get(status, "computeFault")
    body = msgspec.json.encode({name: {"code": status, "message": message}})
    headers = {"www-authenticate": "Keystone"} if status == 401 else None  # noqa: PLR2004 (HTTP's number)
    return Response(body, status, headers, media_type="application/json")


def status_of(error: Exception) -> tuple[int, str] | None:
    """Give the status and sentence of an expected error; None for a fault of our own."""
    known = _known(error)
    if known is not None:
        name = error.refusal.name if isinstance(error, Refused) else _CAPITAL.sub("_", type(error).__name__)
        REFUSED[name.lower()] += 1
    return known


def _known(error: Exception) -> tuple[int, str] | None:
    if isinstance(error, Refused):
        return _STATUS_OF_REFUSAL[error.refusal], str(error)
    if isinstance(error, ApiFault):
        return error.status, str(error)
    if isinstance(error, Forbidden):
        return 403, error.sentence
    if isinstance(error, Unauthorized):
        return 401, str(error) or "The request you have made requires authentication."
    status = next((status for kind, status in _STATUS_OF_KIND.items() if isinstance(error, kind)), None)
    return None if status is None else (status, str(error))
