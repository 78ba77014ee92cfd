"""Whatever is asked, the answer is a refusal in the API's format that says what to change, never a fault of ours."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings, strategies as st

from tests.cloud import Answer, Cloud
from tests.wires import WIRES, members

pytestmark = pytest.mark.asyncio(loop_scope="session")

NOBODY = "11111111-1111-1111-1111-111111111111"
INVALID = "Invalid input for field/attribute"
UNKNOWN = "The resource could not be found."
DENIED = "The request you have made requires authentication."
NOT_OURS = "The token was not issued by this service."
#: The refusals of what is not there, and of what cannot be done with what is.
NOT_FOUND = (404, "itemNotFound", UNKNOWN)
NOT_ALLOWED = (405, "badMethod", "The method specified is not allowed for this resource.")
NOT_A_NAME = (
    "An invalid 'name' value was provided. The name must be: printable characters. "
    "Can not start or end with whitespace."
)


def bad(message: str) -> tuple[int, str, str]:
    """Return the fault of a bad request."""
    return 400, "badRequest", message


async def act(cloud: Cloud, body: Any, *, who: str = "member", version: str = "2.104") -> Answer:
    """Ask for an action on the server that is there."""
    return await cloud.ask(who, "POST", f"/servers/{cloud.server}/action", body, microversion=version)


async def create(
    cloud: Cloud, members: dict[str, Any], *, version: str = "2.104", who: str = "member"
) -> Answer:
    """Ask for a server with these members beside those that it must have."""
    wanted = {"name": "a", "imageRef": cloud.image, "flavorRef": "1", "networks": "none", **members}
    return await cloud.ask(who, "POST", "/servers", {"server": wanted}, microversion=version)


# ---------------------------------------------------------------------------------------------------- bodies


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "cannot understand JSON: Input data was truncated"),
        (b"{", "cannot understand JSON: Input data was truncated"),
        (b'{"lock": null', "cannot understand JSON: Input data was truncated"),
        (
            b"{'lock': null}",
            "cannot understand JSON: JSON is malformed: object keys must be strings (byte 1)",
        ),
        (b'{"lock": null} x', "cannot understand JSON: JSON is malformed: trailing characters (byte 16)"),
        (
            b'\xef\xbb\xbf{"lock": null}',
            "cannot understand JSON: JSON is malformed: invalid character (byte 0)",
        ),
        (b'{"lock": NaN}', "cannot understand JSON: JSON is malformed: invalid character (byte 9)"),
        (b'{"lock": 1e999}', "cannot understand JSON: Number out of range - at `$[...]`"),
        (
            b'{"lock": ' + b"9" * 5000 + b"}",
            "cannot understand JSON: Integer value out of range - at `$[...]`",
        ),
        (
            b'{"lock": "\xff"}',
            "cannot understand JSON: 'utf-8' codec can't decode byte 0xff in position 0: invalid start byte",
        ),
        (
            b"[" * 100_000,
            "cannot understand JSON: maximum recursion depth exceeded while deserializing an object",
        ),
        (
            b'{"a":' * 5000 + b"1" + b"}" * 5000,
            "cannot understand JSON: maximum recursion depth exceeded while deserializing an object",
        ),
        (b'{"lock": "\\u0000"}', "The request's body has a NUL character in it, which is not allowed."),
        (b'{"lock": "\\\\\\u0000"}', "The request's body has a NUL character in it, which is not allowed."),
        (b"[]", "Malformed request body"),
        (b"null", "Malformed request body"),
        (b"5", "Malformed request body"),
        (b'"lock"', "Malformed request body"),
        (b"{}", "Malformed request body"),
        (b'{"lock": null, "unlock": null}', "Malformed request body"),
        (b'{"nosuch": null}', "There is no such action: nosuch"),
        (b'{"": null}', "There is no such action: "),
        (b'{"adopt": null}', "There is no such action: adopt"),
    ],
)
async def test_a_body_that_is_no_action(shared_cloud: Cloud, body: bytes, message: str) -> None:
    """What is not JSON, not an object, or not exactly one action that there is, is refused with what it is."""
    assert (await act(shared_cloud, body)).fault == bad(message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"lock": 5}, f"{INVALID} lock. Value: 5. 5 is not of type 'object', 'null'"),
        ({"lock": [1]}, f"{INVALID} lock. Value: [1]. [1] is not of type 'object', 'null'"),
        (
            {"lock": {"x": 1}},
            f"{INVALID} lock. Value: {{'x': 1}}. Additional properties are not allowed ('x' was unexpected)",
        ),
        ({"reboot": None}, f"{INVALID} reboot. Value: None. None is not of type 'object'"),
        ({"reboot": {"type": 5}}, f"{INVALID} type. Value: 5. 5 is not of type 'string'"),
        (
            {"reboot": {"type": "SOFT", "timeout": -1}},
            f"{INVALID} timeout. Value: -1. -1 is less than the minimum of 0",
        ),
        (
            {"reboot": {"type": "SOFT", "timeout": 3601}},
            f"{INVALID} timeout. Value: 3601. 3601 is greater than the maximum of 3600",
        ),
        (
            {"os-stop": {"timeout": "30"}},
            f"{INVALID} timeout. Value: 30. '30' is not of type 'integer', 'null'",
        ),
        (
            {"os-stop": {"at_deadline": "reboot"}},
            f"{INVALID} at_deadline. Value: reboot. 'reboot' is not one of ['force', 'fail', 'save']",
        ),
        (
            {"os-stop": {"at_deadline": 5}},
            f"{INVALID} at_deadline. Value: 5. 5 is not of type 'string', 'null'",
        ),
        (
            {"os-stop": {"force": True, "at_deadline": "fail"}},
            f"{INVALID} at_deadline. Value: fail. 'force' takes the power; with it only 'force' can be chosen",
        ),
        (
            {"reboot": {"type": "SOFT", "at_deadline": "save"}},
            (
                f"{INVALID} at_deadline. Value: save. "
                "'reboot' cannot end with a saved memory; choose 'force' or 'fail'"
            ),
        ),
        ({"os-stop": {"force": 1}}, f"{INVALID} force. Value: 1. 1 is not of type 'boolean'"),
        (
            {"os-stop": {"timeout": 10**30}},
            f"{INVALID} timeout. Value: {10**30}. {10**30} is greater than the maximum of 3600",
        ),
        (
            {"os-resetState": {"state": "x"}},
            f"{INVALID} state. Value: x. 'x' is not one of ['active', 'error']",
        ),
        ({"os-resetState": {}}, f"{INVALID} os-resetState. Value: {{}}. 'state' is a required property"),
        (
            {"os-getConsoleOutput": {"length": -2}},
            f"{INVALID} length. Value: -2. -2 is less than the minimum of -1",
        ),
        (
            {"os-getConsoleOutput": {"length": "ten"}},
            f"{INVALID} length. Value: ten. 'ten' does not match '^-?[0-9]+$'",
        ),
        (
            {"os-getConsoleOutput": {"length": "\u0663"}},
            f"{INVALID} length. Value: \u0663. '\u0663' does not match '^-?[0-9]+$'",
        ),
    ],
)
async def test_options_of_the_wrong_type(shared_cloud: Cloud, body: Any, message: str) -> None:
    """An action's options are refused in Nova's words, with the field and its value."""
    answer = await act(shared_cloud, body, who="admin")
    assert answer.fault == bad(message)


@pytest.mark.parametrize(
    "kind", ["text/xml", "application/x-www-form-urlencoded", "multipart/form-data", "x"]
)
async def test_a_body_of_another_kind(shared_cloud: Cloud, kind: str) -> None:
    """A body that says it is something else than JSON is not read (415), as in Nova."""
    headers = {"x-auth-token": shared_cloud.tokens["member"], "content-type": kind}
    path = f"/compute/v2.1/servers/{shared_cloud.server}/action"
    answer = await shared_cloud.send("POST", path, content=b'{"lock": null}', headers=headers)
    assert answer.fault == (415, "badMediaType", "Unsupported Content-Type")


@pytest.mark.parametrize("kind", ["", "text/plain", "Application/JSON; charset=utf-8"])
async def test_a_body_of_the_right_kind(shared_cloud: Cloud, kind: str) -> None:
    """JSON is read however it says that it is JSON, and when nothing is said."""
    headers = {"x-auth-token": shared_cloud.tokens["member"], "content-type": kind}
    path = f"/compute/v2.1/servers/{shared_cloud.server}/action"
    answer = await shared_cloud.send("POST", path, content=b'{"nosuch": null}', headers=headers)
    assert answer.fault == bad("There is no such action: nosuch")


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_of_ten_megabytes(shared_cloud: Cloud, *, announced: bool) -> None:
    """A body is read up to its limit, whatever its length is said to be."""
    headers = {"x-auth-token": shared_cloud.tokens["member"], "content-type": "application/json"}
    if not announced:
        headers["content-length"] = "100"
    path = f"/compute/v2.1/servers/{shared_cloud.server}/action"
    answer = await shared_cloud.send("POST", path, content=b" " * 10_000_000, headers=headers)
    assert answer.fault == (413, "overLimit", "The request's body is larger than 1048576 bytes.")


async def test_of_duplicate_keys_the_last_counts(shared_cloud: Cloud) -> None:
    """As in Nova: two of one key are one action, with the last one's options."""
    body = b'{"reboot": {"type": "HARD"}, "reboot": {"type": "WARM"}}'
    message = (
        f"{INVALID} type. Value: WARM. 'WARM' is not one of ['HARD', 'Hard', 'hard', 'SOFT', 'Soft', 'soft']"
    )
    assert (await act(shared_cloud, body)).fault == bad(message)


