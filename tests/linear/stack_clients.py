"""Clients that place, release and pass stacked locks on several instances over HTTP, and record what they were told."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import random
import re
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from typing import Any, Final

import msgspec

from stateward.domain.locks import ActorKind
from tests.harness import Admin, Answer, Connection, Login, ServerProcess, until
from tests.linear.history import Outcome
from tests.linear.stack_history import Asked, Deed
from tests.linear.stack_model import NOTHING

#: How often each deed is asked for. Releases are more than placings, or nearly all would be refused as locked.
_MIX: Final = {
    ActorKind.MEMBER: {
        Deed.VIEW: 8,
        Deed.STACK: 8,
        Deed.WORK: 4,
        Deed.STOP: 14,
        Deed.START: 14,
        Deed.RESUME: 7,
        Deed.CHANGE: 6,
        Deed.LOCK: 2,
        Deed.UNLOCK: 10,
        Deed.PLACE: 6,
        Deed.RELEASE: 16,
    },
    ActorKind.ADMIN: {
        Deed.VIEW: 6,
        Deed.STACK: 6,
        Deed.WORK: 4,
        Deed.STOP: 8,
        Deed.START: 8,
        Deed.RESUME: 7,
        Deed.CHANGE: 3,
        Deed.LOCK: 2,
        Deed.UNLOCK: 12,
        Deed.PLACE: 3,
        Deed.RELEASE: 30,
        Deed.HOLD: 4,
        Deed.OVERRIDE: 8,
    },
}
_BLOCKS: Final = {"all": 6, "stop": 3, "start": 3, "power": 3, "delete": 2, "change": 2}
_WAYS: Final = {"clean": 3, "forced": 3, "suspend": 4, "none": 3}
_ACTIONS: Final[Mapping[Deed, Mapping[str, object]]] = {
    Deed.LOCK: {"lock": None},
    Deed.UNLOCK: {"unlock": None},
    Deed.STOP: {"os-stop": None},
    Deed.START: {"os-start": None},
    Deed.RESUME: {"resume": None},
}
#: What each is answered with when it is admitted.
_ADMITTED: Final = {
    **dict.fromkeys((Deed.VIEW, Deed.STACK, Deed.WORK, Deed.CHANGE), 200),
    **dict.fromkeys((Deed.PLACE, Deed.OVERRIDE), 201),
    **dict.fromkeys((Deed.LOCK, Deed.UNLOCK, Deed.HOLD, Deed.STOP, Deed.START, Deed.RESUME), 202),
    Deed.RELEASE: 204,
}
#: What a lock is refused by that comes after its own end.
_PAST: Final = b"would expire in the past"
#: What a hold keeps an admin from.
_NEEDED: Final = (Deed.START, Deed.STOP, Deed.RESUME, Deed.CHANGE)
#: With so many locks on an instance no more are placed, but released.
_ENOUGH: Final = 3
_WRONG_STATE: Final = re.compile(r"while it is in (?P<which>vm|task)_state (?P<state>\S+)$")
#: Operations of a page, as many as a server gives.
_PAGE: Final = 1000


class Person(msgspec.Struct, frozen=True, kw_only=True):
    """Somebody who asks."""

    user: str
    actor: ActorKind
    login: Login


class Board(msgspec.Struct):
    """What the clients know of one instance: so much that they ask for what there may be."""

    instance_id: str
    #: By id: the user that placed it, and whether it is a hold.
    locks: dict[str, tuple[str, bool]] = {}
    #: The last that was released.
    gone: str = ""
    history: list[Asked] = []


async def people(server: ServerProcess, admin: Admin) -> list[Person]:
    """Return two members of one project and two admins; two of them are made."""
    demo = await server.log_in("demo")
    roles = await admin.ask("GET", "/identity/v3/roles")
    role_ids = {role["name"]: role["id"] for role in roles.body["roles"]}
    found = [
        Person(user="demo", actor=ActorKind.MEMBER, login=demo),
        Person(user="admin", actor=ActorKind.ADMIN, login=admin.login),
    ]
    for user, role, actor, project in (
        ("colleague", "member", ActorKind.MEMBER, demo.project),
        ("second", "admin", ActorKind.ADMIN, admin.login.project),
    ):
        made = await admin.ask(
            "POST", "/identity/v3/users", {"user": {"name": user, "password": "a password"}}
        )
        assert made.status == 201, made
        user_id = made.body["user"]["id"]
        grant = f"/identity/v3/projects/{project}/users/{user_id}/roles/{role_ids[role]}"
        assert (await admin.ask("PUT", grant)).status == 204
        who = {"user": {"id": user_id, "password": "a password"}}
        body = {
            "auth": {
                "identity": {"methods": ["password"], "password": who},
                "scope": {"project": {"id": project}},
            }
        }
        entered = await admin.ask("POST", "/identity/v3/auth/tokens", body)
        assert entered.status == 201, entered
        login = Login(entered.headers["x-subject-token"], project)
        found.append(Person(user=user, actor=actor, login=login))
    return found


class Client:
    """One client; it waits for each answer before it asks again."""

    def __init__(self, person: Person, connection: Connection, dice: random.Random) -> None:
        self.person = person
        self._connection = connection
        self._dice = dice
        #: What it does next in any case.
        self._next: list[tuple[Board, Deed]] = []

    async def ask_something(self, board: Board) -> None:
        """Ask for one thing, by chance, and record it."""
        if self._next:
            await self.ask(*self._next.pop())
            return
        mix = _MIX[self.person.actor]
        deed = self._dice.choices(list(mix), list(mix.values()))[0]
        if deed in {Deed.PLACE, Deed.HOLD, Deed.LOCK} and len(board.locks) >= _ENOUGH:
            deed = Deed.RELEASE
        lock = ""
        if deed in {Deed.RELEASE, Deed.OVERRIDE}:
            lock = self._lock(board, deed)
            deed = deed if lock else Deed.VIEW
        await self.ask(board, deed, lock)

    def _lock(self, board: Board, deed: Deed) -> str:
        """Choose a lock: mostly one that is there and fits, now and then another's, or one that is gone."""
        if self._dice.random() < 0.05:
            return board.gone
        fit = [
            lock
            for lock, (holder, hold) in board.locks.items()
            if (hold if deed is Deed.OVERRIDE else self._releases(holder))
        ]
        if self._dice.random() < 0.1:
            fit = list(board.locks)
        return self._dice.choice(fit) if fit else ""

    def _releases(self, holder: str) -> bool:
        return self.person.actor is ActorKind.ADMIN or holder == self.person.user

    async def ask(self, board: Board, deed: Deed, lock: str = "") -> Asked:
        """Ask for something and record it."""
        method, path, body, asked = self._request(board, deed, lock)
        invoked = time.monotonic_ns()
        answer = await self._connection.ask(method, path, body)
        answered = time.monotonic_ns()
        outcome, told, more = _understood(deed, answer)
        kept: dict[str, Any] = {"lock": lock, **asked, **more}
        request = Asked(
            user=self.person.user,
            actor=self.person.actor,
            deed=deed,
            invoked=invoked,
            answered=answered,
            outcome=outcome,
            told=told,
            **kept,
        )
        board.history.append(request)
        placed = request.outcome is Outcome.ADMITTED and deed in {Deed.PLACE, Deed.HOLD}
        # Most of what expires is left to.
        if placed and (request.expires is None or self._dice.random() < 0.3):
            board.locks[request.lock] = (request.user, deed is Deed.HOLD)
        elif request.outcome is Outcome.ADMITTED and deed is Deed.OVERRIDE:
            # Who broke the glass makes use of it, and tries once too often.
            tries = [Deed.CHANGE, Deed.CHANGE, self._dice.choice(_NEEDED), Deed.CHANGE]
            self._next = [(board, each) for each in tries]
        elif deed is Deed.RELEASE and request.outcome in {Outcome.ADMITTED, Outcome.NOT_FOUND}:
            board.locks.pop(lock, None)
            board.gone = lock
        return request

    def _request(self, board: Board, deed: Deed, lock: str) -> tuple[str, str, object, dict[str, Any]]:
        """Make a request: its method, path and body, and what is recorded of it beside its answer."""
        native, dice = f"/v1/instances/{board.instance_id}", self._dice
        server = f"/compute/v2.1/servers/{board.instance_id}"
        match deed:
            case Deed.VIEW | Deed.STACK | Deed.WORK:
                return "GET", self._page(board.instance_id, deed), msgspec.UNSET, {}
            case Deed.RELEASE:
                holds = self.person.actor is ActorKind.ADMIN and dice.random() < 0.5
                return "DELETE", f"{native}/{'holds' if holds else 'locks'}/{lock}", msgspec.UNSET, {}
            case Deed.CHANGE:
                return "POST", f"{server}/metadata", {"metadata": {"k": str(dice.randint(1, 9))}}, {}
            case Deed.PLACE:
                return "POST", f"{native}/locks", *self._wish()
            case Deed.HOLD:
                way, name = dice.choices(list(_WAYS), list(_WAYS.values()))[0], dice.choice("xy")
                body = {"name": name, "shutdown": way, "reason": "a court's order", "ticket": "T-1"}
                return "POST", f"{native}/holds", body, {"name": name, "way": way}
            case Deed.OVERRIDE:
                wanted: dict[str, Any] = {"lock": lock, "reason": "an emergency"}
                uses = dice.choice([0, 0, 1, 2])
                good_for = {"operations": uses} if uses else {"seconds": dice.uniform(0.05, 0.5)}
                return "POST", f"{native}/overrides", wanted | good_for, {"uses": uses}
            case _:
                return "POST", f"{server}/action", _ACTIONS[deed], {}

    def _page(self, instance_id: str, deed: Deed) -> str:
        """Say where something is read."""
        if deed is Deed.VIEW:
            # The legacy view is the one that tells whose lock it is (R8).
            return f"/compute/v2/{self.person.login.project}/servers/{instance_id}"
        if deed is Deed.STACK:
            return f"/v1/instances/{instance_id}/locks"
        return f"/v1/operations?instance={instance_id}&state=accepted&state=running"

    def _wish(self) -> tuple[dict[str, Any], dict[str, Any]]:
        dice = self._dice
        asked: dict[str, Any] = {
            "name": dice.choice("ab"),
            "blocks": dice.choices(list(_BLOCKS), list(_BLOCKS.values()))[0],
            "sealed": self.person.actor is ActorKind.MEMBER and dice.random() < 0.1,
            "overtake": dice.random() < 0.2,
        }
        body = {**asked, "blocks": [asked["blocks"]]}
        if dice.random() < 0.5:
            expires_at = dt.datetime.fromtimestamp(time.time() + dice.uniform(0.05, 0.4), dt.UTC)
            body["expires_at"] = expires_at.isoformat()
            asked["expires"] = _monotonic(expires_at)
        return body, asked


