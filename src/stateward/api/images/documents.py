"""What the image service says about itself: versions, schemas, and that there is one store and no import."""

from __future__ import annotations

from typing import Any, Final

import msgspec
from starlette.requests import Request
from starlette.responses import Response

from stateward.api.http import base_url, reply
from stateward.api.identity import Identity
from stateward.api.images.attributes import Attributes
from stateward.api.images.callers import caller_of
from stateward.domain.errors import NotFound

_MEMBER: Final = {
    "name": "member",
    "properties": {
        "created_at": {"type": "string"},
        "image_id": {"type": "string"},
        "member_id": {"type": "string"},
        "schema": {"type": "string", "readOnly": True},
        "status": {"type": "string", "enum": ["pending", "accepted", "rejected"]},
        "updated_at": {"type": "string"},
    },
}


class Documents:
    """The handlers."""

    def __init__(self, identity: Identity, public_url: str | None) -> None:
        """Serve them; versions to everybody, the rest to the users of an identity service."""
        self._identity = identity
        self._public_url = public_url
        image = _image_schema()
        self._schemas = {
            "image": image,
            "images": _list_of(image, "images"),
            "member": _MEMBER,
            "members": _list_of(_MEMBER, "members"),
        }

    async def versions(self, request: Request) -> Response:
        """List the versions, as a choice."""
        return reply(self._versions(request), 300)

    async def versions_plainly(self, request: Request) -> Response:
        """List the versions."""
        return reply(self._versions(request))

    async def schema(self, request: Request) -> Response:
        """Show a schema."""
        await caller_of(self._identity, request)
        name = request.path_params["name"]
        if name not in self._schemas:
            raise NotFound(f"There is no schema {name}.")
        return reply(self._schemas[name])

    async def import_methods(self, request: Request) -> Response:
        """Say that images are uploaded, and not imported in any way."""
        await caller_of(self._identity, request)
        methods: dict[str, Any] = {"description": "Import methods available.", "type": "array", "value": []}
        return reply({"import-methods": methods})

    async def stores(self, request: Request) -> Response:
        """Name the one place for data."""
        await caller_of(self._identity, request)
        return reply({"stores": [{"id": "folder", "default": "true"}]})

    def _versions(self, request: Request) -> dict[str, Any]:
        address = f"{base_url(request, self._public_url)}/image/v2/"
        links = [{"rel": "self", "href": address}]
        return {
            "versions": [
                {"id": "v2.7", "status": "CURRENT", "links": links},
                {"id": "v2.2", "status": "SUPPORTED", "links": links},
                {"id": "v2.1", "status": "SUPPORTED", "links": links},
                {"id": "v2.0", "status": "SUPPORTED", "links": links},
            ]
        }


def _image_schema() -> dict[str, Any]:
    """Make the schema of an image of the type that its body is checked against."""
    properties: dict[str, Any] = dict(msgspec.json.schema(Attributes)["$defs"]["Attributes"]["properties"])
    for name in ("id", "status", "checksum", "os_hash_algo", "os_hash_value", "created_at", "updated_at"):
        properties[name] = {"type": ["null", "string"], "readOnly": name != "id"}
    for name in ("self", "file", "schema"):
        properties[name] = {"type": "string", "readOnly": True}
    for name in ("size", "virtual_size"):
        properties[name] = {"type": ["null", "integer"], "readOnly": True}
    return {
        "name": "image",
        "properties": properties,
        "additionalProperties": {"type": "string"},
        "links": [
            {"href": "{self}", "rel": "self"},
            {"href": "{file}", "rel": "enclosure"},
            {"href": "{schema}", "rel": "describedby"},
        ],
    }


def _list_of(schema: dict[str, Any], name: str) -> dict[str, Any]:
    return {
        "name": name,
        "properties": {
            name: {"type": "array", "items": schema},
            "first": {"type": "string"},
            "next": {"type": "string"},
            "schema": {"type": "string"},
        },
        "links": [{"href": "{first}", "rel": "first"}, {"href": "{next}", "rel": "next"}],
    }
