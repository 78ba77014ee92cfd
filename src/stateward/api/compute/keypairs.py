"""``/os-keypairs``: the public keys of a user; an admin may name another user (2.10)."""

from __future__ import annotations

import re
from typing import Annotated, Any, Final, Literal

import msgspec
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute.call import Call, Endpoint, Handler, empty, reply
from stateward.api.compute.paging import next_page, only, page_of
from stateward.api.compute.services import Services
from stateward.api.compute.ssh_keys import fingerprint, generate
from stateward.api.compute.views import when_precisely
from stateward.domain.errors import Forbidden, Invalid
from stateward.store import keypairs
from stateward.store.keypairs import Keypair, NewKeypair

_TYPE, _USER, _PAGES, _NO_GENERATING = 2, 10, 35, 92
_NAME: Final = re.compile(r"[a-zA-Z0-9 _-]*", re.ASCII)
_NAME_FROM_2_92: Final = re.compile(r"[a-zA-Z0-9 @._-]*", re.ASCII)

Name = Annotated[
    str, msgspec.Meta(min_length=1, max_length=255, pattern=r"^(?!\s)[^\x00-\x1f\x7f]*(?<!\s)\Z")
]
UserId = Annotated[str, msgspec.Meta(max_length=64, pattern=r"^[^\x00]*\Z")]


class KeypairBody(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a new key pair is described by; without a public key, one is generated."""

    name: Name
    public_key: str | msgspec.UnsetType = msgspec.UNSET


class TypedKeypairBody(KeypairBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same from the microversion on that has types."""

    type: Literal["ssh", "x509"] = "ssh"


class OwnedKeypairBody(TypedKeypairBody, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The same from the microversion on that lets an admin name the user."""

    user_id: UserId | None = None


def _view(call: Call, keypair: Keypair) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "name": keypair.name,
        "public_key": keypair.public_key,
        "fingerprint": keypair.fingerprint,
    }
    if call.minor >= _TYPE:
        shown["type"] = keypair.type
    return shown


def _user(call: Call, rule: str, named: str | None) -> str:
    """Return whose key pairs are meant.

    Raises:
        Forbidden: somebody else's, and the caller is no admin.
    """
    user = named or call.token.user_id
    if user != call.token.user_id and not call.token.is_admin:
        raise Forbidden(f"os_compute_api:os-keypairs:{rule}")
    return user


def _named_user(call: Call) -> str | None:
    return call.request.query_params.get("user_id") if call.minor >= _USER else None


async def index(call: Call) -> Response:
    """List a user's key pairs."""
    only(call, "user_id", "limit", "marker")
    user = _user(call, "index", _named_user(call))
    page = page_of(call) if call.minor >= _PAGES else None
    limit, marker = (page.limit, page.marker) if page is not None else (None, None)
    try:
        found = await call.services.database.read(
            lambda connection: keypairs.page(connection, user, limit=limit, marker=marker)
        )
    except LookupError as error:
        raise Invalid(f"Marker {error.args[0]} could not be found.") from None
    body: dict[str, Any] = {"keypairs": [{"keypair": _view(call, keypair)} for keypair in found]}
    if page is not None:
        body |= next_page(call, page, "os-keypairs", found, found[-1].name if found else None)
    return reply(body)


async def show(call: Call) -> Response:
    """Show one key pair."""
    only(call, "user_id")
    user, name = _user(call, "show", _named_user(call)), call.path["name"]
    found = await call.services.database.read(lambda connection: keypairs.get(connection, user, name))
    if found is None:
        raise keypairs.not_found(user, name)
    more = {
        "user_id": found.user_id,
        "id": found.number,
        "created_at": when_precisely(found.created_at),
        "updated_at": None,
        "deleted": False,
        "deleted_at": None,
    }
    return reply({"keypair": _view(call, found) | more})


async def create(call: Call) -> Response:
    """Keep a public key; up to 2.91 without one, make a pair and hand the private key out once."""
    body = await call.member("keypair", _body_type(call))
    kind = body.type if isinstance(body, TypedKeypairBody) else "ssh"
    user = _user(call, "create", body.user_id if isinstance(body, OwnedKeypairBody) else None)
    if not (_NAME_FROM_2_92 if call.minor >= _NO_GENERATING else _NAME).fullmatch(body.name):
        raise Invalid("Keypair data is invalid: Keypair name contains unsafe characters")
    if isinstance(body.public_key, str):
        private_key, public_key = None, body.public_key
    elif call.minor >= _NO_GENERATING:
        raise Invalid("Invalid input for field/attribute keypair. 'public_key' is a required property")
    elif kind == "x509":
        raise Invalid("Keypair data is invalid: a pair of type x509 cannot be generated here. Import one.")
    else:
        private_key, public_key = await generate()
    new = NewKeypair(
        user_id=user,
        name=body.name,
        type=kind,
        public_key=public_key,
        fingerprint=fingerprint(public_key, kind),
        created_at=call.services.clock.now(),
    )
    made = await call.services.database.write(lambda connection: keypairs.create(connection, new))
    shown = _view(call, made) | {"user_id": made.user_id}
    if private_key is not None:
        shown["private_key"] = private_key
    return reply({"keypair": shown}, 201 if call.minor >= _TYPE else 200)


def _body_type(call: Call) -> type[KeypairBody]:
    if call.minor >= _USER:
        return OwnedKeypairBody
    return TypedKeypairBody if call.minor >= _TYPE else KeypairBody


async def delete(call: Call) -> Response:
    """Forget a key pair; instances made with it keep the key."""
    only(call, "user_id")
    user, name = _user(call, "delete", _named_user(call)), call.path["name"]
    await call.services.database.write(lambda connection: keypairs.delete(connection, user, name))
    return empty(204 if call.minor >= _TYPE else 202)


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the routes; whose key pairs they are about decides who may, so each handler looks."""

    def at(path: str, method: str, handler: Handler) -> Route:
        return Route(path, Endpoint(services, handler, policy=None, legacy=legacy), methods=[method])

    return [
        at("/os-keypairs", "GET", index),
        at("/os-keypairs", "POST", create),
        at("/os-keypairs/{name}", "GET", show),
        at("/os-keypairs/{name}", "DELETE", delete),
    ]
