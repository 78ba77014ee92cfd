"""Intake: what agents report is compared with the rows and kept where it is news, however late or disordered."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import sqlalchemy as sa

from stateward.arbiter.boots import Boots
from stateward.clock import Clock
from stateward.domain.policies import NO_POLICIES, Policies
from stateward.domain.records import Observation, Report
from stateward.domain.states import Cause, Observed
from stateward.domain.verdicts import Kind, judge
from stateward.store import hosts, observations
from stateward.store.engine import Database

_decoder = msgspec.json.Decoder(Report)


class Intake:
    """Takes reports."""

    def __init__(
        self,
        database: Database,
        clock: Clock,
        judge: Callable[[str], None],
        boots: Boots,
        *,
        stray: Callable[[str, Observation], None],
        policies: Policies = NO_POLICIES,
    ) -> None:
        """Keep what is news in a database; ``judge`` is called with each instance that it is about.

        ``stray`` is called with a host, and what was seen there of an instance whose record names another.
        """
        self._stray = stray
        self._policies = policies
        self._database = database
        self._clock = clock
        self._boots = boots
        self._judge = judge
        #: The latest observation taken note of; rows keep only those that were news.
        self._seen: dict[tuple[str, str], int] = {}

    async def handle(self, payload: bytes) -> None:
        """Keep a report's observations and judge what is not as recorded."""
        report = _decoder.decode(payload)
        news, boots = await self._database.read(
            lambda connection: (self._news(connection, report), hosts.boots_of(connection, report.host))
        )
        booted = boots is not None and (boots.waits or boots.latest != report.boot_id)
        if not news and not booted:
            return
        due = await self._database.write(
            lambda connection: self._take(connection, report, news, booted=booted)
        )
        # Only now: a report that could not be kept comes again, and must count then.
        for each in news:
            seen = (report.host, each.instance_id)
            self._seen[seen] = max(each.seq, self._seen.get(seen, 0))
        if booted:
            self._boots.planned(report.host)
        for instance_id in due:
            self._judge(instance_id)

    def _news(self, connection: sa.Connection, report: Report) -> list[Observation]:
        """Return what of a report is worth a write: what changes a row, or what a row still disagrees with.

        A steady host's relist therefore writes nothing.
        """
        named = {observation.instance_id: observation for observation in report.observations}
        known = observations.seen_on(connection, report.host) if report.complete else []
        living = {row.id for row in known}
        others = [instance_id for instance_id in named if instance_id not in living]
        if others:
            # Deleted ones whose guest is still there, or after a report of a few: those few.
            known += observations.seen_by_id(connection, others)
        news: list[Observation] = []
        for row in known:
            observation = named.get(row.id) or Observation(
                instance_id=row.id, observed=Observed.MISSING, cause=Cause.OTHER, seq=report.seq, at=report.at
            )
            # Each host counts by itself.
            seen = (report.host, row.id)
            if row.host != report.host and observation.observed not in {Observed.MISSING, Observed.UNKNOWN}:
                self._stray(report.host, observation)
            if row.host != report.host or observation.seq <= max(row.observed_seq, self._seen.get(seen, 0)):
                continue
            changed = (row.observed, row.cause) != (observation.observed, observation.cause)
            if changed or self._undone(row):
                news.append(observation)
            else:
                self._seen[seen] = observation.seq
        return news

    def _take(
        self, connection: sa.Connection, report: Report, news: list[Observation], *, booted: bool
    ) -> list[str]:
        """Keep what is news of a report, and of a boot (R14); return the instances to be judged."""
        if booted:
            hosts.note_boot(connection, report.host, report.boot_id, report.seq, self._clock.now())
        due = [each.instance_id for each in news if observations.observe(connection, each, host=report.host)]
        planned = None
        if booted and report.complete:
            planned = self._boots.judge_in(connection, report.host, report.boot_id)
        return due if planned is None else planned

    def _undone(self, row: observations.Seen) -> bool:
        """Say whether something was due for what was seen before, and has not been done."""
        if row.task_state is not None:
            return False
        verdict = judge(
            row.vm_state,
            row.observed,
            row.cause,
            locked=row.locked_by is not None,
            held=bool(row.hold_blocks),
            kept_off=row.kept_off,
        )
        # Whose policy counts is not in these columns: what one of them could change is judged by the whole row.
        return verdict.kind in {Kind.ADOPT, Kind.RESTORE} or self._policies.may_act(
            row.vm_state, row.observed, row.cause
        )
