"""Flavors: what is shown in which version, who may, and what is refused with which words."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stateward.store import flavors
from stateward.store.flavors import FlavorQuery, NewFlavor
from tests.api.resources.conftest import Answer, Api

SMALL: dict[str, Any] = {"name": "small", "id": "s", "ram": 256, "vcpus": 1, "disk": 1}


async def make(api: Api, **changes: Any) -> Answer:
    return await api("POST", "/flavors", {"flavor": SMALL | changes}, by="admin")


async def test_a_new_flavor_is_shown_whole_by_version(api: Api) -> None:
    made = await make(api)
    links = [
        {"rel": "self", "href": "http://cloud/compute/v2.1/flavors/s"},
        {"rel": "bookmark", "href": "http://cloud/compute/flavors/s"},
    ]
    shown: dict[str, Any] = {
        "id": "s",
        "name": "small",
        "ram": 256,
        "disk": 1,
        "swap": "",
        "OS-FLV-EXT-DATA:ephemeral": 0,
        "OS-FLV-DISABLED:disabled": False,
        "vcpus": 1,
        "os-flavor-access:is_public": True,
        "rxtx_factor": 1.0,
        "links": links,
    }
    assert (made.status, made.body) == (200, {"flavor": shown})
    described = shown | {"description": None}
    whole: dict[str, Any] = described | {"extra_specs": {}}
    for version, expected in (
        ("54", shown),
        ("55", described),
        ("60", described),
        ("61", whole),
        ("75", whole | {"swap": 0}),
        ("101", whole | {"swap": 0}),
        ("latest", {name: value for name, value in whole.items() if name != "rxtx_factor"} | {"swap": 0}),
    ):
        answer = await api("GET", "/flavors/s", v=version)
        assert (answer.status, answer.body) == (200, {"flavor": expected})
        listed = await api("GET", "/flavors/detail", v=version)
        assert (listed.status, listed.body) == (200, {"flavors": [expected]})
    brief = await api("GET", "/flavors", by="reader")
    assert brief.body == {"flavors": [{"id": "s", "name": "small", "links": links}]}
    assert (await api("GET", "/flavors", v="55")).body["flavors"][0]["description"] is None


async def test_numbers_may_come_as_text_and_an_id_as_a_number(api: Api) -> None:
    made = await make(
        api,
        id=7,
        ram="512",
        vcpus="2",
        disk="0",
        swap="64",
        rxtx_factor="2.5",
        **{"OS-FLV-EXT-DATA:ephemeral": "3", "os-flavor-access:is_public": "True"},
    )
    shown = made.body["flavor"]
    assert made.status == 200
    assert (shown["id"], shown["ram"], shown["vcpus"], shown["disk"]) == ("7", 512, 2, 0)
    assert (shown["swap"], shown["rxtx_factor"], shown["OS-FLV-EXT-DATA:ephemeral"]) == (64, 2.5, 3)
    assert shown["os-flavor-access:is_public"] is True


async def test_an_id_is_made_up_when_none_is_given(api: Api) -> None:
    made = await make(api, id=None)
    assert made.status == 200
    assert len(made.body["flavor"]["id"]) == 36


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": " x"},
        {"name": "x" * 256},
        {"name": "x\n"},
        {"name": 5},
        {"id": "a/b"},
        {"id": "a\u0000b"},
        {"id": True},
        {"ram": 0},
        {"ram": -1},
        {"ram": 0x80000000},
        {"ram": "0"},
        {"ram": "9999999999"},
        {"ram": "1" * 5000},
        {"ram": 1.5},
        {"ram": None},
        {"vcpus": 0},
        {"disk": -1},
        {"swap": "x"},
        {"rxtx_factor": 0},
        {"rxtx_factor": "0"},
        {"rxtx_factor": 1e39},
        {"rxtx_factor": "nan"},
        {"os-flavor-access:is_public": "perhaps"},
        {"description": "only from 2.55 on"},
        {"unknown": 1},
    ],
)
async def test_a_bad_flavor_is_refused(api: Api, changes: dict[str, Any]) -> None:
    refused = await make(api, **changes)
    assert refused.status == 400
    assert refused.message
    assert (await api("GET", "/flavors")).body == {"flavors": []}


@pytest.mark.parametrize("missing", ["name", "ram", "vcpus", "disk"])
async def test_what_must_be_there_must_be_there(api: Api, missing: str) -> None:
    body = {name: value for name, value in SMALL.items() if name != missing}
    refused = await api("POST", "/flavors", {"flavor": body}, by="admin")
    assert refused.status == 400
    assert missing in refused.message


async def test_an_id_and_a_name_are_unique(api: Api) -> None:
    await make(api)
    same_name = await make(api, id="other")
    assert (same_name.status, same_name.message) == (409, "Flavor with name small already exists.")
    same_id = await make(api, name="other")
    assert (same_id.status, same_id.message) == (409, "Flavor with ID s already exists.")


async def test_of_many_at_once_one_is_made(api: Api) -> None:
    answers = await asyncio.gather(*(make(api) for _ in range(5)))
    assert sorted(answer.status for answer in answers) == [200, 409, 409, 409, 409]


async def test_a_description_can_be_changed_from_2_55_on(api: Api) -> None:
    body = {"flavor": SMALL | {"description": "for tests"}}
    made = await api("POST", "/flavors", body, by="admin", v="55")
    assert made.body["flavor"]["description"] == "for tests"
    change = {"flavor": {"description": None}}
    assert (await api("PUT", "/flavors/s", change, by="admin", v="54")).status == 404
    changed = await api("PUT", "/flavors/s", change, by="admin", v="55")
    assert (changed.status, changed.body["flavor"]["description"]) == (200, None)
    missing = await api("PUT", "/flavors/none", change, by="admin", v="55")
    assert (missing.status, missing.message) == (404, "Flavor none could not be found.")
    assert (await api("PUT", "/flavors/s", {"flavor": {}}, by="admin", v="55")).status == 400
    assert (await api("PUT", "/flavors/s", {"flavor": {"ram": 1}}, by="admin", v="55")).status == 400


async def test_a_deleted_flavor_is_gone(api: Api) -> None:
    await make(api)
    gone = await api("DELETE", "/flavors/s", by="admin")
    assert (gone.status, gone.body) == (202, None)
    again = await api("DELETE", "/flavors/s", by="admin")
    assert (again.status, again.message) == (404, "Flavor s could not be found.")
    assert (await api("GET", "/flavors/s")).status == 404
    assert (await make(api)).status == 200


@pytest.mark.parametrize(
    ("method", "path", "rule"),
    [
        ("POST", "/flavors", "os-flavor-manage:create"),
        ("PUT", "/flavors/s", "os-flavor-manage:update"),
        ("DELETE", "/flavors/s", "os-flavor-manage:delete"),
        ("POST", "/flavors/s/os-extra_specs", "os-flavor-extra-specs:create"),
        ("PUT", "/flavors/s/os-extra_specs/a", "os-flavor-extra-specs:update"),
        ("DELETE", "/flavors/s/os-extra_specs/a", "os-flavor-extra-specs:delete"),
        ("GET", "/flavors/s/os-flavor-access", "os-flavor-access"),
    ],
)
async def test_only_admins_change_flavors(api: Api, method: str, path: str, rule: str) -> None:
    refused = await api(method, path, {}, v="latest")
    assert refused.status == 403
    assert refused.message == f"Policy doesn't allow os_compute_api:{rule} to be performed."


async def test_without_a_token_nothing_is_shown(api: Api) -> None:
    assert (await api("GET", "/flavors", by=None)).status == 401
    assert (await api("GET", "/flavors", by="nobody")).status == 401


async def names(api: Api, query: str = "", **how: Any) -> list[str]:
    answer = await api("GET", f"/flavors{query}", **how)
    assert answer.status == 200, answer.body
    return [flavor["name"] for flavor in answer.body["flavors"]]


async def test_lists_are_narrowed_sorted_and_paged(api: Api) -> None:
    for number, (ram, disk) in enumerate(((512, 0), (256, 2), (512, 1), (128, 9), (64, 3), (64, 4), (64, 5))):
        made = await make(api, id=f"f{number}", name=f"n{9 - number}", ram=ram, disk=disk)
        assert made.status == 200
    assert await names(api) == ["n9", "n8", "n7", "n6", "n5"]
    assert await names(api, "?minRam=256") == ["n9", "n8", "n7"]
    assert await names(api, "?minRam=256&minDisk=1") == ["n8", "n7"]
    assert await names(api, "?sort_key=name&limit=2") == ["n3", "n4"]
    assert await names(api, "?sort_key=memory_mb&sort_dir=desc&limit=3") == ["n9", "n7", "n8"]
    assert await names(api, "?sort_key=description&marker=f4") == ["n4", "n3"]
    seen: list[str] = []
    path = "/flavors?sort_key=memory_mb&limit=2"
    while path:
        answer = await api("GET", path)
        seen += [flavor["name"] for flavor in answer.body["flavors"]]
        path = answer.body.get("flavors_links", [{"href": ""}])[0]["href"].removeprefix(
            "http://cloud/compute/v2.1"
        )
    assert seen == ["n5", "n4", "n3", "n6", "n8", "n9", "n7"]
    detailed = await api("GET", "/flavors/detail?limit=1")
    assert detailed.body["flavors_links"] == [
        {"rel": "next", "href": "http://cloud/compute/v2.1/flavors/detail?limit=1&marker=f0"}
    ]


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("minRam=x", "Invalid minRam filter [x]"),
        ("minDisk=x", "Invalid minDisk filter [x]"),
        ("minDisk=" + "9" * 5000, "Invalid minDisk filter [" + "9" * 5000 + "]"),
        ("marker=none", "marker [none] not found"),
        (
            "limit=-1",
            "Invalid input for query parameters limit. Value: -1. '-1' does not match '^[0-9]*$'",
        ),
        (
            "sort_dir=up",
            "Invalid input for query parameters sort_dir. Value: up. 'up' is not one of ['asc', 'desc']",
        ),
    ],
)
async def test_a_bad_filter_is_refused(api: Api, query: str, message: str) -> None:
    refused = await api("GET", f"/flavors?{query}")
    assert (refused.status, refused.message) == (400, message)


async def test_unknown_filters_are_refused_from_2_75_on(api: Api) -> None:
    assert (await api("GET", "/flavors?colour=red", v="74")).status == 200
    assert (await api("GET", "/flavors?sort_key=colour")).status == 400
    refused = await api("GET", "/flavors?colour=red", v="75")
    assert refused.message == "Additional properties are not allowed ('colour' was unexpected)"


async def test_a_private_flavor_is_seen_by_those_who_were_given_access(api: Api) -> None:
    await make(api)
    await make(api, id="x", name="secret", **{"os-flavor-access:is_public": False})
    assert await names(api) == ["small"]
    assert (await api("GET", "/flavors/x")).status == 404
    assert (await api("GET", "/flavors/x/os-extra_specs")).status == 404
    assert (await api("GET", "/flavors/x", by="admin")).status == 200
    assert await names(api, by="admin") == ["small"]
    assert await names(api, "?is_public=None", by="admin") == ["small", "secret"]
    assert await names(api, "?is_public=false", by="admin") == ["secret"]
    assert await names(api, "?is_public=None") == ["small"]
    refused = await api("GET", "/flavors?is_public=maybe", by="admin")
    assert (refused.status, refused.message) == (400, "Invalid is_public filter [maybe]")

    given = await api("POST", "/flavors/x/action", {"addTenantAccess": {"tenant": "p"}}, by="admin")
    access = {"flavor_access": [{"flavor_id": "x", "tenant_id": "p"}]}
    assert (given.status, given.body) == (200, access)
    assert (await api("GET", "/flavors/x/os-flavor-access", by="admin")).body == access
    assert await names(api) == ["small", "secret"]
    assert await names(api, by="stranger") == ["small"]
    assert (await api("GET", "/flavors/x")).status == 200

    again = await api("POST", "/flavors/x/action", {"addTenantAccess": {"tenant": "p"}}, by="admin")
    assert (again.status, again.message) == (
        409,
        "Flavor access already exists for flavor x and project p combination.",
    )
    taken = await api("POST", "/flavors/x/action", {"removeTenantAccess": {"tenant": "p"}}, by="admin")
    assert (taken.status, taken.body) == (200, {"flavor_access": []})
    missing = await api("POST", "/flavors/x/action", {"removeTenantAccess": {"tenant": "p"}}, by="admin")
    assert (missing.status, missing.message) == (404, "Flavor access not found for x / p combination.")
    assert await names(api) == ["small"]


async def test_access_to_a_public_flavor(api: Api) -> None:
    await make(api)
    listed = await api("GET", "/flavors/s/os-flavor-access", by="admin")
    assert (listed.status, listed.message) == (404, "Access list not available for public flavors.")
    give = {"addTenantAccess": {"tenant": "p"}}
    assert (await api("POST", "/flavors/s/action", give, by="admin", v="6")).status == 200
    refused = await api("POST", "/flavors/s/action", give, by="admin", v="7")
    assert (refused.status, refused.message) == (409, "Can not add access to a public flavor.")
    assert (await api("POST", "/flavors/none/action", give, by="admin")).status == 404
    member = await api("POST", "/flavors/s/action", give)
    assert member.message == (
        "Policy doesn't allow os_compute_api:os-flavor-access:add_tenant_access to be performed."
    )


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"addTenantAccess": {}},
        {"addTenantAccess": {"tenant": ""}},
        {"addTenantAccess": {"tenant": "p", "more": 1}},
        {"addTenantAccess": None},
        {"addTenantAccess": {"tenant": "p"}, "removeTenantAccess": {"tenant": "p"}},
        {"paint": {}},
    ],
)
async def test_a_bad_action_is_refused(api: Api, body: object) -> None:
    await make(api)
    assert (await api("POST", "/flavors/s/action", body, by="admin")).status == 400


async def test_extra_specs_are_set_shown_and_removed(api: Api) -> None:
    await make(api)
    path = "/flavors/s/os-extra_specs"
    set_two = await api("POST", path, {"extra_specs": {"hw:a": "1", "b": 2}}, by="admin")
    assert (set_two.status, set_two.body) == (200, {"extra_specs": {"hw:a": "1", "b": 2}})
    assert (await api("GET", path)).body == {"extra_specs": {"hw:a": "1", "b": "2"}}
    assert (await api("GET", f"{path}/hw:a")).body == {"hw:a": "1"}
    changed = await api("PUT", f"{path}/b", {"b": "3"}, by="admin")
    assert (changed.status, changed.body) == (200, {"b": "3"})
    removed = await api("DELETE", f"{path}/hw:a", by="admin")
    assert (removed.status, removed.body) == (200, None)
    for method, by in (("DELETE", "admin"), ("GET", "member")):
        missing = await api(method, f"{path}/hw:a", by=by)
        assert (missing.status, missing.message) == (404, "Flavor s has no extra specs with key hw:a.")
    assert (await api("GET", "/flavors/s", v="61")).body["flavor"]["extra_specs"] == {"b": "3"}
    elsewhere = await api("POST", "/flavors/none/os-extra_specs", {"extra_specs": {"a": "1"}}, by="admin")
    assert (elsewhere.status, elsewhere.message) == (404, "Flavor none could not be found.")


async def test_extra_specs_set_at_once_are_all_kept(api: Api) -> None:
    await make(api)
    path = "/flavors/s/os-extra_specs"
    wanted = {f"k{number}": "v" for number in range(8)}
    await asyncio.gather(*(api("POST", path, {"extra_specs": {key: "v"}}, by="admin") for key in wanted))
    assert (await api("GET", path)).body == {"extra_specs": wanted}


@pytest.mark.parametrize(
    "specs", [{"a/b": "1"}, {"": "1"}, {"a": None}, {"a": "x" * 256}, {"a": {}}, {"a": True}, "x", None]
)
async def test_bad_extra_specs_are_refused(api: Api, specs: object) -> None:
    await make(api)
    refused = await api("POST", "/flavors/s/os-extra_specs", {"extra_specs": specs}, by="admin")
    assert refused.status == 400


@pytest.mark.parametrize("body", [{}, {"a": "1", "b": "2"}, {"b": "1"}])
async def test_one_extra_spec_is_set_by_its_name(api: Api, body: object) -> None:
    await make(api)
    assert (await api("PUT", "/flavors/s/os-extra_specs/a", body, by="admin")).status == 400


async def test_a_new_installation_has_three_flavors_and_keeps_what_an_admin_makes_of_them(api: Api) -> None:
    await api.database.write(flavors.register_defaults)
    await api.database.write(lambda connection: flavors.delete(connection, "small"))
    await api.database.write(flavors.register_defaults)
    found = await api.database.read(lambda connection: flavors.page(connection, FlavorQuery()))
    assert [(flavor.id, flavor.vcpus, flavor.ram, flavor.disk) for flavor in found] == [
        ("medium", 2, 512, 2),
        ("tiny", 1, 128, 0),
    ]


async def test_registering_leaves_what_is_there(api: Api) -> None:
    first, second = (NewFlavor(id="a", name="a", vcpus=cpus, ram=1, disk=0) for cpus in (1, 2))
    await api.database.write(lambda connection: flavors.register(connection, first))
    await api.database.write(lambda connection: flavors.register(connection, second))
    facts = await api.database.read(lambda connection: flavors.get(connection, "a"))
    assert facts is not None
    assert (facts.vcpus, facts.ephemeral, facts.swap, facts.extra_specs) == (1, 0, 0, {})
    assert await api.database.read(lambda connection: flavors.get(connection, "b")) is None


async def test_the_old_address_serves_them_too(api: Api) -> None:
    await make(api)
    root = "/compute/v2/p"
    shown = await api("GET", "/flavors/s", root=root, v="99")
    assert shown.status == 200
    assert "description" not in shown.body["flavor"]
    assert shown.body["flavor"]["links"][0]["href"] == "http://cloud/compute/v2/p/flavors/s"
    page = await api("GET", "/flavors?limit=1", root=root)
    assert page.body["flavors_links"][0]["href"] == "http://cloud/compute/v2/p/flavors?limit=1&marker=s"