async def test_a_long_value_is_not_sent_back_whole(shared_cloud: Cloud) -> None:
    """A refusal repeats the beginning of a value, not a megabyte of it."""
    answer = await act(shared_cloud, {"lock": "x" * 1_000_000})
    _status, _name, message = answer.fault
    assert message.startswith(f"{INVALID} lock. Value: xxx")
    assert len(message) < 2500


# ------------------------------------------------------------------------------------------- creating servers


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"name": ""}, f"{INVALID} name. Value: . '' should be non-empty"),
        ({"name": "x" * 256}, f"{INVALID} name. Value: {'x' * 256}. '{'x' * 256}' is too long"),
        ({"name": 5}, f"{INVALID} name. Value: 5. 5 is not of type 'string'"),
        *(({"name": name}, NOT_A_NAME) for name in ("a\nb", "\x7f", " a", "a ", " ", "a\u2028b")),
        ({"name": "a\x00b"}, "The request's body has a NUL character in it, which is not allowed."),
        ({"flavorRef": []}, f"{INVALID} flavorRef. Value: []. [] is not of type 'integer', 'string'"),
        ({"flavorRef": "9" * 400}, f"Flavor {'9' * 400} could not be found."),
        ({"flavorRef": 10**30}, f"Flavor {10**30} could not be found."),
        ({"imageRef": NOBODY}, "Can not find requested image"),
        ({"imageRef": None}, "Invalid imageRef provided: name the image to boot from."),
        ({"networks": "some"}, f"{INVALID} networks. Value: some. 'some' is not one of ['none', 'auto']"),
        (
            {"networks": [{"uuid": NOBODY}]},
            f"Network {NOBODY} could not be found.",
        ),
        ({"metadata": {"a": 1}}, f"{INVALID} a. Value: 1. 1 is not of type 'string'"),
        ({"metadata": {"a": "x" * 256}}, f"{INVALID} a. Value: {'x' * 256}. '{'x' * 256}' is too long"),
        (
            {"metadata": {"": "x"}},
            f"{INVALID} metadata. Value: {{'': 'x'}}. One of its names is not as it must be: should be non-empty",
        ),
        ({"key_name": "nosuch"}, "Invalid key_name provided."),
        ({"user_data": "?"}, "Userdata content needs to be valid base 64."),
        (
            {"user_data": "A" * 65536},
            "User data too large. User data must be no larger than 65535 bytes once base64 encoded.",
        ),
        ({"availability_zone": "moon"}, "The requested availability zone is not available"),
        ({"min_count": 0}, f"{INVALID} min_count. Value: 0. 0 is less than the minimum of 1"),
        (
            {"min_count": "many"},
            f"{INVALID} min_count. Value: many. 'many' does not match '^[1-9][0-9]{{0,8}}$'",
        ),
        ({"min_count": 3, "max_count": 2}, "min_count must be <= max_count"),
        ({"max_count": 100_000_000}, "At most 1000 servers are created at once."),
        ({"max_count": "100000000"}, "At most 1000 servers are created at once."),
        ({"tags": ["a,b"]}, f"{INVALID} tags. Value: a,b. 'a,b' does not match '^[^,/]*$'"),
        ({"hostname": "-"}, f"{INVALID} hostname. Value: -. '-' is not a host name"),
        (
            {"block_device_mapping_v2": [{"uuid": NOBODY}]},
            "Volumes are not supported: boot from an image by imageRef.",
        ),
    ],
)
async def test_a_server_that_cannot_be_made(
    shared_cloud: Cloud, members: dict[str, Any], message: str
) -> None:
    """Each member of a new server is checked, and the refusal names it."""
    assert (await create(shared_cloud, members)).fault == bad(message)


