"""How the command line enters a cloud: ``clouds.yaml`` and ``OS_*``, as OpenStack's own clients read them.

A named cloud decides over the variables; a variable is passed over where the file says something.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, TypeVar

import msgspec

T = TypeVar("T")

#: Where the file is looked for when no variable names it.
_PLACES: Final = (
    Path("clouds.yaml"),
    Path("~/.config/openstack/clouds.yaml"),
    Path("/etc/openstack/clouds.yaml"),
)
_NO: Final = frozenset({"0", "false", "no", "off"})


class NoCredentials(Exception):
    """There is no way to enter; ``str()`` says what is missing and how to give it."""


class Auth(msgspec.Struct, frozen=True, kw_only=True):
    """The table ``auth`` of a cloud: who enters, and which project."""

    auth_url: str | None = None
    token: str | None = None
    username: str | None = None
    user_id: str | None = None
    password: str | None = None
    user_domain_id: str | None = None
    user_domain_name: str | None = None
    project_id: str | None = None
    project_name: str | None = None
    project_domain_id: str | None = None
    project_domain_name: str | None = None
    application_credential_id: str | None = None
    application_credential_secret: str | None = None


class Cloud(msgspec.Struct, frozen=True, kw_only=True):
    """One cloud; what else the file says of it is for other clients."""

    auth: Auth = Auth()
    verify: bool = True
    cacert: str | None = None


class _File(msgspec.Struct, frozen=True):
    clouds: dict[str, Any] = {}


def find_cloud(name: str | None, environment: Mapping[str, str]) -> Cloud:
    """Return the cloud to enter.

    Args:
        name: of the cloud; None: as ``OS_CLOUD`` says, else what the variables describe, else the file's only one.
        environment: the process's.

    Raises:
        NoCredentials: there is none, or it lacks something.
    """
    name = name or environment.get("OS_CLOUD") or None
    if name is None and environment.get("OS_AUTH_URL"):
        return _checked(_of_environment(environment), "the OS_* variables")
    path = _path(environment)
    if path is None:
        raise NoCredentials(
            "There are no credentials: name a clouds.yaml with OS_CLIENT_CONFIG_FILE (stateward serve writes one "
            "into its data folder) and a cloud of it with --os-cloud, or set OS_AUTH_URL and the like."
        )
    clouds = _read(path)
    known = f"{path} has {', '.join(sorted(clouds)) or 'none'}."
    if name is None:
        if len(clouds) != 1:
            raise NoCredentials(f"Name a cloud with --os-cloud or OS_CLOUD; {known}")
        (name,) = clouds
    if name not in clouds:
        raise NoCredentials(f"There is no cloud {name!r}; {known}")
    cloud = _convert(clouds[name], Cloud, f"The cloud {name!r} of {path}")
    rest = msgspec.structs.asdict(_of_environment(environment).auth)
    said = {key: value for key, value in msgspec.structs.asdict(cloud.auth).items() if value is not None}
    # Another project or user of the variables is not mixed into a cloud that says its own.
    missing = {key: rest[key] for key in ("password", "application_credential_secret") if key not in said}
    return _checked(
        msgspec.structs.replace(cloud, auth=Auth(**(missing | said))), f"the cloud {name!r} of {path}"
    )


def login_of(auth: Auth) -> dict[str, Any]:
    """Return the body of the request for a token."""
    if auth.application_credential_id is not None:
        credential = {
            "id": auth.application_credential_id,
            "secret": auth.application_credential_secret or "",
        }
        return {
            "auth": {
                "identity": {"methods": ["application_credential"], "application_credential": credential}
            }
        }
    if auth.token is not None:
        identity: dict[str, Any] = {"methods": ["token"], "token": {"id": auth.token}}
    else:
        user = _named("user", auth.user_id, auth.username, auth.user_domain_id, auth.user_domain_name)
        proof = {"user": user | {"password": auth.password or ""}}
        identity = {"methods": ["password"], "password": proof}
    project = _named(
        "project", auth.project_id, auth.project_name, auth.project_domain_id, auth.project_domain_name
    )
    return {"auth": {"identity": identity, "scope": {"project": project}}}


def _named(
    kind: str, identifier: str | None, name: str | None, domain_id: str | None, domain_name: str | None
) -> dict[str, Any]:
    if identifier is not None:
        return {"id": identifier}
    if name is None:
        raise NoCredentials(f"The credentials do not say which {kind}: set OS_{kind.upper()}_ID or its name.")
    domain = {"name": domain_name} if domain_name and not domain_id else {"id": domain_id or "default"}
    return {"name": name, "domain": domain}


def _of_environment(environment: Mapping[str, str]) -> Cloud:
    values = {
        field: environment[f"OS_{field.upper()}"]
        for field in Auth.__struct_fields__
        if environment.get(f"OS_{field.upper()}")
    }
    return Cloud(
        auth=Auth(**values),
        cacert=environment.get("OS_CACERT") or None,
        verify=environment.get("OS_INSECURE", "").lower() in _NO | {""},
    )


def _path(environment: Mapping[str, str]) -> Path | None:
    named = environment.get("OS_CLIENT_CONFIG_FILE")
    if named:
        return Path(named)
    return next((path.expanduser() for path in _PLACES if path.expanduser().exists()), None)


def _read(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise NoCredentials(f"The file {path} cannot be read: {error.strerror}.") from None
    try:
        decoded = msgspec.yaml.decode(raw)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise NoCredentials(f"The file {path} is not YAML: {' '.join(str(error).split())}") from None
    return _convert(decoded, _File, f"The file {path}").clouds


def _convert(value: object, kind: type[T], what: str) -> T:
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise NoCredentials(f"{what} cannot be used: {error}") from None


def _checked(cloud: Cloud, what: str) -> Cloud:
    if not (cloud.auth.auth_url or "").startswith(("http://", "https://")):
        raise NoCredentials(f"auth_url of {what} is not an http address: {cloud.auth.auth_url!r}.")
    login_of(cloud.auth)
    return cloud
