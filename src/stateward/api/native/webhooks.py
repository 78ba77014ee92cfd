"""``/v1/webhooks``: where events are sent to; for administrators."""

from __future__ import annotations

from typing import Annotated, Any, Final

import msgspec
from starlette.responses import Response

from stateward.api.http import iso_time
from stateward.api.native.call import Call, Resource, reply
from stateward.api.native.views import Nothing
from stateward.domain.actions import Policy, Role
from stateward.domain.errors import Conflict
from stateward.domain.events import PREFIX
from stateward.domain.webhooks import NAME, Format, Letter, Webhook
from stateward.operations.posting import NotDelivered
from stateward.operations.webhooks import Wanted, Webhooks

_POLICY: Final = Policy("stateward:webhooks", Role.ADMIN)
_Name = Annotated[
    str,
    msgspec.Meta(
        pattern=rf"^{NAME}\Z",
        max_length=64,
        description="letters, digits, '.', '_' and '-', with a letter or a digit first",
    ),
]
#: What a database can count to.
_Number = Annotated[int, msgspec.Meta(ge=1, le=2**63 - 1)]
_Short = Annotated[str, msgspec.Meta(min_length=1, max_length=255)]
_Types = Annotated[tuple[_Short, ...], msgspec.Meta(max_length=50)]
_Secret = Annotated[str, msgspec.Meta(max_length=128)]


class NewWebhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A webhook to be made."""

    name: _Name
    url: str
    format: Format = Format.CLOUDEVENTS
    #: Types of events, without ``org.stateward.`` too; ``lock.*`` for all of a kind; none: all.
    types: _Types = ()
    instance: _Short | None = None
    project: _Short | None = None
    host: _Short | None = None
    #: Send what the project's members are told, not what the operator is.
    customer: bool = False
    #: ``whsec_`` and base64; none: one is made.
    secret: _Secret | None = None


class WebhookChange(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What of a webhook is to be otherwise."""

    url: str | msgspec.UnsetType = msgspec.UNSET
    types: _Types | msgspec.UnsetType = msgspec.UNSET
    enabled: bool | msgspec.UnsetType = msgspec.UNSET