async def test_a_member_that_is_not_there(shared_cloud: Cloud) -> None:
    """A misspelt member is refused, not passed over: somebody meant something by it."""
    _status, _name, message = (await create(shared_cloud, {"flavourRef": "1"})).fault
    assert message.endswith("Additional properties are not allowed ('flavourRef' was unexpected)")


@pytest.mark.parametrize(
    ("name", "since"),
    [("description", 19), ("tags", 52), ("trusted_image_certificates", 63), ("host", 74), ("hostname", 90)],
)
async def test_a_member_before_its_microversion(shared_cloud: Cloud, name: str, since: int) -> None:
    """A member of a later microversion is refused in an earlier one."""
    answer = await create(shared_cloud, {name: None}, version=f"2.{since - 1}")
    status, _name, message = answer.fault
    assert status == 400
    assert message.endswith(f"Additional properties are not allowed ('{name}' was unexpected)")


async def test_a_flavor_of_another_project(shared_cloud: Cloud) -> None:
    """A private flavor does not exist for a project that was not given it."""
    flavor = {"name": "private", "id": "private", "ram": 64, "vcpus": 1, "disk": 1}
    body = {"flavor": {**flavor, "os-flavor-access:is_public": False}}
    assert (await shared_cloud.ask("admin", "POST", "/flavors", body)).status == 200
    assert (await create(shared_cloud, {"flavorRef": "private"})).fault == bad(
        "Flavor private could not be found."
    )


