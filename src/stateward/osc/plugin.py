"""What python-openstackclient asks of a plugin: how to reach Stateward's own API, through the cloud's catalog."""

from __future__ import annotations

import argparse
from collections.abc import Collection
from typing import Any, Final

from keystoneauth1.exceptions import EndpointNotFound, HttpError

from stateward.cli.client import Failed, NoSuch, NotAllowed, server_named

DEFAULT_API_VERSION: Final = "1"
API_VERSION_OPTION: Final = "os_stateward_api_version"
API_NAME: Final = "stateward"
API_VERSIONS: Final = ("1",)


class Native:
    """Asks Stateward's own API with the client's session."""

    def __init__(self, session: Any, *, region_name: str | None, interface: str, admin: bool) -> None:
        """Keep the session, where the catalog is to be read, and whether an administrator asks."""
        self._session = session
        self._where = {"interface": interface, "region_name": region_name}
        self._admin = admin

    def native(self, method: str, path: str, body: object = None) -> Any:
        """Ask; None where nothing is answered.

        Raises:
            Failed: with what the server says.
        """
        return self._ask("stateward", method, path, body)

    def server(self, name: str) -> str:
        """Return the id of the server with a name; an id is returned as it is.

        Raises:
            Failed: there is none, or there are several.
        """
        return server_named(name, lambda path: self._ask("compute", "GET", path), admin=self._admin)

    def _ask(self, service: str, method: str, path: str, body: object = None) -> Any:
        try:
            answer = self._session.request(
                path,
                method,
                json=body,
                endpoint_filter={"service_type": service, **self._where},
                headers={"accept": "application/json"},
            )
        except EndpointNotFound:
            raise Failed(
                f"This cloud's catalog has no service of type {service!r}: it is no Stateward."
            ) from None
        except HttpError as error:
            kinds: dict[int, type[Failed]] = {403: NotAllowed, 404: NoSuch}
            raise kinds.get(error.http_status, Failed)(_detail(error)) from None
        return answer.json() if answer.content else None


def _detail(error: HttpError) -> str:
    """Return what a problem document says, or else what the library says."""
    response = error.response
    try:
        return str(error) if response is None else str(response.json()["detail"])
    except (KeyError, TypeError, ValueError):
        return str(error)


def make_client(instance: Any) -> Native:
    """Make the client that commands find as ``client_manager.stateward``."""
    roles: Collection[str] = instance.auth_ref.role_names or () if instance.auth_ref is not None else ()
    return Native(
        instance.session,
        region_name=instance.region_name,
        interface=instance.interface,
        admin="admin" in roles,
    )


def build_option_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add no option: there is one version."""
    return parser
