"""Webhooks over /v1: for administrators, the secret shown once, and clear refusals."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from stateward.operations.posting import NotDelivered
from tests.api.native.bench import Api

BODY = {"name": "pager", "url": "https://example.org/hook", "types": ["alert", "lock.*"]}


async def add(api: Api, **more: Any) -> dict[str, Any]:
    answer = await api("POST", "/v1/webhooks", BODY | more, by="admin")
    assert answer.status == 201, answer.body
    made: dict[str, Any] = answer.body
    return made


async def test_a_webhook_s_life(api: Api) -> None:
    """Made, shown, changed, rotated and deleted; the secret is never shown again."""
    made = await add(api)
    assert made["secret"].startswith("whsec_")
    assert (made["types"], made["enabled"], made["dead_letters"]) == (["alert", "lock.*"], True, 0)
    shown = await api("GET", "/v1/webhooks/pager", by="admin")
    assert shown.body == made | {"secret": None}
    listed = await api("GET", "/v1/webhooks", by="admin")
    assert listed.body == {"webhooks": [shown.body]}
    changed = await api("PATCH", "/v1/webhooks/pager", {"enabled": False, "types": []}, by="admin")
    assert changed.body == shown.body | {
        "enabled": False,
        "types": [],
        "disabled_reason": "An operator disabled it.",
    }
    rotated = await api("POST", f"/v1/webhooks/{made['id']}/rotate", {"overlap": 60}, by="admin")
    assert rotated.body["secret"] not in {None, made["secret"]}
    assert rotated.body["old_secret_until"] is not None
    assert (await api("GET", "/v1/webhooks/pager/dead-letters", by="admin")).body == {"letters": []}
    assert (await api("POST", "/v1/webhooks/pager/redeliver", {}, by="admin")).status == 409
    assert (await api("DELETE", "/v1/webhooks/pager", by="admin")).status == 204
    assert (await api("GET", "/v1/webhooks/pager", by="admin")).status == 404
    secrets = {made["secret"], rotated.body["secret"]}
    trail = await api.desk.audit()
    assert not any(secret in str(record) for secret in secrets for record in trail)
    assert [action for _event, action, _detail in trail] == ["add", "change", "rotate", "delete"]


async def test_a_test(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its answer says whether the webhook took it."""
    await add(api)
    assert (await api("POST", "/v1/webhooks/pager/test", by="admin")).body == {"delivered": True}

    async def refuses(url: str, body: bytes, headers: Mapping[str, str]) -> None:
        raise NotDelivered("It answered 500.")

    monkeypatch.setattr(api.webhooks, "_post", refuses)
    answer = await api("POST", "/v1/webhooks/pager/test", by="admin")
    assert (answer.status, answer.detail) == (409, "The webhook did not take it. It answered 500.")


async def test_once_with_a_key(api: Api) -> None:
    """The same request again is answered with the same secret, and makes nothing."""
    first = await api("POST", "/v1/webhooks", BODY, by="admin", idempotency_key="k")
    second = await api("POST", "/v1/webhooks", BODY, by="admin", idempotency_key="k")
    assert (first.status, first.body) == (second.status, second.body)


@pytest.mark.parametrize(
    ("body", "by", "status"),
    [
        (BODY, "member", 403),
        (BODY | {"url": "ftp://example.org"}, "admin", 400),
        (BODY | {"url": 7}, "admin", 400),
        (BODY | {"types": ["nothing"]}, "admin", 400),
        (BODY | {"secret": "x"}, "admin", 400),
        (BODY | {"customer": True}, "admin", 400),
        (BODY | {"name": "a b"}, "admin", 400),
        (BODY | {"name": "a/b"}, "admin", 400),
        (BODY | {"name": "a\n"}, "admin", 400),
        (BODY | {"host": "nope"}, "admin", 404),
        (BODY | {"format": "xml"}, "admin", 400),
        (BODY | {"x": 1}, "admin", 400),
        (b"[", "admin", 400),
    ],
)
async def test_what_cannot_be_made(api: Api, body: Any, by: str, status: int) -> None:
    """With a sentence."""
    answer = await api("POST", "/v1/webhooks", body, by=by)
    assert answer.status == status
    assert answer.detail


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (
            {"name": "a b"},
            "`name` must be letters, digits, '.', '_' and '-', with a letter or a digit first.",
        ),
        ({"format": "xml"}, "`format` is 'xml', which is none of: cloudevents, nova."),
        ({"types": ["x", 5]}, "`types[1]` must be a text, not a whole number."),
        ({"types": ["x"] * 51}, "`types` must have at most 50 entries."),
    ],
)
async def test_what_to_write_instead(api: Api, body: dict[str, Any], says: str) -> None:
    """It is said, and no type is named."""
    answer = await api("POST", "/v1/webhooks", BODY | body, by="admin")
    assert (answer.status, answer.detail) == (400, f"The request's body cannot be used: {says}")


@pytest.mark.parametrize("number", [0, -1, 2**63, 10**23])
async def test_numbers_that_no_letter_has(api: Api, number: int) -> None:
    """No database can count to them."""
    await add(api)
    answer = await api("POST", "/v1/webhooks/pager/redeliver", {"letters": [number]}, by="admin")
    assert answer.status == 400
    assert answer.detail
    answer = await api("POST", "/v1/webhooks/pager/redeliver", {"letters": [2**63 - 1]}, by="admin")
    assert (answer.status, answer.detail[:32]) == (404, "Webhook pager has no dead letter")


async def test_a_name_is_one_webhook_s(api: Api) -> None:
    """The second is refused."""
    await add(api)
    answer = await api("POST", "/v1/webhooks", BODY, by="admin")
    assert (answer.status, answer.detail) == (409, "There is a webhook 'pager' already.")