async def test_a_host_that_is_not_there(shared_cloud: Cloud) -> None:
    """Only an admin names a host, and only one that is there."""
    assert (await create(shared_cloud, {"host": "moon"}, who="admin")).fault == bad(
        "Compute host moon could not be found."
    )
    assert (await create(shared_cloud, {"host": "h"})).fault == (
        403,
        "forbidden",
        "Policy doesn't allow os_compute_api:servers:create:forced_host to be performed.",
    )


# --------------------------------------------------------------------------------------------- who and where


@pytest.mark.parametrize(
    ("headers", "message"),
    [
        ({}, DENIED),
        ({"x-auth-token": ""}, NOT_OURS),
        ({"x-auth-token": "x" * 5000}, NOT_OURS),
        ({"x-auth-token": "x.y"}, NOT_OURS),
    ],
)
async def test_no_token_or_a_wrong_one(shared_cloud: Cloud, headers: dict[str, str], message: str) -> None:
    """Without a good token nothing is said of what is there, and the client is told where to ask for one."""
    answer = await shared_cloud.send("GET", "/compute/v2.1/servers", headers=headers)
    assert answer.fault == (401, "unauthorized", message)
    assert answer.headers["www-authenticate"] == "Keystone"


async def test_a_revoked_token(shared_cloud: Cloud) -> None:
    """A token that was taken back is worth nothing at once."""
    token = await shared_cloud.log_in("member2", "gold")
    headers = {"x-auth-token": token}
    assert (await shared_cloud.send("GET", "/compute/v2.1/servers", headers=headers)).status == 200
    both = {**headers, "x-subject-token": token}
    assert (await shared_cloud.send("DELETE", "/identity/v3/auth/tokens", headers=both)).status == 204
    answer = await shared_cloud.send("GET", "/compute/v2.1/servers", headers=headers)
    assert answer.fault == (401, "unauthorized", "The token was revoked.")


