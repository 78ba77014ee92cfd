"""Moving instances while they run, which is refused with the reason, and off a host that was fenced."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final, NoReturn

from starlette.responses import Response

from stateward.api.compute.call import Call, empty
from stateward.api.compute.servers_seen import find
from stateward.api.faults import ApiFault
from stateward.domain import bodies
from stateward.domain.actions import BY_KEY, Action, Policy, Role, key
from stateward.domain.errors import Invalid
from stateward.domain.evacuation import EVACUATES, Wish, said, wish_of
from stateward.domain.hosts import Condition
from stateward.domain.records import Instance
from stateward.operations.immediate import Done
from stateward.operations.preparing import NOTHING, Wanted
from stateward.store import hosts
from stateward.store.hosts import Host

_RULE: Final = "os_compute_api:os-migrate-server:"
#: The ends are ours; Nova's would say that it looked for one.
_NOT_WHILE_IT_RUNS: Final = "No valid host was found. A guest cannot be moved while it runs; migrate it cold."
#: From this microversion on an evacuated server is left off.
_LEFT_OFF: Final = 95
_EVACUATED: Final = frozenset(EVACUATES[True])
_ANEW: Final = {
    "evacuate": "evacuate_anew",
    "evacuate_off": "evacuate_anew_off",
    "evacuate_stopped": "evacuate_anew_stopped",
}
_NO: Final = frozenset({"false", "0", "no", "off", "f", "n"})

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


async def evacuate(call: Call, options: bodies.Evacuate14) -> Wanted:
    """Return what ``evacuate`` wants besides the action.

    Raises:
        ApiFault, Invalid: it cannot be, in Nova 34's words. That the host must be fenced, the admission's write says.
    """
    if isinstance(options, bodies.Evacuate29) and options.force is True and options.host is None:
        raise Invalid("Can't force to a non-provided destination")
    instance = await find(call, call.path["id"])
    if instance.vm_state not in _EVACUATED:
        # Refused by the rows' conditions.
        return NOTHING
    known = {host.name: host for host in await call.services.database.read(hosts.every)}
    if options.host is not None and options.host not in known:
        raise ApiFault(404, f"Compute host {options.host} not found.")
    if options.host is not None and options.host == instance.host:
        raise Invalid("The target host can't be the same one.")
    home = known.get(instance.host)
    alive = home is not None and home.condition not in {Condition.DEAD, Condition.FENCED}
    if home is not None and alive and home.up(call.services.clock.now(), call.services.host_patience):
        raise Invalid(f"Compute service of {instance.host} is still in use.")
    return Wanted(host=options.host)


def evacuating(call: Call, rows: tuple[Action, ...]) -> tuple[Action, ...]:
    """Return the rows by which an instance is evacuated: from 2.95 on it is left off, as in Nova."""
    if call.minor < _LEFT_OFF:
        return rows
    return (BY_KEY["evacuate_off"], BY_KEY["evacuate_stopped"])


async def made_anew(call: Call, rows: tuple[Action, ...], options: object) -> tuple[Action, ...]:
    """Return the rows that make a disk anew, of those that refused to lose it; none where nobody said that it may be.

    Up to 2.13 the request says so (``onSharedStorage`` is false); or the instance, its image or its flavor does.
    """
    instance = await find(call, call.path["id"])
    layers = (
        said("metadata", instance.metadata),
        said("image", instance.image.properties),
        said("flavor", instance.flavor.extra_specs),
    )
    may = wish_of(layers)[0] is Wish.REBUILD
    if isinstance(options, bodies.Evacuate1):
        may = may or str(options.onSharedStorage).lower() in _NO
    return tuple(BY_KEY[_ANEW[key(row)]] for row in rows) if may else ()


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