def _monotonic(at: dt.datetime) -> int:
    """Say a time of the clock on the wall by the one that requests are timed by."""
    return round(at.timestamp() * 1e9) - time.time_ns() + time.monotonic_ns()


def _understood(deed: Deed, answer: Answer) -> tuple[Outcome, str, dict[str, Any]]:
    """Read an answer in the words of the model, with what else is recorded of it.

    An answer that the model has no words for fails the test.
    """
    if answer.status == _ADMITTED[deed]:
        return Outcome.ADMITTED, *_told(deed, answer)
    if answer.status == 403:
        assert deed in {Deed.UNLOCK, Deed.RELEASE}, answer
        return Outcome.FORBIDDEN, "", {}
    if answer.status == 404:
        assert deed in {Deed.RELEASE, Deed.OVERRIDE}, answer
        return Outcome.NOT_FOUND, "", {}
    late = deed is Deed.PLACE and _PAST in answer.raw
    assert answer.status == (400 if late else 409), answer
    # A problem document of /v1, or a fault of the Compute API.
    message: str = answer.body.get("detail") or answer.body["conflictingRequest"]["message"]
    if late:
        return Outcome.TOO_LATE, "", {}
    for words, outcome in (
        ("You have a lock named", Outcome.NAME_TAKEN),
        ("does not bind administrators", Outcome.BINDS_NO_ADMIN),
        ("try again", Outcome.OVERTAKEN),
        (" is locked", Outcome.LOCKED),
    ):
        if words in message:
            return outcome, "", {}
    found = _WRONG_STATE.search(message)
    assert found is not None, answer
    wrong = Outcome.WRONG_VM_STATE if found["which"] == "vm" else Outcome.WRONG_TASK_STATE
    return wrong, found["state"], {}