async def test_an_expired_token(shared_cloud: Cloud) -> None:
    """A token is worth nothing after its time."""
    token = shared_cloud.expired_token("member", "gold")
    answer = await shared_cloud.send("GET", "/compute/v2.1/servers", headers={"x-auth-token": token})
    assert answer.fault == (401, "unauthorized", "The token has expired.")


async def test_a_token_for_no_project(shared_cloud: Cloud) -> None:
    """Servers belong to projects, so a token for none is not enough."""
    token = await shared_cloud.log_in("member", None)
    answer = await shared_cloud.send("GET", "/compute/v2.1/servers", headers={"x-auth-token": token})
    assert answer.fault == (
        401,
        "unauthorized",
        "The token is not for a project. Ask for one that is.",
    )


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", "", None),
        ("PUT", "", {"server": {"name": "x"}}),
        ("DELETE", "", None),
        ("GET", "/metadata", None),
        ("POST", "/metadata", {"metadata": {"a": "b"}}),
        ("DELETE", "/metadata/a", None),
        ("GET", "/tags", None),
        ("PUT", "/tags/a", None),
        ("GET", "/os-instance-actions", None),
    ],
)
async def test_another_projects_server_is_not_there(
    shared_cloud: Cloud, method: str, path: str, body: Any
) -> None:
    """To another project's member a server does not exist; ``tests/table`` asks for every action of it."""
    for server in (shared_cloud.server, NOBODY, "not-a-uuid"):
        answer = await shared_cloud.ask(
            "othertenant",
            method,
            f"/servers/{server}{path}",
            *([] if body is None else [body]),
            microversion="2.104",
        )
        assert answer.fault == (404, "itemNotFound", f"Instance {server} could not be found.")


async def test_the_old_version_of_another_project(shared_cloud: Cloud) -> None:
    """``/v2`` with a project that is not the token's own is refused; an admin may."""
    api = f"/compute/v2/{shared_cloud.projects['gold']}"
    answer = await shared_cloud.ask("othertenant", "GET", "/servers", api=api)
    assert answer.fault == bad("Malformed request URL: URL's project_id does not match the token's.")
    assert (await shared_cloud.ask("admin", "GET", "/servers", api=api)).status == 200


@pytest.mark.parametrize(
    ("version", "status", "name"),
    [
        ("2", 400, "badRequest"),
        ("2.", 400, "badRequest"),
        ("2.01", 400, "badRequest"),
        ("v2.1", 400, "badRequest"),
        ("two", 400, "badRequest"),
        ("2.0", 406, "computeFault"),
        ("2.105", 406, "computeFault"),
        ("3.1", 406, "computeFault"),
        ("2.99999999999999999999", 406, "computeFault"),
    ],
)
async def test_a_microversion_that_is_not_there(
    shared_cloud: Cloud, version: str, status: int, name: str
) -> None:
    """A version that is written badly is a bad request, one out of range is not acceptable."""
    sentence = {
        400: f"API Version String {version} is of invalid format. Must be of format MajorNum.MinorNum.",
        406: f"Version {version} is not supported by the API. Minimum is 2.1 and maximum is 2.104.",
    }[status]
    answer = await shared_cloud.ask("member", "GET", "/servers", microversion=version)
    assert answer.fault == (status, name, sentence)


@pytest.mark.parametrize(
    ("method", "path", "fault"),
    [
        ("GET", "/compute/v2.1/nosuch", NOT_FOUND),
        ("GET", "/compute/v2.1/servers/x/nosuch", NOT_FOUND),
        ("GET", "/compute/v9", NOT_FOUND),
        ("GET", "/nosuch", NOT_FOUND),
        ("GET", "/compute/v2.1/servers/a%00b", NOT_FOUND),
        ("GET", "/compute/v2.1/servers?name=%00", NOT_FOUND),
        ("PATCH", "/compute/v2.1/servers", NOT_ALLOWED),
        ("DELETE", "/compute/v2.1/servers", NOT_ALLOWED),
        ("GET", "/compute/v2.1/servers/x/action", NOT_ALLOWED),
    ],
)
async def test_an_address_that_is_not_there(
    shared_cloud: Cloud, method: str, path: str, fault: tuple[int, str, str]
) -> None:
    """An address or a method that is not there is told apart, in the same format."""
    headers = {"x-auth-token": shared_cloud.tokens["member"]}
    assert (await shared_cloud.send(method, path, headers=headers)).fault == fault