class Rotation(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A new secret, and for how long the old one signs beside it, in seconds."""

    overlap: Annotated[float, msgspec.Meta(ge=0, le=30 * 86_400)] = 86_400.0
    secret: _Secret | None = None


class Redelivery(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which dead letters are to be delivered again, by number; none: all."""

    letters: Annotated[tuple[_Number, ...], msgspec.Meta(max_length=1000)] | None = None


class WebhookView(msgspec.Struct, frozen=True, kw_only=True):
    """A webhook."""

    id: str
    name: str
    url: str
    format: Format
    types: list[str]
    instance: str | None
    project: str | None
    host: str | None
    customer: bool
    enabled: bool
    disabled_reason: str | None
    #: Events delivered in all.
    delivered: int
    dead_letters: int
    #: The event after which the next delivery comes.
    reached: str
    #: Null: the last delivery was taken.
    failing_since: str | None
    next_try_at: str | None
    last_error: str | None
    #: Until when the secret before this one signs too.
    old_secret_until: str | None
    created_at: str
    #: Shown once: when it was made or rotated.
    secret: str | None


class WebhooksView(msgspec.Struct, frozen=True, kw_only=True):
    """Webhooks, by name."""

    webhooks: list[WebhookView]


class LetterView(msgspec.Struct, frozen=True, kw_only=True):
    """An event that could not be delivered."""

    number: int
    event: str
    type: str
    attempts: int
    failed_at: str
    error: str
    #: It is being delivered again.
    due: bool


class LettersView(msgspec.Struct, frozen=True, kw_only=True):
    """Dead letters, oldest first."""

    letters: list[LetterView]


class Redelivered(msgspec.Struct, frozen=True, kw_only=True):
    """How many dead letters are delivered again."""

    letters: int


class Tested(msgspec.Struct, frozen=True, kw_only=True):
    """A test was delivered."""

    delivered: bool


async def _index(call: Call) -> Response:
    found = await _webhooks(call).every()
    return reply(WebhooksView(webhooks=[_view(each, letters) for each, letters in found]))


async def _add(call: Call) -> Response:
    body = await call.body(NewWebhook)
    wanted = Wanted(
        name=body.name,
        url=body.url,
        format=body.format,
        types=body.types,
        instance_id=body.instance,
        project_id=body.project,
        host=body.host,
        customer=body.customer,
        secret=body.secret,
    )

    def answer(made: Webhook) -> Response:
        return reply(_view(made, 0, secret=made.secret), 201)

    known = _webhooks(call)
    if call.once is not None:
        known = known.on(call.once.database(answer))
    return answer(await known.add(wanted, call.actor))


async def _show(call: Call) -> Response:
    return reply(_view(*await _webhooks(call).get(_key(call))))


async def _change(call: Call) -> Response:
    body = await call.body(WebhookChange)
    changes = {
        name: value for name in body.__struct_fields__ if (value := getattr(body, name)) is not msgspec.UNSET
    }
    changed = await _webhooks(call).change(_key(call), changes, call.actor)
    call.services.changes.changed()
    return reply(_view(*changed))


async def _delete(call: Call) -> Response:
    await _webhooks(call).delete(_key(call), call.actor)
    return Response(b"", 204)


async def _rotate(call: Call) -> Response:
    body = await call.body(Rotation)

    def answer(rotated: tuple[Webhook, int]) -> Response:
        return reply(_view(*rotated, secret=rotated[0].secret))

    known = _webhooks(call)
    if call.once is not None:
        known = known.on(call.once.database(answer))
    return answer(await known.rotate(_key(call), call.actor, overlap=body.overlap, secret=body.secret))


async def _test(call: Call) -> Response:
    await call.body(Nothing)
    try:
        await _webhooks(call).test(_key(call))
    except NotDelivered as error:
        raise Conflict(f"The webhook did not take it. {error}") from None
    return reply(Tested(delivered=True))


async def _letters(call: Call) -> Response:
    found = await _webhooks(call).letters(_key(call))
    return reply(LettersView(letters=[_letter(each) for each in found]))


async def _redeliver(call: Call) -> Response:
    body = await call.body(Redelivery)

    def answer(count: int) -> Response:
        return reply(Redelivered(letters=count), 202)

    known = _webhooks(call)
    if call.once is not None:
        known = known.on(call.once.database(answer))
    count = await known.redeliver(_key(call), body.letters, call.actor)
    call.services.changes.changed()
    return answer(count)


def _webhooks(call: Call) -> Webhooks:
    found = call.services.webhooks
    if found is None:
        raise Conflict("This server has no webhooks.")
    return found


def _key(call: Call) -> str:
    return str(call.request.path_params["webhook"])


def _view(webhook: Webhook, letters: int, *, secret: str | None = None) -> WebhookView:
    return WebhookView(
        id=webhook.id,
        name=webhook.name,
        url=webhook.url,
        format=webhook.format,
        types=[each.removeprefix(PREFIX) for each in webhook.types],
        instance=webhook.instance_id,
        project=webhook.project_id,
        host=webhook.host,
        customer=webhook.customer,
        enabled=webhook.enabled,
        disabled_reason=webhook.disabled_reason,
        delivered=webhook.delivered,
        dead_letters=letters,
        reached=str(webhook.reached),
        failing_since=_time(webhook.failing_since),
        next_try_at=_time(webhook.next_try_at),
        last_error=webhook.last_error,
        old_secret_until=_time(webhook.old_secret_until),
        created_at=iso_time(webhook.created_at),
        secret=secret,
    )


def _letter(letter: Letter) -> LetterView:
    return LetterView(
        number=letter.number,
        event=str(letter.place),
        type=letter.type,
        attempts=letter.attempts,
        failed_at=iso_time(letter.failed_at),
        error=letter.error,
        due=letter.due,
    )


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else iso_time(seconds)


def _one(handler: Any, summary: str, answer: Any, body: Any = None, status: int = 200) -> Resource:
    return Resource(handler=handler, summary=summary, policy=_POLICY, body=body, answer=answer, status=status)


RESOURCES: Final[dict[str, dict[str, Resource]]] = {
    "/webhooks": {
        "GET": _one(_index, "List webhooks.", WebhooksView),
        "POST": _one(_add, "Make a webhook; its secret is shown this once.", WebhookView, NewWebhook, 201),
    },
    "/webhooks/{webhook}": {
        "GET": _one(_show, "Show a webhook, by name or id.", WebhookView),
        "PATCH": _one(
            _change, "Change a webhook's address or types, or enable it again.", WebhookView, WebhookChange
        ),
        "DELETE": _one(_delete, "Delete a webhook and its dead letters.", None, None, 204),
    },
    "/webhooks/{webhook}/rotate": {
        "POST": _one(_rotate, "Give a webhook a new secret, which is shown this once.", WebhookView, Rotation)
    },
    "/webhooks/{webhook}/test": {
        "POST": _one(_test, "Send a webhook something now, and say whether it was taken.", Tested, Nothing)
    },
    "/webhooks/{webhook}/dead-letters": {
        "GET": _one(_letters, "List what could not be delivered.", LettersView)
    },
    "/webhooks/{webhook}/redeliver": {
        "POST": _one(_redeliver, "Deliver dead letters again.", Redelivered, Redelivery, 202)
    },
}
