"""Extensions: a list for older clients, where ``/v2`` says that it shows locks."""

from __future__ import annotations

from typing import Any

from tests.api.resources.conftest import Api

LOCKS: dict[str, Any] = {
    "alias": "os-server-locked-status",
    "name": "ServerLockStatus",
    "description": "Show whether a server is locked, and by whom.",
    "namespace": "http://docs.openstack.org/compute/ext/server_locked_status/api/v2",
    "updated": "2014-12-03T00:00:00Z",
    "links": [],
}


async def test_the_list_is_sorted_and_each_can_be_shown(api: Api) -> None:
    for root in ("/compute/v2.1", "/compute/v2/p"):
        listed = (await api("GET", "/extensions", by="reader", root=root)).body["extensions"]
        aliases = [extension["alias"] for extension in listed]
        assert aliases == sorted(aliases)
        assert "os-keypairs" in aliases
        assert (LOCKS["alias"] in aliases) is (root == "/compute/v2/p")
        for extension in listed:
            shown = await api("GET", f"/extensions/{extension['alias']}", root=root)
            assert (shown.status, shown.body) == (200, {"extension": extension})


async def test_the_old_version_shows_locks(api: Api) -> None:
    shown = await api("GET", "/extensions/os-server-locked-status", root="/compute/v2/p")
    assert shown.body == {"extension": LOCKS}


async def test_an_extension_that_is_not_there(api: Api) -> None:
    missing = await api("GET", "/extensions/os-server-locked-status")
    assert (missing.status, missing.message) == (404, "The resource could not be found.")
    assert (await api("GET", "/extensions", by=None)).status == 401