# ---------------------------------------------------------------------------------------------------- queries

WORDS = "'0', '1', 'f', 'false', 'n', 'no', 'off', 'on', 't', 'true', 'y', 'yes'"
TOO_COMPLEX = (
    "is too complex. A name filter has no repeated or special groups, no references back, at most 3 repeats and "
    "255 characters."
)


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("limit=-1", "Invalid input for query parameters limit. Value: -1. '-1' does not match '^[0-9]*$'"),
        ("limit=x", "Invalid input for query parameters limit. Value: x. 'x' does not match '^[0-9]*$'"),
        (
            "limit=" + "9" * 19,
            f"Invalid input for query parameters limit. Value: {'9' * 19}. '{'9' * 19}' does not match '^[0-9]*$'",
        ),
        ("marker=nosuch", "marker [nosuch] not found"),
        ("marker=", "marker [] not found"),
        (
            "sort_key=nosuch",
            "Invalid input for query parameters sort_key. Value: nosuch. 'nosuch' is not a sort key",
        ),
        (
            "sort_key=uuid&sort_dir=up",
            "Invalid input for query parameters sort_dir. Value: up. 'up' does not match '^(?i)(asc|desc)$'",
        ),
        (
            "locked=perhaps",
            f"Unrecognized value 'perhaps', acceptable values are: {WORDS}",
        ),
        (
            "changes-since=now",
            "Invalid input for query parameters changes-since. Value: now. 'now' is not a 'date-time'",
        ),
        (
            "changes-since=0001-01-01T00:00:00%2B14:00",
            (
                "Invalid input for query parameters changes-since. Value: 0001-01-01T00:00:00+14:00. "
                "'0001-01-01T00:00:00+14:00' is not a 'date-time'"
            ),
        ),
        (
            "changes-before=9999-12-31T23:59:59-14:00",
            (
                "Invalid input for query parameters changes-before. Value: 9999-12-31T23:59:59-14:00. "
                "'9999-12-31T23:59:59-14:00' is not a 'date-time'"
            ),
        ),
        (
            "changes-before=2024-13-01",
            "Invalid input for query parameters changes-before. Value: 2024-13-01. '2024-13-01' is not a 'date-time'",
        ),
        ("name=(", "Invalid filter: '(' is not a regular expression"),
        ("name=(a%2B)%2B$", f"Invalid filter: '(a+)+$' {TOO_COMPLEX}"),
        ("name=(a|a)*b", f"Invalid filter: '(a|a)*b' {TOO_COMPLEX}"),
        ("name=a*a*a*a*b", f"Invalid filter: 'a*a*a*a*b' {TOO_COMPLEX}"),
        ("name=(?=a)", f"Invalid filter: '(?=a)' {TOO_COMPLEX}"),
        ("name=(a)%5C1", f"Invalid filter: '(a)\\1' {TOO_COMPLEX}"),
        ("name=" + "a" * 256, f"Invalid filter: '{'a' * 256}' {TOO_COMPLEX}"),
    ],
)
async def test_a_query_that_cannot_be_understood(shared_cloud: Cloud, query: str, message: str) -> None:
    """A filter, page or sort that cannot be understood is refused with its value."""
    for path in ("/servers", "/servers/detail"):
        answer = await shared_cloud.ask("member", "GET", f"{path}?{query}", microversion="2.104")
        assert answer.fault == bad(message)


@pytest.mark.parametrize("pattern", ["^we[a-z*+]b", "w.*b$", "w\\(*eb*", "we(b|a)"])
async def test_patterns_that_people_use(shared_cloud: Cloud, pattern: str) -> None:
    """What a name filter may be is wide enough for what it is used for."""
    answer = await shared_cloud.ask("member", "GET", f"/servers?name={pattern.replace('+', '%2B')}")
    assert answer.status == 200


async def test_what_postgresql_does_not_take_for_a_pattern(
    shared_cloud: Cloud, shared_database: str | None
) -> None:
    """A pattern that only one of the databases understands is refused by the other, not a fault."""
    answer = await shared_cloud.ask("member", "GET", "/servers?name=a%7B300%7D")
    if shared_database is None:
        assert (answer.status, answer.body) == (200, {"servers": []})
    else:
        assert answer.fault == bad("Invalid filter: 'a{300}' is not a regular expression")


