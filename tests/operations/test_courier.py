"""Webhooks: in order, at least once, signed; tried again, given up, redelivered; and nobody waits for another."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
from collections.abc import Callable, Mapping
from typing import Any

import msgspec
import pytest
import sqlalchemy as sa

from stateward.domain.errors import Conflict, Invalid, NotFound
from stateward.domain.events import Place
from stateward.domain.locks import ActorKind
from stateward.domain.notifications import BY_TASK
from stateward.domain.records import Observation, Outcome, Result
from stateward.domain.states import Cause, Observed, TaskState
from stateward.domain.webhooks import Format, Patience, Webhook, sign
from stateward.operations.changes import Changes
from stateward.operations.completion import Completion
from stateward.operations.courier import Courier, bodies
from stateward.operations.posting import NotDelivered, check_url
from stateward.operations.webhooks import Wanted, Webhooks
from stateward.store import operations, told, webhooks
from tests.operations.desk import Desk
from tests.rows import NOW, actor

ADMIN = actor(ActorKind.ADMIN, project="operations")
URL = "https://example.org/hook"


class Receiver:
    """Takes what is posted, or refuses it."""

    def __init__(self) -> None:
        self.got: list[tuple[str, dict[str, Any], dict[str, str]]] = []
        self.arrived: asyncio.Queue[str] = asyncio.Queue()
        self.refuses: dict[str, NotDelivered] = {}
        self.waits: dict[str, asyncio.Event] = {}
        self.began: asyncio.Queue[str] = asyncio.Queue()

    async def __call__(self, url: str, body: bytes, headers: Mapping[str, str]) -> None:
        self.began.put_nowait(url)
        if url in self.waits:
            await self.waits[url].wait()
        if url in self.refuses:
            raise self.refuses[url]
        self.arrived.put_nowait(url)
        self.got.append((url, msgspec.json.decode(body), dict(headers)))

    def ids(self, url: str = URL) -> list[str]:
        return [body["id"] for address, body, _headers in self.got if address == url]


class Office:
    """Webhooks on a desk's database, delivered when a test says so."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.post = Receiver()
        self.webhooks = Webhooks(desk.database, desk.clock, self.post, "/here")
        #: Seconds by a clock that nobody sets.
        self.steady = 0.0
        self.changes = Changes()
        self.courier = self.new_courier()

    def new_courier(self, **more: Any) -> Courier:
        """Return what a new life of the server would deliver with."""
        return Courier(
            self.desk.database,
            self.desk.clock,
            self.changes,
            self.post,
            bodies("/here"),
            patience=Patience(attempts=3, disable_after=1000),
            jitter=lambda: 0.5,
            steady=lambda: self.steady,
            **more,
        )

    async def add(self, name: str = "one", url: str = URL, **more: Any) -> Webhook:
        return await self.webhooks.add(Wanted(name=name, url=url, **more), ADMIN)

    async def happens(self, count: int = 1) -> None:
        """Have so many records made, of one event each."""
        for _number in range(count):
            await self.desk.admit("stop", await self.desk.add())

    async def alerts(self, count: int, says: str = "Before.") -> None:
        """Have so many alerts recorded."""

        def work(connection: sa.Connection) -> None:
            for _number in range(count):
                operations.alert(connection, says, at=self.desk.clock.now(), actor=ADMIN, action="host")

        await self.desk.database.write(work)

    async def deliver(self, after: float = 0) -> None:
        self.desk.clock.at += after
        self.steady += after
        await self.courier.look()
        await self.courier.settle()

    async def row(self, name: str = "one") -> Webhook:
        return (await self.webhooks.get(name))[0]


@pytest.fixture
def office(desk: Desk) -> Office:
    return Office(desk)


def test_the_standard_s_own_example() -> None:
    """Of the specification's reference libraries."""
    headers = sign(
        ("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",),
        "msg_p5jXN8AQM9LWM0D4loKWxJek",
        1614265330,
        b'{"test": 2432232314}',
    )
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


