"""Limits and quotas: what a project uses, and that nothing limits it."""

from __future__ import annotations

import sqlalchemy as sa

from stateward.domain.placement import GroupPolicy
from stateward.domain.records import FlavorFacts
from stateward.domain.states import VmState
from stateward.store import server_groups
from tests import rows
from tests.api.resources.conftest import Api

LARGE = FlavorFacts(id="2", name="large", vcpus=4, ram=1024, disk=1)


def some(connection: sa.Connection) -> None:
    rows.insert(connection)
    rows.insert(connection)
    rows.insert(connection, flavor=LARGE, vm_state=VmState.STOPPED.value)
    rows.insert(connection, flavor=LARGE, vm_state=VmState.DELETED.value)
    rows.insert(connection, flavor=LARGE, project_id="q")
    for number, project in enumerate(("p", "q", "q")):
        server_groups.create(
            connection,
            server_groups.NewServerGroup(
                id=str(number), project_id=project, user_id="u", name="g", policy=GroupPolicy.AFFINITY
            ),
        )


USED = {"totalInstancesUsed": 3, "totalCoresUsed": 6, "totalRAMUsed": 1280}


async def test_limits_show_what_living_instances_use(api: Api) -> None:
    await api.database.write(some)
    latest = await api("GET", "/limits", by="reader", v="latest")
    newest = {
        **USED,
        "maxTotalInstances": -1,
        "maxTotalCores": -1,
        "maxTotalRAMSize": -1,
        "maxTotalKeypairs": -1,
        "maxServerMeta": -1,
        "maxServerGroups": -1,
        "maxServerGroupMembers": -1,
        "totalServerGroupsUsed": 1,
    }
    assert (latest.status, latest.body) == (200, {"limits": {"rate": [], "absolute": newest}})
    files = newest | {"maxPersonality": 0, "maxPersonalitySize": 0}
    assert (await api("GET", "/limits", v="56")).body["limits"]["absolute"] == files
    images = files | {"maxImageMeta": -1}
    assert (await api("GET", "/limits", v="38")).body["limits"]["absolute"] == images
    networks = {"maxTotalFloatingIps", "maxSecurityGroups", "maxSecurityGroupRules"}
    networks |= {"totalFloatingIpsUsed", "totalSecurityGroupsUsed"}
    assert set((await api("GET", "/limits", v="35")).body["limits"]["absolute"]) == set(images) | networks


async def test_an_admin_sees_another_projects_limits(api: Api) -> None:
    await api.database.write(some)
    own = await api("GET", "/limits", by="admin")
    assert own.body["limits"]["absolute"]["totalCoresUsed"] == 0
    other = await api("GET", "/limits?tenant_id=q", by="admin")
    assert other.body["limits"]["absolute"]["totalCoresUsed"] == 4
    assert (await api("GET", "/limits?tenant_id=p")).body["limits"]["absolute"]["totalCoresUsed"] == 6
    refused = await api("GET", "/limits?tenant_id=q")
    assert (refused.status, refused.message) == (
        403,
        "Policy doesn't allow os_compute_api:limits:other_project to be performed.",
    )


async def test_there_are_no_quotas(api: Api) -> None:
    await api.database.write(some)
    shown = await api("GET", "/os-quota-sets/p", by="reader", v="latest")
    quotas = {
        "instances": -1,
        "cores": -1,
        "ram": -1,
        "key_pairs": -1,
        "metadata_items": -1,
        "server_groups": -1,
        "server_group_members": -1,
    }
    assert (shown.status, shown.body) == (200, {"quota_set": {"id": "p", **quotas}})
    assert (await api("GET", "/os-quota-sets/p/defaults", v="latest")).body == shown.body
    assert (await api("GET", "/os-quota-sets/q/defaults", v="latest")).status == 200
    detail = await api("GET", "/os-quota-sets/p/detail", v="latest")
    used = {"instances": 3, "cores": 6, "ram": 1280, "server_groups": 1}
    assert detail.body["quota_set"] == {
        "id": "p",
        **{
            name: {"limit": limit, "in_use": used.get(name, 0), "reserved": 0}
            for name, limit in quotas.items()
        },
    }
    older = await api("GET", "/os-quota-sets/p", v="56")
    assert "injected_files" in older.body["quota_set"]
    assert "fixed_ips" not in older.body["quota_set"]
    assert "fixed_ips" in (await api("GET", "/os-quota-sets/p", v="35")).body["quota_set"]


async def test_another_projects_quotas_are_for_admins(api: Api) -> None:
    for path, rule in (("", "show"), ("/detail", "detail")):
        refused = await api("GET", f"/os-quota-sets/q{path}")
        assert refused.message == (
            f"Policy doesn't allow os_compute_api:os-quota-sets:{rule} to be performed."
        )
        assert (await api("GET", f"/os-quota-sets/q{path}", by="admin")).status == 200
