"""How the command line finds its way in: ``clouds.yaml`` and the ``OS_*`` variables."""

from __future__ import annotations

from pathlib import Path

import pytest

from stateward.cli.credentials import Auth, Cloud, NoCredentials, find_cloud, login_of
from stateward.clouds import write_clouds

URL = "http://127.0.0.1:1/identity/v3"
PERSON = {"OS_AUTH_URL": URL, "OS_USERNAME": "u", "OS_PASSWORD": "p", "OS_PROJECT_NAME": "g"}


def file_of(folder: Path, text: str) -> dict[str, str]:
    """Write a file of clouds and return the environment that names it."""
    path = folder / "clouds.yaml"
    path.write_text(text)
    return {"OS_CLIENT_CONFIG_FILE": str(path)}


def test_the_file_that_a_server_writes(tmp_path: Path) -> None:
    """Each of its clouds can be entered."""
    path = write_clouds(tmp_path, "http://127.0.0.1:1", {"admin": "a", "demo": "d"})
    environment = {"OS_CLIENT_CONFIG_FILE": str(path), "OS_CLOUD": "stateward"}
    assert find_cloud(None, environment).auth == Auth(
        auth_url=URL,
        username="demo",
        password="d",
        project_name="demo",
        user_domain_name="Default",
        project_domain_name="Default",
    )
    assert find_cloud("stateward-admin", environment).auth.username == "admin"


def test_the_only_cloud_need_not_be_named(tmp_path: Path) -> None:
    """There is no other that could be meant; what is not about entering is passed over."""
    auth = f"auth_url: '{URL}', username: u, password: p, project_name: g"
    text = f"clouds: {{a: {{auth: {{{auth}}}, region_name: RegionOne}}}}"
    assert find_cloud(None, file_of(tmp_path, text)).auth.password == "p"


def test_the_variables() -> None:
    """They describe a cloud of their own when none is named."""
    cloud = find_cloud(None, PERSON | {"OS_INSECURE": "1", "OS_CACERT": "/x", "OS_USER_DOMAIN_NAME": "D"})
    auth = Auth(auth_url=URL, username="u", password="p", project_name="g", user_domain_name="D")
    assert cloud == Cloud(auth=auth, verify=False, cacert="/x")
    assert login_of(cloud.auth) == {
        "auth": {
            "identity": {
                "methods": ["password"],
                "password": {"user": {"name": "u", "domain": {"name": "D"}, "password": "p"}},
            },
            "scope": {"project": {"name": "g", "domain": {"id": "default"}}},
        }
    }


def test_a_password_may_be_kept_out_of_the_file(tmp_path: Path) -> None:
    """Everything else of the variables is another person's."""
    text = f"clouds: {{a: {{auth: {{auth_url: '{URL}', username: me, project_name: mine}}}}}}"
    auth = find_cloud("a", PERSON | file_of(tmp_path, text)).auth
    assert (auth.username, auth.password, auth.project_name) == ("me", "p", "mine")


def test_other_ways_to_prove_who_asks() -> None:
    """An application credential is for its own project; a token is exchanged for one of the project's."""
    credential = Auth(application_credential_id="i", application_credential_secret="s")
    assert login_of(credential) == {
        "auth": {
            "identity": {
                "methods": ["application_credential"],
                "application_credential": {"id": "i", "secret": "s"},
            }
        }
    }
    assert login_of(Auth(token="t", project_id="p")) == {
        "auth": {
            "identity": {"methods": ["token"], "token": {"id": "t"}},
            "scope": {"project": {"id": "p"}},
        }
    }


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("clouds: {a: {}, b: {}}", None, "Name a cloud with --os-cloud or OS_CLOUD; {} has a, b."),
        ("clouds: {}", "a", "There is no cloud 'a'; {} has none."),
        ("clouds: {a: {}}", "b", "There is no cloud 'b'; {} has a."),
        ("clouds: {a: {}}", "a", "auth_url of the cloud 'a' of {} is not an http address: None."),
        (
            "clouds: {a: {auth: {auth_url: 'file:///etc/passwd'}}}",
            "a",
            "auth_url of the cloud 'a' of {} is not an http address: 'file:///etc/passwd'.",
        ),
        (
            "clouds: {a: {auth: {auth_url: 'http://x'}}}",
            "a",
            "The credentials do not say which user: set OS_USER_ID or its name.",
        ),
        ("clouds: {a: {auth: 5}}", "a", "The cloud 'a' of {} cannot be used: Expected `object`, got `int`"),
        (
            "clouds: {a: {auth: {username: 1}}}",
            "a",
            "The cloud 'a' of {} cannot be used: Expected `str | null`, got `int` - at `$.auth.username`",
        ),
        ("clouds: 5", "a", "The file {} cannot be used: Expected `object`, got `int` - at `$.clouds`"),
        ("- a", "a", "The file {} cannot be used: Expected `object`, got `array`"),
        ("clouds: {", "a", "The file {} is not YAML: "),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, text: str, name: str | None, message: str) -> None:
    """It is said what is wrong, and where."""
    environment = file_of(tmp_path, text)
    with pytest.raises(NoCredentials) as caught:
        find_cloud(name, environment)
    assert str(caught.value).startswith(message.format(environment["OS_CLIENT_CONFIG_FILE"]))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    """It is named."""
    path = tmp_path / "nosuch"
    with pytest.raises(NoCredentials) as caught:
        find_cloud("a", {"OS_CLIENT_CONFIG_FILE": str(path)})
    assert str(caught.value) == f"The file {path} cannot be read: No such file or directory."


def test_no_credentials_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said how to give some."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(NoCredentials, match="There are no credentials: name a "):
        find_cloud(None, {})
