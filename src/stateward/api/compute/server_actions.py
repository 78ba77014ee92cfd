"""``POST /servers/{id}/action``: one handler for every row of the action table that has a wire name."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

import msgspec
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from stateward.api.compute import moving, questions, remote_consoles
from stateward.api.compute.call import OPERATION_HEADER, Call, Endpoint, convert, empty, reply
from stateward.api.compute.lifecycle import admit, answer_of, wanted_of
from stateward.api.compute.paging import NUMBER
from stateward.api.compute.servers_seen import find
from stateward.api.compute.services import Services
from stateward.api.faults import ApiFault
from stateward.api.wording import short
from stateward.bus.port import NobodyAnswered, console_subject
from stateward.domain import actions
from stateward.domain.actions import Action
from stateward.domain.bodies import ChangePassword, ConsoleOutput, LockOptions, ResetState
from stateward.domain.errors import Conflict, Forbidden, HostUnavailable, Invalid
from stateward.domain.questions import SetPassword
from stateward.domain.records import ConsoleReply, ConsoleRequest, Instance
from stateward.domain.states import VmState
from stateward.operations.immediate import Done

#: Tells the operation that was admitted before a lock and is still finishing (B1).
IN_FLIGHT_HEADER = "x-stateward-operation-in-flight"
#: Seconds a host has to answer for a console log.
_CONSOLE_SECONDS = 10.0
#: What Nova leaves out of a console's output: control characters, but for tabs and ends of lines.
_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")
#: More lines than any console log has.
_MOST_LINES = 2**31


async def check(call: Call, action: Action, instance_id: str) -> None:
    """Check the caller's role; of what the caller may not see it is not even told that it exists.

    Raises:
        Refused: no such instance for the caller.
        Forbidden: the role is not enough.
    """
    try:
        call.allow(action.policy)
    except Forbidden:
        await find(call, instance_id)
        raise


async def act(call: Call) -> Response:
    """Admit the action that the body names."""
    body = await call.json()
    if len(body) != 1:
        raise Invalid("Malformed request body")
    (wire, content), *_ = body.items()
    known = actions.of_wire(wire)
    if not known:
        raise Invalid(f"There is no such action: {wire}")
    rows = [
        row for row in known if row.since <= call.minor and (row.until is None or call.minor <= row.until)
    ]
    if not rows:
        # Nova's answer to an action of other microversions.
        raise ApiFault(404, "The resource could not be found.")
    options = convert(content, actions.body_type(rows[0], call.minor), wire)
    picked = actions.pick(tuple(rows), options)
    action = picked[0]
    instance_id = call.path["id"]
    await check(call, action, instance_id)
    if action.is_operation:
        try:
            wanted = await wanted_of(call, action.name, options)
        except (Invalid, Forbidden):
            # Of what the caller may not see it is not even told what else is wrong with the request.
            await find(call, instance_id)
            raise
        answer = await answer_of(call, action, options)
        return answer(await admit(call, picked, instance_id, wanted=wanted, options=options, answer=answer))
    return await _IMMEDIATE[action.name](call, instance_id, options)


async def _lock(call: Call, instance_id: str, options: Any) -> Response:
    said = options.locked_reason if isinstance(options, LockOptions) else msgspec.UNSET
    reason = None if said is msgspec.UNSET else said

    def answer(done: Done) -> Response:
        return empty(202, _in_flight(done))

    return answer(
        await call.immediate(answer).lock(
            instance_id, call.actor, reason=reason, project_id=call.visible_project
        )
    )


async def _unlock(call: Call, instance_id: str, _options: Any) -> Response:
    return _done(await call.immediate(_done).unlock(instance_id, call.actor, project_id=call.visible_project))


async def _reset_state(call: Call, instance_id: str, options: ResetState) -> Response:
    to = VmState.ACTIVE if options.state == "active" else VmState.ERROR
    return _done(await call.immediate(_done).reset_state(instance_id, call.actor, to=to))


def _done(_done: Done) -> Response:
    return empty(202)


async def _console_output(call: Call, instance_id: str, options: ConsoleOutput | None) -> Response:
    instance = await find(call, instance_id)
    if not instance.host:
        raise Conflict(f"Instance {instance_id} is not ready")
    question = msgspec.json.encode(
        ConsoleRequest(instance_id=instance_id, lines=_lines(options.length if options else None))
    )
    try:
        raw = await call.services.bus.ask(console_subject(instance.host), question, timeout=_CONSOLE_SECONDS)
    except NobodyAnswered:
        raise HostUnavailable(
            f"The host of instance {instance_id} does not answer; its console cannot be read now."
        ) from None
    answer = msgspec.json.decode(raw, type=ConsoleReply)
    if answer.error is not None:
        raise Conflict(answer.error)
    return reply({"output": _CONTROL.sub("", answer.output)})


async def _change_password(call: Call, instance_id: str, options: ChangePassword) -> Response:
    async def set_password(instance: Instance) -> None:
        question = SetPassword(
            instance_id=instance.id,
            user=_administrator(instance.image.properties),
            password=options.adminPass,
        )
        await questions.ask(call, instance, question)

    operation = await call.services.asking.ask(
        actions.BY_KEY["changePassword"],
        instance_id,
        call.actor,
        set_password,
        project_id=call.visible_project,
    )
    return empty(202, {OPERATION_HEADER: operation.id})


def _administrator(properties: Mapping[str, str]) -> str:
    """Return whose password is set, by Nova's image properties."""
    named = properties.get("os_admin_user")
    if named:
        return named
    return "Administrator" if properties.get("os_type") == "windows" else "root"


def _lines(length: int | str | None) -> int | None:
    if length is None or length in {-1, "-1"}:
        return None
    if isinstance(length, str):
        if not NUMBER.fullmatch(length):
            raise Invalid(
                f"Invalid input for field/attribute length. Value: {short(length)}. "
                f"'{short(length)}' does not match '^-?[0-9]+$'"
            )
        length = int(length)
    return min(length, _MOST_LINES)


def _in_flight(done: Done) -> dict[str, str] | None:
    if done.in_flight is None:
        return None
    return {IN_FLIGHT_HEADER: f"{done.in_flight.id} {done.in_flight.action}"}


_IMMEDIATE: Final[dict[str, Callable[[Call, str, Any], Awaitable[Response]]]] = {
    "lock": _lock,
    "unlock": _unlock,
    "reset_state": _reset_state,
    "getConsoleOutput": _console_output,
    "changePassword": _change_password,
    "os-migrateLive": moving.live_migrate,
    "get_serial_console": remote_consoles.serial,
    "get_vnc_console": remote_consoles.unavailable,
    "get_spice_console": remote_consoles.unavailable,
}


def routes(services: Services, *, legacy: bool = False) -> list[BaseRoute]:
    """Return the one route of all actions."""
    endpoint = Endpoint(services, act, policy=None, legacy=legacy, keyed=True)
    return [Route("/servers/{id}/action", endpoint, methods=["POST"])]
