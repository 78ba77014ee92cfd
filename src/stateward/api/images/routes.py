"""The addresses of the image service, below ``/image``."""

from __future__ import annotations

from starlette.routing import BaseRoute, Route

from stateward.api.http import NOT_FOUND, Endpoint, Handler
from stateward.api.identity import Identity
from stateward.api.images.data import ImageData
from stateward.api.images.documents import Documents
from stateward.api.images.members import ImageMembers
from stateward.api.images.resources import ImageResources
from stateward.api.images.service import Images


def image_routes(images: Images, identity: Identity, *, public_url: str | None = None) -> list[BaseRoute]:
    """Return the routes of the image service, to be mounted at ``/image``.

    Args:
        images: the service.
        identity: knows the callers.
        public_url: the server's address for clients; None: what each request's Host header says.
    """
    one = ImageResources(images, identity)
    data = ImageData(images, identity)
    members = ImageMembers(images, identity)
    documents = Documents(identity, public_url)
    return [
        _route("/", GET=documents.versions),
        _route("/versions", GET=documents.versions_plainly),
        _route("/v2", GET=documents.versions),
        _route("/v2/", GET=documents.versions),
        _route("/v2/images", GET=one.index, POST=one.create),
        _route("/v2/images/{image_id}", GET=one.show, PATCH=one.change, DELETE=one.delete),
        _route("/v2/images/{image_id}/file", GET=data.download, PUT=data.upload),
        _route("/v2/images/{image_id}/tags/{tag}", PUT=one.tag, DELETE=one.untag),
        _route("/v2/images/{image_id}/members", GET=members.index, POST=members.add),
        _route(
            "/v2/images/{image_id}/members/{member_id}",
            GET=members.show,
            PUT=members.answer,
            DELETE=members.remove,
        ),
        _route("/v2/schemas/{name}", GET=documents.schema),
        _route("/v2/info/import", GET=documents.import_methods),
        _route("/v2/info/stores", GET=documents.stores),
        Route("/{rest:path}", NOT_FOUND),
    ]


def _route(path: str, **handlers: Handler) -> Route:
    return Route(path, Endpoint(handlers))
