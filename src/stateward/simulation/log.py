"""The log of a simulation: one sentence a line, with its virtual time, made of what the cluster itself writes.

What is decided comes from the audit trail, what is recorded from the rows, and what is so from the hypervisors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import msgspec
import sqlalchemy as sa

from stateward.agent.simulated.guests import SimulatedGuest
from stateward.domain.actions import BY_KEY
from stateward.store.tables import AUDIT, HOSTS, INSTANCES

_UUID: Final = re.compile(r"(?:req-)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
#: Names that are written out in one line; more are counted.
_FEW: Final = 6
_WHO: Final = {"member": "the customer", "admin": "the operator", "system": "Stateward"}
_DECIDED: Final = AUDIT.c
_RECORDED: Final[tuple[sa.Column[Any], ...]] = (
    *(INSTANCES.c.id, INSTANCES.c.name, INSTANCES.c.vm_state, INSTANCES.c.host, INSTANCES.c.locked_by),
    *(INSTANCES.c.fault, INSTANCES.c.task_state),
)

_INSTANCES: Final = sa.select(*_RECORDED).order_by(INSTANCES.c.number)


class _Line(msgspec.Struct, kw_only=True):
    """A line about one or several subjects: what stands before their names, and after."""

    at: str
    before: str
    subjects: list[str]
    after: str


class Log:
    """Collects lines; what happens to several at the same moment is one line.

    Nothing is collected until it is told when the script begins.
    """

    def __init__(self, time: Callable[[], float]) -> None:
        """Use the loop's time."""
        self._lines: list[_Line] = []
        #: The instances' names by their ids, for sentences that name an id.
        self.names: dict[str, str] = {}
        self._time = time
        self._zero: float | None = None

    @property
    def begun(self) -> bool:
        """Whether lines are collected."""
        return self._zero is not None

    def begin(self) -> None:
        """Collect from now on, and count time from here."""
        self._zero = self._time()

    def say(self, after: str, *, subject: str = "", before: str = "") -> None:
        """Write a line.

        Args:
            after: what is said of the subject, or the whole sentence.
            subject: an instance's name.
            before: what stands before the name.
        """
        if self._zero is None:
            return
        said = _UUID.sub(lambda found: self.names.get(found[0], "…"), after).replace("\n", " ")
        at = f"{max(self._time() - self._zero, 0.0):9.3f}"
        for line in reversed(self._lines):
            # Nothing is taken back over what happened in between.
            if line.at != at or not subject or not line.subjects:
                break
            if (line.before, line.after) == (before, said):
                if subject not in line.subjects:
                    line.subjects.append(subject)
                    return
                break
        self._lines.append(_Line(at=at, before=before, subjects=[subject] if subject else [], after=said))

    def lines(self) -> list[str]:
        """Return the lines so far."""
        order = {name: number for number, name in enumerate(self.names.values())}
        return [
            f"{line.at}  {line.before}"
            + (
                f"{shortened(sorted(line.subjects, key=lambda each: order.get(each, -1)))}"
                if line.subjects
                else ""
            )
            + (line.after if line.before or not line.subjects else f": {line.after}")
            for line in self._lines
        ]


class Teller:
    """Says what changed in the database, after each commit."""

    def __init__(self, log: Log) -> None:
        """Know nothing yet."""
        self._log = log
        self._last = 0
        self._instances: dict[str, sa.Row[Any]] = {}
        self._hosts: dict[str, sa.Row[Any]] = {}

    def look(self, connection: sa.Connection) -> None:
        """Say what is new."""
        query = sa.select(AUDIT).where(_DECIDED.number > self._last).order_by(_DECIDED.number)
        for row in connection.execute(query).all():
            self._last = row.number
            name = self._log.names.get(row.instance_id or "")
            sentence = _decided(row)
            if sentence is not None:
                self._log.say(sentence, subject=name or "")
        rows: Sequence[Any] = connection.execute(_INSTANCES).all()
        for row in rows:
            self._log.names[row.id] = row.name
            before = self._instances.get(row.id)
            self._instances[row.id] = row
            if before is not None and before != row:
                for sentence in _recorded(before, row):
                    self._log.say(sentence, subject=row.name)
        for row in connection.execute(sa.select(HOSTS).order_by(HOSTS.c.name)).all():
            before = self._hosts.get(row.name)
            self._hosts[row.name] = row
            if before is not None:
                for sentence in _host(before, row):
                    self._log.say(f"{row.name}: {sentence}")

    def recorded(self) -> Sequence[sa.Row[Any]]:
        """Return the instances' rows as they are now."""
        return tuple(self._instances.values())


