"""``/v1/hosts``: what is shown, and what the operator says of hosts."""

from __future__ import annotations

import pytest

from stateward.api.http import iso_time
from stateward.domain.hosts import Event, Frozen
from stateward.domain.records import Observation
from stateward.domain.states import Cause, Observed, VmState
from stateward.operations import sweeps
from stateward.store import hosts
from tests.api.native.bench import Api
from tests.rows import NOW, actor


async def test_what_is_shown(api: Api) -> None:
    """Everything of a host, with the instances that are there; a host that was never heard of has nothing to show."""
    await api.desk.add_host("b")
    await api.desk.add(host="b")
    await api.desk.add(host="b", vm_state=VmState.STOPPED.value)
    await api.desk.add(host="b", vm_state=VmState.DELETED.value)
    await api.desk.database.write(lambda connection: hosts.register(connection, "a", "north"))
    answer = await api("GET", "/v1/hosts", by="admin")
    assert answer.status == 200
    silent, host = answer.body["hosts"]
    assert (silent["name"], silent["heard"], silent["seen_at"]) == ("a", False, None)
    assert (silent["hypervisor"], silent["capacity"], silent["instances"]) == (None, None, {})
    assert {name: host[name] for name in ("name", "zone", "condition", "heard", "enabled", "frozen")} == {
        "name": "b",
        "zone": "nova",
        "condition": "up",
        "heard": True,
        "enabled": True,
        "frozen": None,
    }
    assert host["instances"] == {"active": 1, "stopped": 1}
    assert host["capacity"] == {"vcpus": 16, "memory": 512, "disk": 10}
    assert host["claimed"] == {"vcpus": 0, "memory": 0, "disk": 0}
    assert host["hypervisor"]["reachable"] is True
    assert (await api("GET", "/v1/hosts/b", by="admin")).body == host


async def test_a_frozen_suspect(api: Api) -> None:
    """It is told why nothing of it is judged, and since when."""
    await api.desk.add_host("h")
    await api.desk.database.write(lambda c: hosts.become(c, "h", Event.SILENT, "For 20 s.", NOW))
    await api.desk.database.write(lambda c: hosts.freeze(c, "h", Frozen.SILENT, "For 20 s.", NOW))
    shown = (await api("GET", "/v1/hosts/h", by="admin")).body
    at = "2023-11-14T22:13:20.000000Z"
    assert shown["frozen"] == {"why": "silent", "since": shown["condition_since"], "says": "For 20 s."}
    assert shown["condition_since"].startswith(at[:19])
    assert (shown["condition"], shown["condition_says"]) == ("suspect", "For 20 s.")


async def test_enabling_and_disabling(api: Api) -> None:
    """The same columns as Nova's os-services; both are in the audit trail, and may be said again."""
    await api.desk.add_host("h")
    for _ in range(2):
        off = await api("POST", "/v1/hosts/h/disable", {"reason": "New memory."}, by="admin")
        assert (off.status, off.body["enabled"], off.body["disabled_reason"]) == (200, False, "New memory.")
    on = await api("POST", "/v1/hosts/h/enable", by="admin")
    assert (on.status, on.body["enabled"], on.body["disabled_reason"]) == (200, True, None)
    told = [(action, detail["host"]) for event, action, detail in await api.desk.audit() if event == "host"]
    assert told == [("disable", "h"), ("disable", "h"), ("enable", "h")]


async def test_once_with_a_key(api: Api) -> None:
    """A request that is sent again with its key is not done again."""
    await api.desk.add_host("h")
    for _ in range(2):
        off = await api("POST", "/v1/hosts/h/disable", {"reason": "A"}, by="admin", idempotency_key="k")
        assert off.status == 200
    assert len([1 for event, *_ in await api.desk.audit() if event == "host"]) == 1


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("GET", "/h"), ("POST", "/h/enable"), ("POST", "/h/disable")],
)
async def test_who_may(virtual_api: Api, method: str, path: str) -> None:
    """Administrators, and nobody else; a host that is not there is not found."""
    refused = await virtual_api(method, f"/v1/hosts{path}")
    assert refused.status == 403
    if path:
        missing = await virtual_api(method, f"/v1/hosts{path}", by="admin")
        assert (missing.status, missing.detail) == (404, "Host h could not be found.")


