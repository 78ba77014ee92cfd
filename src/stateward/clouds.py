"""``clouds.yaml``: how the ``openstack`` client and openstacksdk find and enter this server."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from stateward.private import write_private

_CLOUDS: Final = {"stateward-admin": ("admin", "admin"), "stateward": ("demo", "demo")}

_HEAD: Final = """\
# Written by stateward serve; mode 0600, because it holds passwords.
# Use it with: export OS_CLIENT_CONFIG_FILE={path}
clouds:
"""
_CLOUD: Final = """\
  {cloud}:
    auth:
      auth_url: {address}/identity/v3
      username: {user}
      password: "{password}"
      project_name: {project}
      user_domain_name: Default
      project_domain_name: Default
    region_name: RegionOne
    identity_api_version: "3"
    # The newest that is true of this server, so that the client offers all of its options.
    compute_api_version: "2.104"
"""
_PASSWORD: Final = re.compile(r"username: (?P<user>\S+)\n\s+password: \"(?P<password>[^\"]*)\"")


def write_clouds(data: Path, address: str, passwords: dict[str, str] | None) -> Path:
    """Write the file, whole or not at all.

    Args:
        data: the folder it is written to.
        address: of the server, without a slash at the end.
        passwords: by user; None keeps those that the file has, and changes only the address.
    """
    path = data / "clouds.yaml"
    if passwords is None:
        if not path.exists():
            return path
        passwords = {found["user"]: found["password"] for found in _PASSWORD.finditer(path.read_text())}
    text = _HEAD.format(path=path.resolve())
    for cloud, (user, project) in _CLOUDS.items():
        if user in passwords:
            text += _CLOUD.format(
                cloud=cloud, address=address, user=user, password=passwords[user], project=project
            )
    write_private(path, text)
    return path