async def test_other_projects_servers_are_for_admins(shared_cloud: Cloud) -> None:
    """Listing all projects' servers is refused to members, with the rule that refuses it."""
    answer = await shared_cloud.ask("member", "GET", "/servers?all_tenants=1")
    assert answer.fault == (
        403,
        "forbidden",
        "Policy doesn't allow os_compute_api:servers:index:get_all_tenants to be performed.",
    )


@pytest.mark.parametrize("tag", ["%ff", "%F0%9F%92%A9", "a%20b", "%0A"])
async def test_a_tag_of_any_characters(shared_cloud: Cloud, tag: str) -> None:
    """A tag of characters that no header can hold is set and found as any other."""
    path = f"/servers/{shared_cloud.server}/tags/{tag}"
    set_ = await shared_cloud.ask("member", "PUT", path, microversion="2.26")
    assert (set_.status, set_.headers["location"].isascii()) == (201, True)
    assert (await shared_cloud.ask("member", "GET", path, microversion="2.26")).status == 204
    assert (await shared_cloud.ask("member", "DELETE", path, microversion="2.26")).status == 204


# ---------------------------------------------------------------------------------------------------- anything

_ODD = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=300),
    st.sampled_from(["SOFT", "HARD", "active", "error", "none", "auto", "", "\x00", "\u0663", "💩"]),
)
_JSON = st.recursive(
    _ODD, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner, max_size=3)
)
#: Every member that the body of some action has, and one that none has.
_KEYS = st.sampled_from([*members(), "x"])
_OPTIONS = st.one_of(_JSON, st.dictionaries(_KEYS, _JSON, max_size=3))
_MEMBERS = st.sampled_from(
    [
        *(
            "name",
            "imageRef",
            "flavorRef",
            "networks",
            "metadata",
            "key_name",
            "user_data",
            "availability_zone",
        ),
        *("min_count", "max_count", "adminPass", "description", "tags", "hostname", "host", "personality"),
        *("hypervisor_hostname", "block_device_mapping", "block_device_mapping_v2", "return_reservation_id"),
        *("config_drive", "security_groups", "OS-DCF:diskConfig", "accessIPv4", "nosuch"),
    ]
)
_VERSIONS = st.sampled_from(["2.1", "2.36", "2.73", "2.104"])
_fuzz = settings(
    max_examples=200,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def _is_answer(answer: Answer) -> None:
    """Check that an answer is a good one, or a refusal in the API's format."""
    assert answer.status < 500, answer.raw
    if answer.status >= 400:
        assert answer.fault[2]


@given(wire=st.sampled_from(WIRES), options=_OPTIONS, version=_VERSIONS)
@_fuzz
async def test_any_body_of_any_action(shared_cloud: Cloud, wire: str, options: Any, version: str) -> None:
    """Whatever an action's options are, the answer is not a fault of ours."""
    body = json.dumps({wire: options}).encode()
    path = f"/servers/{NOBODY}/action"
    _is_answer(await shared_cloud.ask("admin", "POST", path, body, microversion=version))


@given(given_members=st.dictionaries(_MEMBERS, _JSON, max_size=3), version=_VERSIONS)
@_fuzz
async def test_any_body_of_a_new_server(
    shared_cloud: Cloud, given_members: dict[str, Any], version: str
) -> None:
    """Whatever is asked for in a new server, the answer is not a fault of ours."""
    # Without an image there is never one in the end; everything before that is checked.
    wanted = {"name": "a", "imageRef": NOBODY, "flavorRef": "1", "networks": "none", **given_members}
    body = json.dumps({"server": wanted}).encode()
    _is_answer(await shared_cloud.ask("admin", "POST", "/servers", body, microversion=version))


@given(raw=st.binary(max_size=200))
@_fuzz
async def test_any_bytes(shared_cloud: Cloud, raw: bytes) -> None:
    """Whatever bytes a body is made of, the answer is a refusal."""
    answer = await shared_cloud.ask("admin", "POST", "/servers", raw)
    assert answer.fault[0] == 400
