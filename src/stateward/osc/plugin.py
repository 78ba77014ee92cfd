"""What python-openstackclient asks of a plugin: how to reach Stateward's own API, through the cloud's catalog."""

from __future__ import annotations

import argparse
from typing import Any, Final

from keystoneauth1.exceptions import EndpointNotFound, HttpError
from osc_lib.exceptions import CommandError

DEFAULT_API_VERSION: Final = "1"
API_VERSION_OPTION: Final = "os_stateward_api_version"
API_NAME: Final = "stateward"
API_VERSIONS: Final = ("1",)


class Native:
    """Asks Stateward's own API with the client's session."""

    def __init__(self, session: Any, *, region_name: str | None, interface: str) -> None:
        """Keep the session, and where the catalog is to be read."""
        self._session = session
        self._where = {"service_type": "stateward", "interface": interface, "region_name": region_name}

    def native(self, method: str, path: str, body: object = None) -> Any:
        """Ask; None where nothing is answered.

        Raises:
            CommandError: with what the server says.
        """
        try:
            answer = self._session.request(
                path,
                method,
                json=body,
                endpoint_filter=dict(self._where),
                headers={"accept": "application/json"},
            )
        except EndpointNotFound:
            raise CommandError(
                "This cloud's catalog has no service of type 'stateward': it is no Stateward."
            ) from None
        except HttpError as error:
            raise CommandError(_detail(error)) from None
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
    return Native(instance.session, region_name=instance.region_name, interface=instance.interface)


def build_option_parser(parser: argparse.ArgumentParser) -> argparse.ArgumentParser:
    """Add no option: there is one version."""
    return parser