async def test_in_order_and_signed(office: Office) -> None:
    """From when it was made on; each once; a receiver can check them with the secret alone."""
    await office.happens()
    made = await office.add()
    await office.happens(3)
    await office.deliver()
    # Its own making is the first.
    assert office.post.ids() == ["2.0", "3.0", "4.0", "5.0"]
    await office.deliver()
    assert len(office.post.got) == 4
    _url, body, headers = office.post.got[1]
    key = base64.b64decode(made.secret.removeprefix("whsec_"))
    signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + msgspec.json.encode(body)
    expected = base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
    assert (headers["webhook-id"], headers["webhook-timestamp"]) == ("evt_3_0", str(int(NOW)))
    assert headers["webhook-signature"] == f"v1,{expected}"
    row = await office.row()
    assert (row.delivered, row.reached, row.attempts) == (4, Place(5, 9), 0)


async def test_a_fault_of_ours_does_not_end_it(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next look is taken all the same."""
    await office.add()
    changes, look = office.changes, office.courier.look
    looks = 0

    async def faulty() -> None:
        nonlocal looks
        looks += 1
        changes.changed()
        if looks == 1:
            raise RuntimeError
        await look()

    monkeypatch.setattr(office.courier, "look", faulty)
    await office.courier.start()
    async with asyncio.timeout(10):
        await office.post.arrived.get()
    await office.courier.stop()
    assert office.post.ids() == ["1.0"]


async def test_a_life_that_ends_loses_nothing(office: Office) -> None:
    """Killed while it sends, the next one sends again what was not noted, under the same id."""
    await office.add()
    await office.happens(2)
    office.post.waits[URL] = asyncio.Event()
    await office.courier.look()
    await asyncio.sleep(0)
    await office.courier.stop()
    assert office.post.got == []
    del office.post.waits[URL]
    office.courier = office.new_courier()
    await office.deliver()
    assert office.post.ids() == ["1.0", "2.0", "3.0"]


@pytest.mark.parametrize("killed", [True, False])
async def test_what_was_sent_and_not_noted(office: Office, *, killed: bool) -> None:
    """After a kill it is sent again; a server that stops notes it first."""
    await office.add()
    await office.deliver()
    await office.happens()
    await office.deliver()
    assert office.post.ids() == ["1.0", "2.0"]
    assert (await office.row()).reached == Place(1, 9)
    if not killed:
        await office.courier.stop()
    office.courier = office.new_courier()
    await office.happens()
    await office.deliver()
    assert office.post.ids() == ["1.0", "2.0", *(["2.0"] if killed else []), "3.0"]
    assert (await office.row()).delivered == 3


async def test_who_fails_is_tried_again(office: Office) -> None:
    """Each time after twice as long; then it is a dead letter, and the next one is tried."""
    await office.add(types=("operation.*",))
    await office.happens(2)
    office.post.refuses[URL] = NotDelivered("It answered 500.")
    await office.deliver()
    row = await office.row()
    assert (row.attempts, row.next_try_at, row.last_error) == (1, NOW + 1, "It answered 500.")
    assert row.failing_since == NOW
    await office.deliver(0.9)
    assert (await office.row()).attempts == 1
    await office.deliver(0.1)
    row = await office.row()
    assert (row.attempts, row.next_try_at) == (2, NOW + 3)
    await office.deliver(2)
    (letter,) = await office.webhooks.letters("one")
    assert (letter.place, letter.attempts, letter.error) == (Place(2, 0), 3, "It answered 500.")
    assert await office.webhooks.change("one", {"types": ("operation.*",)}, ADMIN) == (await office.row(), 1)
    assert (await office.webhooks.rotate("one", ADMIN, overlap=0, secret=None))[1] == 1
    del office.post.refuses[URL]
    await office.deliver()
    assert office.post.ids() == ["3.0"]
    row = await office.row()
    assert (row.failing_since, row.last_error, row.delivered) == (None, None, 1)
    assert await office.webhooks.redeliver("one", None, ADMIN) == 1
    await office.deliver()
    assert office.post.ids() == ["3.0", "2.0"]
    assert await office.webhooks.letters("one") == []
    assert (await office.row()).delivered == 2


async def test_a_dead_letter_that_fails_again_stays(office: Office) -> None:
    """Until somebody asks once more."""
    await office.add(types=("operation.*",))
    await office.happens()
    office.post.refuses[URL] = NotDelivered("no")
    for _attempt in range(3):
        await office.deliver(10)
    await office.webhooks.redeliver("one", None, ADMIN)
    await office.deliver()
    (letter,) = await office.webhooks.letters("one")
    assert (letter.attempts, letter.due) == (4, False)


async def test_a_dead_letter_that_is_taken_ends_the_trouble(office: Office) -> None:
    """Nothing else may happen for days: the next failure is then the first, and it is not disabled by it."""
    await office.add(types=("operation.*",))
    await office.happens()
    office.post.refuses[URL] = NotDelivered("no")
    for _attempt in range(3):
        await office.deliver(10)
    assert ((await office.row()).failing_since, (await office.row()).last_error) == (NOW + 10, "no")
    del office.post.refuses[URL]
    await office.webhooks.redeliver("one", None, ADMIN)
    await office.deliver()
    row = await office.row()
    assert (row.failing_since, row.last_error, row.delivered) == (None, None, 1)


async def test_dead_letters_and_what_is_new_take_turns(office: Office) -> None:
    """A letter that is not taken again ends the letters' turn."""
    await office.add(types=("operation.*",))
    await office.happens(2)
    office.post.refuses[URL] = NotDelivered("no")
    for _attempt in range(6):
        await office.deliver(10)
    await office.webhooks.redeliver("one", None, ADMIN)
    await office.happens()
    await office.deliver()
    assert [letter.due for letter in await office.webhooks.letters("one")] == [False, True]
    assert (await office.row()).attempts == 1
    del office.post.refuses[URL]
    await office.deliver(10)
    assert office.post.ids() == ["3.0", "5.0"]


async def test_nobody_waits_for_another(office: Office) -> None:
    """One that does not answer keeps its own events back, and nobody else's."""
    await office.add()
    await office.add("slow", "https://slow.example.org/")
    office.post.waits["https://slow.example.org/"] = asyncio.Event()
    await office.happens()
    await office.courier.look()
    async with asyncio.timeout(5):
        for _event in range(3):
            await office.post.arrived.get()
    assert office.post.ids() == ["1.0", "2.0", "3.0"]
    assert office.post.ids("https://slow.example.org/") == []
    office.post.waits["https://slow.example.org/"].set()
    await office.courier.settle()
    assert office.post.ids("https://slow.example.org/") == ["2.0", "3.0"]


async def test_who_hangs_waits_with_its_like(office: Office) -> None:
    """Those that do not answer take no place of those that do."""
    office.courier = office.new_courier(at_once=1)
    slow = "https://slow.example.org/"
    for number in range(3):
        await office.add(f"slow{number}", slow, types=("operation.*",))
    await office.happens()
    office.post.refuses[slow] = NotDelivered("no")
    await office.deliver()
    office.post.waits[slow] = asyncio.Event()
    # The last in the order in which they are looked at.
    await office.add("swift", types=("operation.*",))
    await office.happens()
    office.desk.clock.at += 10
    await office.courier.look()
    async with asyncio.timeout(5):
        assert await office.post.arrived.get() == URL
    office.post.waits[slow].set()
    await office.courier.settle()


async def begun(office: Office) -> asyncio.Event:
    """Have three events begun to be delivered; the first is on its way until what is returned is set."""
    await office.add(types=("operation.*",))
    await office.happens(3)
    office.post.waits[URL] = asyncio.Event()
    await office.courier.look()
    async with asyncio.timeout(5):
        assert await office.post.began.get() == URL
    return office.post.waits[URL]


@pytest.mark.parametrize("change", ["delete", "disable", "rotate", "url", "types"])
async def test_a_change_counts_from_the_next_message_on(office: Office, change: str) -> None:
    """Whatever was read together with the one that is on its way."""
    arrives, new = await begun(office), ""
    if change == "delete":
        await office.webhooks.delete("one", ADMIN)
    elif change == "disable":
        await office.webhooks.change("one", {"enabled": False}, ADMIN)
    elif change == "rotate":
        new = (await office.webhooks.rotate("one", ADMIN, overlap=0, secret=None))[0].secret
    elif change == "url":
        await office.webhooks.change("one", {"url": "https://new.example.org/"}, ADMIN)
    else:
        await office.webhooks.change("one", {"types": ("alert",)}, ADMIN)
    arrives.set()
    await office.courier.settle()
    assert office.post.ids() == ["2.0"]
    await office.deliver()
    assert office.post.ids() == (["2.0", "3.0", "4.0"] if change == "rotate" else ["2.0"])
    assert office.post.ids("https://new.example.org/") == (["3.0", "4.0"] if change == "url" else [])
    if change == "rotate":
        for _url, body, headers in office.post.got[1:]:
            signed = sign((new,), headers["webhook-id"], int(NOW), msgspec.json.encode(body))
            assert headers["webhook-signature"] == signed["webhook-signature"]


@pytest.mark.parametrize("on_its_way", ["a dead letter", "the first of many records"])
async def test_what_a_change_adds_is_not_passed_over(office: Office, on_its_way: str) -> None:
    """Whatever is on its way meanwhile, and however long: what comes after the change is told by it."""
    await office.add(types=("operation.*",))
    # It is noted how far it got, and thus not again within a second: what is noted is also read.
    await office.deliver()
    await office.happens()
    if on_its_way == "a dead letter":
        office.post.refuses[URL] = NotDelivered("no")
        for _attempt in range(3):
            await office.deliver(10)
        del office.post.refuses[URL]
        await office.webhooks.redeliver("one", None, ADMIN)
    else:
        # More than are read at once, and none of them wanted.
        await office.alerts(60)
    office.post.began = asyncio.Queue()
    office.post.waits[URL] = asyncio.Event()
    await office.courier.look()
    async with asyncio.timeout(5):
        assert await office.post.began.get() == URL
    await office.webhooks.change("one", {"types": ("operation.*", "alert")}, ADMIN)
    await office.alerts(1, "Look.")
    await office.desk.database.seal()
    office.post.waits[URL].set()
    await office.courier.settle()
    await office.deliver()
    told_now = [body["data"]["detail"].get("says") for _url, body, _headers in office.post.got]
    assert (told_now[0], told_now[-1]) == (None, "Look.")


@pytest.mark.parametrize("gone", [True, False])
async def test_a_failure_is_that_of_its_address(office: Office, *, gone: bool) -> None:
    """One of the address before is no failure of the new one, which is tried at once."""
    arrives = await begun(office)
    await office.webhooks.change("one", {"url": "https://new.example.org/"}, ADMIN)
    office.post.refuses[URL] = NotDelivered("no", gone=gone)
    arrives.set()
    await office.courier.settle()
    row = await office.row()
    assert (row.enabled, row.attempts, row.next_try_at, row.last_error) == (True, 0, None, None)
    await office.deliver()
    assert office.post.ids("https://new.example.org/") == ["2.0", "3.0", "4.0"]


@pytest.mark.parametrize("write", ["failed", "given_up", "disabled", "letter_failed"])
async def test_a_failure_that_is_noted_too_late(office: Office, write: str) -> None:
    """The write itself sees that the address is another one."""
    await office.add(types=("operation.*",))
    await office.happens(2)
    office.post.refuses[URL] = NotDelivered("no")
    for _attempt in range(3):
        await office.deliver(10)
    await office.webhooks.redeliver("one", None, ADMIN)
    database, old = office.desk.database, await office.row()
    (letter,) = await office.webhooks.letters("one")
    event = await database.read(lambda connection: told.one(connection, Place(3, 0)))
    assert event is not None
    await office.webhooks.change("one", {"url": "https://new.example.org/"}, ADMIN)
    old = msgspec.structs.replace(await office.row(), url=old.url)
    new = await office.row(), await office.webhooks.letters("one")
    writes: dict[str, Callable[[sa.Connection], object]] = {
        "failed": lambda connection: webhooks.failed(connection, old, now=NOW, next_try_at=NOW, error="no"),
        "given_up": lambda connection: webhooks.given_up(connection, old, event, now=NOW, error="no"),
        "disabled": lambda connection: webhooks.disabled(connection, old, reason="no", error="no"),
        "letter_failed": lambda connection: webhooks.letter_failed(
            connection, old, letter, now=NOW, error="no"
        ),
    }
    assert not await database.write(writes[write])
    assert (await office.row(), await office.webhooks.letters("one")) == new


async def test_another_address_is_tried_at_once(office: Office) -> None:
    """It need not wait for what the one before deserved."""
    await office.add(types=("operation.*",))
    await office.happens()
    office.post.refuses[URL] = NotDelivered("no")
    await office.deliver()
    await office.deliver(1)
    assert (await office.row()).attempts == 2
    changed, _letters = await office.webhooks.change("one", {"url": "https://new.example.org/"}, ADMIN)
    assert (changed.attempts, changed.next_try_at, changed.failing_since) == (0, None, None)
    assert changed.last_error is None
    await office.deliver()
    assert office.post.ids("https://new.example.org/") == ["2.0"]


async def test_a_clock_that_is_set_back(office: Office) -> None:
    """No attempt is later than the longest pause."""
    await office.add(types=("operation.*",))
    await office.happens()
    office.post.refuses[URL] = NotDelivered("no")
    await office.deliver()
    del office.post.refuses[URL]
    office.desk.clock.at -= 3600
    await office.deliver()
    assert office.post.ids() == ["2.0"]


@pytest.mark.parametrize("restarted", [True, False])
async def test_a_clock_that_jumps_ahead(office: Office, *, restarted: bool) -> None:
    """It, or a server that was off for days, disables nothing: nobody tried meanwhile."""
    await office.add(types=("operation.*",))
    await office.happens(9)
    office.post.refuses[URL] = NotDelivered("no")
    await office.deliver()
    office.desk.clock.at += 5 * 86_400
    if restarted:
        office.courier = office.new_courier()
    await office.deliver()
    assert (await office.row()).enabled
    await office.deliver(290)
    assert (await office.row()).enabled
    # With those failures before a restart that are in the database, but not without some that it sees itself.
    await office.deliver(9 if restarted else 709)
    assert (await office.row()).enabled
    await office.deliver(10)
    assert not (await office.row()).enabled


@pytest.mark.parametrize("gone", [True, False])
async def test_one_that_stays_away_is_disabled(office: Office, *, gone: bool) -> None:
    """After so long, or at once when it says that it is gone; the operator is alerted, and can enable it again."""
    await office.add(types=("operation.*",))
    await office.happens()
    office.post.refuses[URL] = NotDelivered("no", gone=gone)
    await office.deliver()
    if not gone:
        assert (await office.row()).enabled
        await office.deliver(1000)
    row = await office.row()
    assert (row.enabled, row.disabled_reason) == (False, "Nothing could be delivered any more: no")
    event, action, detail = (await office.desk.audit())[-1]
    assert (event, action, detail["webhook"]) == ("alert", "webhook_disabled", "one")
    with pytest.raises(Conflict, match="is disabled"):
        await office.webhooks.redeliver("one", None, ADMIN)
    del office.post.refuses[URL]
    await office.webhooks.change("one", {"enabled": True}, ADMIN)
    await office.deliver()
    assert office.post.ids() == ["2.0"]


async def test_two_secrets_sign_while_one_is_rotated(office: Office) -> None:
    """And after that the new one alone."""
    old = (await office.add()).secret
    new = (await office.webhooks.rotate("one", ADMIN, overlap=60, secret=None))[0].secret
    await office.deliver()
    identifier, at = "evt_1_0", int(NOW)
    _url, body, headers = office.post.got[0]
    both = sign((new, old), identifier, at, msgspec.json.encode(body))
    assert headers["webhook-signature"] == both["webhook-signature"]
    await office.happens()
    await office.deliver(60)
    _url, body, headers = office.post.got[-1]
    assert len(headers["webhook-signature"].split()) == 1


async def test_only_what_is_wanted(office: Office) -> None:
    """By type and by project; as a customer without what is the operator's."""
    instance_id = await office.desk.add(project_id="q")
    await office.add(types=("operation.accepted",), project_id="q", customer=True)
    await office.happens()
    await office.desk.immediate.lock(instance_id, ADMIN, reason="r", project_id=None)
    await office.deliver()
    (got,) = [body for _url, body, _headers in office.post.got]
    assert got["subject"] == instance_id
    assert got["data"]["actor"] == {"kind": "admin", "user_id": None, "project_id": None}


async def test_it_must_be_about_something(office: Office) -> None:
    """A name that is nothing would be silent for ever."""
    instance_id, others = await office.desk.add(), await office.desk.add(project_id="q")
    await office.desk.add_host("h")
    cases: tuple[tuple[dict[str, Any], str], ...] = (
        ({"host": "nope"}, "Host nope could not be found."),
        ({"project_id": "nope"}, "Project nope could not be found."),
        ({"instance_id": "nope"}, "Instance nope could not be found."),
        ({"project_id": "p", "instance_id": others}, f"Project p has no instance {others}."),
        (
            {"project_id": "p", "instance_id": others, "customer": True},
            f"Instance {others} could not be found.",
        ),
    )
    for more, says in cases:
        with pytest.raises(NotFound, match=f"^{says}$"):
            await office.add(**more)
    await office.add(host="h", project_id="p", instance_id=instance_id, customer=True)


async def test_letters_that_are_not_there(office: Office) -> None:
    """They are named, and nothing is done; those of another webhook are not there."""
    await office.add(types=("operation.*",))
    await office.add("two", types=("operation.*",))
    await office.happens()
    office.post.refuses[URL] = NotDelivered("no")
    for _attempt in range(3):
        await office.deliver(10)
    (mine,) = await office.webhooks.letters("one")
    (other,) = await office.webhooks.letters("two")
    with pytest.raises(NotFound, match=rf"^Webhook one has no dead letter {other.number}, 77; nothing is"):
        await office.webhooks.redeliver("one", [77, mine.number, other.number], ADMIN)
    assert not any(letter.due for letter in await office.webhooks.letters("one"))
    assert await office.webhooks.redeliver("one", [mine.number], ADMIN) == 1
    with pytest.raises(NotFound, match=r" 108, 109 …; nothing"):
        await office.webhooks.redeliver("two", range(100, 2000), ADMIN)


async def test_a_change_of_nothing(office: Office) -> None:
    """It leaves no record."""
    await office.add()
    before = await office.desk.audit()
    assert await office.webhooks.change("one", {}, ADMIN) == (await office.row(), 0)
    assert await office.desk.audit() == before


async def test_a_test_is_sent_at_once(office: Office) -> None:
    """Whether it is taken is the answer."""
    await office.add()
    await office.webhooks.test("one")
    ((_url, body, headers),) = office.post.got
    assert (body["type"], headers["webhook-id"][:5]) == ("org.stateward.webhook.test", "test_")
    office.post.refuses[URL] = NotDelivered("no")
    with pytest.raises(NotDelivered):
        await office.webhooks.test("one")


async def test_what_cannot_be_a_webhook(office: Office) -> None:
    """Addresses of other kinds, secrets that are none, names that are taken."""
    await office.add()
    with pytest.raises(Conflict, match="There is a webhook 'one' already"):
        await office.add()
    for url in (
        "ftp://example.org/",
        "example.org",
        "https://",
        "http://[x",
        "https://a:b@example.org/",
        "http://a b/",
    ):
        with pytest.raises(Invalid):
            check_url(url)
    for secret in ("x", "whsec_", "whsec_" + base64.b64encode(b"short").decode(), "whsec_!!"):
        with pytest.raises(Invalid):
            await office.add("two", secret=secret)
    with pytest.raises(Invalid):
        await office.add("two", types=("nothing",))
    with pytest.raises(Invalid):
        await office.add("two", customer=True)
    nothing = (
        "^Nova's notifications are of operation.accepted and operation.finished alone; of these types nothing"
    )
    with pytest.raises(Invalid, match=nothing):
        await office.add("two", format=Format.NOVA, types=("alert", "lock.*"))
    with pytest.raises(NotFound):
        await office.webhooks.get("two")
    await office.add("two", format=Format.NOVA, types=("alert", "operation.*"))
    with pytest.raises(Invalid, match=nothing):
        await office.webhooks.change("two", {"types": ("alert",)}, ADMIN)
    await office.webhooks.delete("two", ADMIN)
    await office.webhooks.delete("one", ADMIN)
    assert await office.desk.database.read(webhooks.every) == []


async def test_nova_s_notifications(office: Office) -> None:
    """The start and the end of what Nova has a word for, with the states of their own moments."""
    await office.add(format=Format.NOVA)
    instance_id = await office.desk.add()
    admitted = await office.desk.admit("stop", instance_id)
    office.desk.clock.at += 5
    result = Result(
        operation_id=admitted.operation.id,
        instance_id=instance_id,
        fence=admitted.operation.fence,
        outcome=Outcome.SUCCEEDED,
        message=None,
        observation=Observation(
            instance_id=instance_id, observed=Observed.SHUTOFF, cause=Cause.OPERATOR, seq=9, at=NOW + 5
        ),
    )
    await Completion(office.desk.admission, lambda _id: None).handle(msgspec.json.encode(result))
    await office.desk.immediate.lock(instance_id, actor(), reason="Mine.", project_id=None)
    await office.deliver()
    start, end, lock = (body for _url, body, _headers in office.post.got)
    said = [
        (
            body["event_type"],
            body["publisher_id"],
            body["payload"]["nova_object.name"],
            body["payload"]["nova_object.version"],
            *(body["payload"]["nova_object.data"][name] for name in ("state", "task_state", "power_state")),
        )
        for body in (start, end, lock)
    ]
    plain = ("InstanceActionPayload", "1.9")
    assert said == [
        ("instance.power_off.start", "nova-compute:h", *plain, "active", "powering-off", "running"),
        ("instance.power_off.end", "nova-compute:h", *plain, "stopped", None, "shutdown"),
        ("instance.lock", "nova-api:h", *plain, "stopped", None, "shutdown"),
    ]
    data = start["payload"]["nova_object.data"]
    assert (data["uuid"], data["request_id"], data["fault"]) == (instance_id, "req-1", None)
    assert data["flavor"]["nova_object.data"]["memory_mb"] == 128
    assert start["timestamp"] == "2023-11-14 22:13:20.000000"


async def test_a_failure_in_nova_s_words(office: Office) -> None:
    """An error with its fault."""
    await office.add(format=Format.NOVA)
    instance_id = await office.desk.add()
    admitted = await office.desk.admit("pause", instance_id)
    result = Result(
        operation_id=admitted.operation.id,
        instance_id=instance_id,
        fence=admitted.operation.fence,
        outcome=Outcome.FAILED,
        message="No.",
        observation=None,
    )
    await Completion(office.desk.admission, lambda _id: None).handle(msgspec.json.encode(result))
    await office.deliver()
    body = office.post.got[-1][1]
    assert (body["event_type"], body["priority"]) == ("instance.pause.error", "ERROR")
    fault = body["payload"]["nova_object.data"]["fault"]["nova_object.data"]
    assert fault["exception_message"] == "No."


def test_every_task_state_has_its_notification() -> None:
    """So that a new one cannot be forgotten."""
    assert set(BY_TASK) == set(TaskState)
