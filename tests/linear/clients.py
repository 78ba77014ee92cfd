"""Clients that ask one instance over HTTP, all at the same time, and record what they were told."""

from __future__ import annotations

import asyncio
import random
import re
import time
from typing import Final

from stateward.domain.locks import ActorKind
from tests.harness import Answer, Connection, Login, NoAnswer, ServerProcess
from tests.linear.history import History, Outcome, Request, Verb
from tests.linear.model import NOTHING

#: How often each verb is asked for. Unlocks are more than locks, or nearly all would be refused as locked.
_MIX: Final = {
    ActorKind.MEMBER: {Verb.LOCK: 2, Verb.UNLOCK: 5, Verb.STOP: 6, Verb.START: 6, Verb.READ: 3},
    ActorKind.ADMIN: {Verb.LOCK: 2, Verb.UNLOCK: 8, Verb.STOP: 4, Verb.START: 4, Verb.READ: 3},
}
_BODY: Final = {
    Verb.LOCK: {"lock": None},
    Verb.UNLOCK: {"unlock": None},
    Verb.STOP: {"os-stop": None},
    Verb.START: {"os-start": None},
}
_WRONG_STATE: Final = re.compile(r"while it is in (?P<which>vm|task)_state (?P<state>\S+)$")


class Client:
    """One client; it waits for each answer before it asks again."""

    def __init__(
        self, number: int, actor: ActorKind, connection: Connection, login: Login, instance_id: str
    ) -> None:
        self.number = number
        self.actor = actor
        self.connection = connection
        # The legacy view is the one that tells whose lock it is (R8).
        self._view = f"/compute/v2/{login.project}/servers/{instance_id}"
        self._action = f"/compute/v2.1/servers/{instance_id}/action"

    async def ask(self, verb: Verb) -> Request:
        """Ask, and return the request as it is to be recorded."""
        invoked = time.monotonic_ns()
        try:
            if verb is Verb.READ:
                answer = await self.connection.ask("GET", self._view)
            else:
                answer = await self.connection.ask("POST", self._action, _BODY[verb])
        except NoAnswer:
            outcome, told = Outcome.UNKNOWN, ""
        else:
            outcome, told = _understood(verb, answer)
        return Request(
            client=self.number,
            actor=self.actor,
            verb=verb,
            invoked=invoked,
            answered=time.monotonic_ns(),
            outcome=outcome,
            told=told,
        )


def _understood(verb: Verb, answer: Answer) -> tuple[Outcome, str]:
    """Read an answer in the words of the model; one that the model has no words for fails the test."""
    if verb is Verb.READ:
        assert answer.status == 200, answer
        server = answer.body["server"]
        assert server["locked"] is (server["locked_by"] is not None)
        shown = (server["OS-EXT-STS:vm_state"], server["OS-EXT-STS:task_state"], server["locked_by"])
        return Outcome.ADMITTED, " ".join(word or NOTHING for word in shown)
    if answer.status == 202:
        named = answer.headers.get("x-stateward-operation-in-flight")
        return Outcome.ADMITTED, "" if verb is not Verb.LOCK else named.split()[1] if named else NOTHING
    if answer.status == 403:
        assert verb is Verb.UNLOCK, answer
        return Outcome.FORBIDDEN, ""
    assert answer.status == 409, answer
    message: str = answer.body["conflictingRequest"]["message"]
    if " is locked" in message:
        return Outcome.LOCKED, ""
    if message.endswith("try again"):
        return Outcome.OVERTAKEN, ""
    found = _WRONG_STATE.search(message)
    assert found is not None, message
    return Outcome.WRONG_VM_STATE if found["which"] == "vm" else Outcome.WRONG_TASK_STATE, found["state"]


async def run(
    server: ServerProcess,
    instance_id: str,
    *,
    member: Login,
    admin: Login,
    clients: int,
    requests: int,
    seed: int,
    history: History | None = None,
) -> History:
    """Have so many clients, every fourth of them an admin, ask so many times in all; return what they recorded.

    A client whose server went away asks no more. Who gives the history can see it grow.
    """
    history = History() if history is None else history
    shares = [requests // clients + (number < requests % clients) for number in range(clients)]

    async def one(number: int) -> None:
        dice = random.Random(f"{seed} {number}")
        actor, login = (ActorKind.ADMIN, admin) if number % 4 == 3 else (ActorKind.MEMBER, member)
        mix = _MIX[actor]
        verbs = dice.choices(list(mix), list(mix.values()), k=shares[number])
        async with server.connection(login.token) as connection:
            client = Client(number, actor, connection, login, instance_id)
            for verb in verbs:
                request = await client.ask(verb)
                history.add(request)
                if request.outcome is Outcome.UNKNOWN:
                    return

    async with asyncio.TaskGroup() as group:
        for number in range(clients):
            group.create_task(one(number))
    return history
