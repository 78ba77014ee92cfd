"""What is sent over ``/v1``: these types are the answers, and the OpenAPI document is made of them.

Times are ISO 8601 in UTC.
"""

from __future__ import annotations

import msgspec

from stateward.api.http import iso_time
from stateward.domain.locks import ActorKind
from stateward.domain.records import Command, Operation, OperationState, WaitsFor
from stateward.domain.shutdown import AtDeadline, Rung, ShutdownPlan
from stateward.domain.steps import STEP_SAYS, Step
from stateward.store.operation_queries import Found


class ActorView(msgspec.Struct, frozen=True, kw_only=True):
    """Who asked for an operation; ``system`` is Stateward itself."""

    kind: ActorKind
    #: Null for a customer where that is the provider's staff.
    user_id: str | None
    project_id: str | None


class ShutdownView(msgspec.Struct, frozen=True, kw_only=True):
    """How long the guest gets to shut down, what happens then, and which layer said so."""

    seconds: int
    seconds_from: str
    at_deadline: AtDeadline
    at_deadline_from: str


class ProgressView(msgspec.Struct, frozen=True, kw_only=True):
    """How far the host is."""

    step: Step
    says: str
    #: The step's number, from 1, of so many.
    number: int
    of: int
    waits_for: WaitsFor | None
    deadline: str | None
    #: As of this answer; count down from it.
    seconds_left: float | None
    #: Whether the guest was asked to shut down, which cannot be undone.
    signalled: bool
    signalled_at: str | None
    #: How it was asked last.
    signalled_by: Rung | None
    reported_at: str


class OrderView(msgspec.Struct, frozen=True, kw_only=True):
    """The last thing that the running operation was told."""

    command: Command
    seconds: int | None


class LinksView(msgspec.Struct, frozen=True, kw_only=True):
    """Where to go from an operation."""

    self: str
    events: str
    server: str


class OperationView(msgspec.Struct, frozen=True, kw_only=True):
    """One operation."""

    id: str
    action: str
    state: OperationState
    #: Nothing changes any more.
    final: bool
    instance_id: str
    instance_name: str
    #: The instance's.
    project_id: str
    actor: ActorView
    request_id: str
    #: For administrators; null for others.
    host: str | None
    started_at: str
    finished_at: str | None
    message: str | None
    #: Null where no guest is shut down.
    shutdown: ShutdownView | None
    #: Null until the host has said something.
    progress: ProgressView | None
    order: OrderView | None
    #: What a person should know about the order.
    notice: str | None
    links: LinksView


class PageLinks(msgspec.Struct, frozen=True, kw_only=True):
    """Where the next page is; null on the last."""

    next: str | None


class OperationsView(msgspec.Struct, frozen=True, kw_only=True):
    """A page of operations, newest first."""

    operations: list[OperationView]
    links: PageLinks


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A refusal (RFC 9457), sent as ``application/problem+json``."""

    type: str
    title: str
    status: int
    detail: str
    request_id: str


class Extension(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What the guest shall get in all, in seconds from when it was first asked."""

    seconds: int


class Nothing(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """An empty object."""


def view(found: Found, *, base: str, now: float, admin: bool) -> OperationView:
    """Show an operation.

    Args:
        found: which.
        base: the server's address, without a slash at the end.
        now: the time of the answer, in seconds since the epoch.
        admin: show what is the provider's to know.
    """
    operation = found.operation
    shutdown = operation.params.get("shutdown")
    here = f"{base}/v1/operations/{operation.id}"
    return OperationView(
        id=operation.id,
        action=operation.action,
        state=operation.state,
        final=operation.finished_at is not None,
        instance_id=operation.instance_id,
        instance_name=found.instance_name,
        project_id=found.project_id,
        actor=actor_view(operation, admin=admin),
        request_id=operation.request_id,
        host=operation.host if admin else None,
        started_at=iso_time(operation.started_at),
        finished_at=_time(operation.finished_at),
        message=operation.message,
        shutdown=None if shutdown is None else _shutdown(msgspec.convert(shutdown, ShutdownPlan)),
        progress=_progress(operation, now),
        order=None
        if operation.order is None
        else OrderView(command=operation.order.command, seconds=operation.order.seconds),
        notice=_notice(operation),
        links=LinksView(
            self=here,
            events=f"{here}/events",
            server=f"{base}/compute/v2.1/servers/{operation.instance_id}",
        ),
    )


def actor_view(operation: Operation, *, admin: bool) -> ActorView:
    """Show who asked; ``admin``: to somebody who may know what is the provider's to know."""
    known = admin or operation.actor_kind is not ActorKind.ADMIN
    return ActorView(
        kind=operation.actor_kind,
        user_id=operation.user_id if known else None,
        project_id=operation.project_id if known else None,
    )


def _shutdown(plan: ShutdownPlan) -> ShutdownView:
    return ShutdownView(
        seconds=plan.seconds,
        seconds_from=plan.origin,
        at_deadline=plan.at_deadline,
        at_deadline_from=plan.at_deadline_origin,
    )


def _progress(operation: Operation, now: float) -> ProgressView | None:
    progress = operation.progress
    if progress is None:
        return None
    waiting = operation.finished_at is None and progress.deadline is not None
    return ProgressView(
        step=progress.step,
        says=STEP_SAYS[progress.step],
        number=progress.number,
        of=progress.of,
        waits_for=progress.waits_for if operation.finished_at is None else None,
        deadline=_time(progress.deadline),
        seconds_left=max(0.0, round((progress.deadline or 0.0) - now, 1)) if waiting else None,
        signalled=progress.signalled_at is not None,
        signalled_at=_time(progress.signalled_at),
        signalled_by=progress.rung if progress.signalled_at is not None else None,
        reported_at=iso_time(progress.at),
    )


def _notice(operation: Operation) -> str | None:
    """Say of an order that was not carried out yet what its answer must not leave open (B4)."""
    order, progress = operation.order, operation.progress
    if order is None or operation.finished_at is not None or order.command is not Command.CANCEL:
        return None
    if progress is None or progress.signalled_at is None:
        return "The guest has not been asked to shut down, as far as is known."
    return (
        f"The guest was already asked to shut down, at {iso_time(progress.signalled_at)}, and cannot be unasked: "
        "it may still go off by itself."
    )


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else iso_time(seconds)