def _decided(row: sa.Row[Any]) -> str | None:
    """Say what an audit record says; None for what is said elsewhere."""
    detail: Mapping[str, Any] = row.detail
    who = _WHO[row.actor_kind]
    match row.event:
        case "verdict":
            return (
                f"verdict {detail['verdict']}, {detail['expected']} but {detail['observed']} "
                f"({detail['cause']}): {detail['says']}"
            )
        case "admitted":
            action = BY_KEY[row.action]
            overtakes = ", overtaking what was under way" if detail.get("overtakes") else ""
            return f"{row.action} for {who}{overtakes}" + ("" if action.is_operation else ", done")
        case "finished":
            note = detail.get("shutdown") if detail["outcome"] == "succeeded" else detail.get("message")
            return f"{row.action} {detail['outcome']}" + (f": {note}" if note else "")
        case "refused":
            # Whoever was refused says so.
            return None
        case "ordered":
            seconds = detail.get("seconds")
            return f"{row.action} is told to {detail['command']}" + (f" to {seconds} s" if seconds else "")
        case _:
            return _other(row.event, row.action, detail)


def _other(event: str, action: str | None, detail: Mapping[str, Any]) -> str:
    """Say what a record says of which nothing more is known than what is in it; ids are for programs."""
    said = detail.get("says") or ", ".join(
        f"{key} {value}"
        for key, value in sorted(detail.items())
        if isinstance(value, str | int | float) and not key.startswith(("boot", "host"))
    )
    what = " ".join(
        (event if action is None or event == "alert" or action in event else f"{event} {action}").split("_")
    )
    sentence = f"{what}: {said}" if said else what
    return f"{detail['host']}: {sentence}" if "host" in detail else sentence


def _recorded(before: sa.Row[Any], after: sa.Row[Any]) -> list[str]:
    said: list[str] = []
    if before.vm_state != after.vm_state:
        fault = f": {after.fault.message}" if after.vm_state == "error" and after.fault is not None else ""
        said.append(f"is {after.vm_state}{fault}")
    if before.host != after.host and after.host:
        said.append(f"is on {after.host}")
    if before.locked_by != after.locked_by:
        said.append(f"is locked by {after.locked_by}" if after.locked_by else "is not locked")
    return said


def _host(before: sa.Row[Any], after: sa.Row[Any]) -> list[str]:
    said: list[str] = []
    if before.frozen != after.frozen:
        detail = f": {after.frozen_detail}" if after.frozen_detail else ""
        said.append(f"is frozen ({after.frozen}){detail}" if after.frozen else "is judged again")
    return said


def guest_says(before: SimulatedGuest, after: SimulatedGuest) -> list[str]:
    """Say what is new of a guest, as the hypervisor itself knows it."""
    said: list[str] = []
    heard = after.console[len(before.console) :] if len(after.console) > len(before.console) else ()
    if any(line.endswith("power button pressed") for line in heard):
        said.append("asked to shut down")
    if state_of(before) != state_of(after):
        said.append(state_of(after))
    return said


def state_of(guest: SimulatedGuest) -> str:
    """Say what a guest is, and by what it came to be off."""
    if guest.spec is None:
        return "gone"
    if guest.observed in {"running", "suspended", "crashed"}:
        return guest.observed.value
    return f"{guest.observed.value} ({guest.cause.value})"


def shortened(names: Sequence[str]) -> str:
    """Write names, or how many there are."""
    return ", ".join(names) if len(names) <= _FEW else f"{names[0]} … {names[-1]} ({len(names)})"
