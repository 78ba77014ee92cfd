"""The version documents, as Nova 34 gives them, to anybody."""

from __future__ import annotations

from typing import Any

import pytest

from stateward.api.compute.call import MAX_MINOR
from tests.api.resources.conftest import Api


def document(*, legacy: bool) -> dict[str, Any]:
    described = {"rel": "describedby", "type": "text/html", "href": "http://docs.openstack.org/"}
    if legacy:
        return {
            "id": "v2.0",
            "status": "SUPPORTED",
            "version": "",
            "min_version": "",
            "updated": "2011-01-21T11:33:21Z",
            "links": [{"rel": "self", "href": "http://cloud/compute/v2/"}, described],
            "media-types": [
                {"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2"}
            ],
        }
    return {
        "id": "v2.1",
        "status": "CURRENT",
        "version": f"2.{MAX_MINOR}",
        "min_version": "2.1",
        "updated": "2013-07-23T11:33:21Z",
        "links": [{"rel": "self", "href": "http://cloud/compute/v2.1/"}, described],
        "media-types": [
            {"base": "application/json", "type": "application/vnd.openstack.compute+json;version=2.1"}
        ],
    }


@pytest.mark.parametrize("path", ["/compute/v2.1", "/compute/v2.1/"])
@pytest.mark.parametrize(("version", "spoken"), [(None, "2.1"), ("latest", f"2.{MAX_MINOR}"), ("9", "2.9")])
async def test_the_current_version(api: Api, path: str, version: str | None, spoken: str) -> None:
    answer = await api("GET", path, by=None, v=version, root="")
    assert (answer.status, answer.body) == (200, {"version": document(legacy=False)})
    assert answer.headers["openstack-api-version"] == f"compute {spoken}"
    assert answer.headers["x-openstack-nova-api-version"] == spoken
    assert answer.headers["vary"] == "OpenStack-API-Version, X-OpenStack-Nova-API-Version"
    assert answer.headers["x-compute-request-id"] == answer.headers["x-openstack-request-id"]


@pytest.mark.parametrize("path", ["/compute/v2", "/compute/v2/", "/compute/v2/p", "/compute/v2/p/"])
async def test_the_old_version_has_no_microversions(api: Api, path: str) -> None:
    answer = await api("GET", path, by=None, v="9.99", root="")
    assert (answer.status, answer.body) == (200, {"version": document(legacy=True)})
    assert "openstack-api-version" not in answer.headers


async def test_all_versions(api: Api) -> None:
    answer = await api("GET", "/compute/", by=None, root="")
    assert answer.status == 200
    short = [
        {name: value for name, value in document(legacy=legacy).items() if name != "media-types"}
        for legacy in (True, False)
    ]
    for each in short:
        each["links"] = each["links"][:1]
    assert answer.body == {"versions": short}


@pytest.mark.parametrize(("version", "status"), [("9.99", 406), ("abc", 400)])
async def test_a_version_that_is_not_there(api: Api, version: str, status: int) -> None:
    answer = await api("GET", "/compute/v2.1/", by=None, v=version, root="")
    assert answer.status == status
    assert answer.message