def _seen(deed: Deed, answer: Answer) -> str:
    """Read what a reading tells."""
    if deed is Deed.VIEW:
        server = answer.body["server"]
        shown = (server["OS-EXT-STS:vm_state"], server["OS-EXT-STS:task_state"], server["locked_by"])
        assert server["locked"] is (server["locked_by"] is not None), answer
        return " ".join(word or NOTHING for word in shown)
    if deed is Deed.STACK:
        locks = [each["id"] if each["name"] else each["kind"] for each in answer.body["locks"]]
        return " ".join(sorted(locks)) or NOTHING
    work = [each["id"] for each in answer.body["operations"] if _is_asked_for(each["action"])]
    return " ".join(work) or NOTHING


def _told(deed: Deed, answer: Answer) -> tuple[str, dict[str, Any]]:
    """Read what an answer tells besides that the request was admitted."""
    match deed:
        case Deed.VIEW | Deed.STACK | Deed.WORK:
            return _seen(deed, answer), {}
        case Deed.LOCK:
            named = answer.headers.get("x-stateward-operation-in-flight")
            return (_short(named.split()[1]) if named else NOTHING), {}
        case Deed.PLACE:
            more = {"lock": answer.body["lock"]["id"]}
            in_flight = answer.body["in_flight"]
            if answer.body["confirmed"] is not None:
                # It overtook what was in flight.
                return ("" if in_flight is None else str(in_flight)), more
            return (NOTHING if in_flight is None else _short(in_flight["action"])), more
        case Deed.HOLD:
            return "", {"lock": answer.body["hold"]["id"], "operation": answer.body["operation"]["id"]}
        case Deed.OVERRIDE:
            ends = answer.body["expires_at"]
            return "", {} if ends is None else {"expires": _monotonic(dt.datetime.fromisoformat(ends))}
        case Deed.STOP | Deed.START | Deed.RESUME:
            return "", {"operation": answer.headers["x-stateward-operation"]}
        case _:
            return "", {}


