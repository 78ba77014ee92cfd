"""Moving instances while they run, or off a host that is down: asked for as in Nova, and refused with the reason.

The rows' conditions are tested first, as for every action. A refusal keeps nothing and changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from starlette.responses import Response

from stateward.api.compute.call import Call, empty
from stateward.api.faults import ApiFault
from stateward.domain import bodies
from stateward.domain.actions import BY_KEY, Policy, Role
from stateward.domain.errors import Invalid
from stateward.domain.records import Instance
from stateward.operations.immediate import Done
from stateward.store import hosts
from stateward.store.hosts import Host

_RULE: Final = "os_compute_api:os-migrate-server:"
#: The ends are ours; Nova's would say that it looked for one.
_NOT_WHILE_IT_RUNS: Final = "No valid host was found. A guest cannot be moved while it runs; migrate it cold."
_NOT_WITHOUT_ITS_HOST: Final = (
    "No valid host was found. A server whose host is down cannot be started elsewhere."
)

#: Raises what speaks against moving an instance, given all hosts by name.
_Refuse = Callable[[Instance, Mapping[str, Host]], NoReturn]


async def live_migrate(
    call: Call, instance_id: str, options: bodies.LiveMigrate1 | bodies.LiveMigrate25
) -> Response:
    """Answer ``os-migrateLive``."""
    if options.host is not None:
        call.allow(Policy(f"{_RULE}migrate_live:host", Role.ADMIN))

    def refuse(instance: Instance, known: Mapping[str, Host]) -> NoReturn:
        if options.host is not None and options.host == instance.host:
            raise Invalid(f"Unable to migrate instance ({instance.id}) to current host ({instance.host}).")
        _check_known(options.host, known)
        raise Invalid(_NOT_WHILE_IT_RUNS)

    return await _refused(call, "os-migrateLive", instance_id, refuse)


async def evacuate(call: Call, instance_id: str, options: bodies.Evacuate14) -> Response:
    """Answer ``evacuate``."""
    if isinstance(options, bodies.Evacuate29) and options.force is True and options.host is None:
        raise Invalid("Can't force to a non-provided destination")
    now, patience = call.services.clock.now(), call.services.host_patience

    def refuse(instance: Instance, known: Mapping[str, Host]) -> NoReturn:
        if options.host is not None and options.host not in known:
            raise ApiFault(404, f"Compute host {options.host} not found.")
        if options.host is not None and options.host == instance.host:
            raise Invalid("The target host can't be the same one.")
        home = known.get(instance.host)
        if home is not None and home.up(now, patience):
            raise Invalid(f"Compute service of {instance.host} is still in use.")
        raise Invalid(_NOT_WITHOUT_ITS_HOST)

    return await _refused(call, "evacuate", instance_id, refuse)


async def _refused(call: Call, name: str, instance_id: str, refuse: _Refuse) -> Response:
    """Refuse: by the action's row, or by what is given."""
    known = {host.name: host for host in await call.services.database.read(hosts.every)}

    def answer(_done: Done) -> Response:
        return empty(202)

    return answer(
        await call.immediate(answer).change(
            BY_KEY[name],
            instance_id,
            call.actor,
            lambda instance: refuse(instance, known),
            project_id=call.visible_project,
        )
    )


def _check_known(wanted: str | None, known: Mapping[str, Host]) -> None:
    if wanted is not None and wanted not in known:
        raise Invalid(f"Compute host {wanted} could not be found.")