async def test_bad_bodies(virtual_api: Api) -> None:
    """A sentence that names the member."""
    await virtual_api.desk.add_host("h")
    bad = await virtual_api("POST", "/v1/hosts/h/disable", {"reason": ""}, by="admin")
    assert bad.status == 400
    assert bad.detail == "The request's body cannot be used: `reason` must not be empty."
    for until in ("2h", 5):
        body = {"reason": "Disks.", "until": until}
        bad = await virtual_api("POST", "/v1/hosts/h/maintenance", body, by="admin")
        assert bad.status == 400
        assert "`until` must be a time of ISO 8601, as 2030-01-31T18:00:00Z" in bad.detail
    assert (await virtual_api("POST", "/v1/hosts/h/enable", {"x": 1}, by="admin")).status == 400


@pytest.mark.parametrize(
    ("until", "says"),
    [
        (
            "9999-12-31T23:59:59-14:00",
            "The end of a maintenance, until, is no time of the years 1 to 9999 (UTC).",
        ),
        (
            "0001-01-01T00:00:00+14:00",
            "The end of a maintenance, until, is no time of the years 1 to 9999 (UTC).",
        ),
        (
            "9999-12-31T23:59:59.999999Z",
            "The end of a maintenance, until, is no time of the years 1 to 9999 (UTC).",
        ),
        (iso_time(NOW + 31_536_001), "A maintenance lasts a year at most: say an earlier time."),
        (iso_time(NOW), "The end of the maintenance has passed already."),
    ],
)
async def test_a_maintenance_until_no_time(virtual_api: Api, until: str, says: str) -> None:
    """As long as with seconds, and no longer."""
    await virtual_api.desk.add_host("h")
    body = {"reason": "Disks.", "until": until}
    answer = await virtual_api("POST", "/v1/hosts/h/maintenance", body, by="admin")
    assert (answer.status, answer.detail) == (400, says)
    body["until"] = iso_time(NOW + 31_536_000)
    assert (await virtual_api("POST", "/v1/hosts/h/maintenance", body, by="admin")).status == 200


async def test_confirming_a_sweep(api: Api) -> None:
    """What the host said is taken as it was kept, once; without a sweep there is nothing to confirm (B5)."""
    await api.desk.add_host("h")
    ids = [await api.desk.add(host="h") for _ in range(6)]
    seen = [
        Observation(instance_id=each, observed=Observed.SHUTOFF, cause=Cause.GUEST, seq=7, at=NOW)
        for each in ids
    ]
    nothing = await api("POST", "/v1/hosts/h/confirm", by="admin")
    assert nothing.status == 409
    assert nothing.body["detail"] == "Nothing that host h says of its instances waits to be confirmed."
    await api.desk.database.write(
        lambda connection: sweeps.hold(connection, "h", seen, total=6, actor=actor(), now=NOW)
    )
    assert (await api("GET", "/v1/hosts/h", by="admin")).body["frozen"]["says"] == (
        "6 of 6 instances would change at once (6 shutoff)."
    )
    assert (await api("POST", "/v1/hosts/h/confirm", by="member")).status == 403
    confirmed = await api("POST", "/v1/hosts/h/confirm", {"reason": "The rack lost power."}, by="admin")
    assert (confirmed.status, confirmed.body["frozen"]) == (200, None)
    assert {(await api.desk.row(each)).observed for each in ids} == {Observed.SHUTOFF}
    assert (await api("POST", "/v1/hosts/h/confirm", by="admin")).status == 409
    assert (await api("POST", "/v1/hosts/nowhere/confirm", by="admin")).status == 404