def _is_asked_for(action: str) -> bool:
    """Whether an operation is one that a client is told the id of, and that shows as a task."""
    return action in {"stop", "start", "resume"} or (_short(action) == "hold" and action != "hold_none")


def _short(action: str) -> str:
    """Return an action's name without what its variant adds."""
    return action.split("_", maxsplit=1)[0]


@contextlib.asynccontextmanager
async def _clients(
    server: ServerProcess, those: Sequence[Person], *, clients: int, seed: int
) -> AsyncGenerator[list[Client]]:
    async with contextlib.AsyncExitStack() as stack:
        yield [
            Client(
                person,
                await stack.enter_async_context(server.connection(person.login.token)),
                random.Random(f"{seed} {number}"),
            )
            for number, person in ((number, those[number % len(those)]) for number in range(clients))
        ]


async def run(
    server: ServerProcess,
    admin: Admin,
    instance_ids: Sequence[str],
    *,
    clients: int,
    requests: int,
    seed: int,
) -> dict[str, list[Asked]]:
    """Have so many clients ask so many times in all, each time one of the instances; return what they recorded.

    At the end of each history stands what is seen once nothing happens any more.
    """
    boards = [Board(instance_id) for instance_id in instance_ids]
    those = await people(server, admin)
    async with _clients(server, those, clients=clients, seed=seed) as asking:

        async def one(number: int, client: Client) -> None:
            dice = random.Random(f"which {seed} {number}")
            for _ in range(requests // clients + (number < requests % clients)):
                await client.ask_something(dice.choice(boards))

        async with asyncio.TaskGroup() as group:
            for number, client in enumerate(asking):
                group.create_task(one(number, client))
        for board in boards:
            await _come_to_rest(server, asking[0], board)
    return {board.instance_id: await _with_ends(admin, board) for board in boards}


async def _come_to_rest(server: ServerProcess, client: Client, board: Board) -> None:
    """Wait until no lock is left that expires and nothing is in flight, and look at everything once more."""
    expiring = {each.lock for each in board.history if each.deed is Deed.PLACE and each.expires is not None}

    async def look() -> bool | None:
        stack = await client.ask(board, Deed.STACK)
        view = await client.ask(board, Deed.VIEW)
        return True if not expiring & set(stack.told.split()) and view.told.split()[1] == NOTHING else None

    await until(look, seconds=60, says=lambda: f"not at rest: {board.history[-2:]}\n{server.tail()}")
    await client.ask(board, Deed.WORK)


async def _with_ends(admin: Admin, board: Board) -> list[Asked]:
    """Add to each request how the operation ended that it began."""
    ends: dict[str, str] = {}
    path: str | None = f"/v1/operations?instance={board.instance_id}&limit={_PAGE}"
    async with admin.server.connection(admin.login.token) as connection:
        while path is not None:
            answer = await connection.ask("GET", path)
            assert answer.status == 200, answer
            ends |= {each["id"]: each["state"] for each in answer.body["operations"]}
            following = answer.body["links"]["next"]
            path = None if following is None else following[following.index("/v1/") :]
    return [
        msgspec.structs.replace(each, end=ends[each.operation]) if each.operation else each
        for each in board.history
    ]
