"""Whatever is in an address or a body, the answer is never a fault of our own."""

from __future__ import annotations

import pytest

from tests.api.resources.conftest import Api

ODD = ("%00", "a%00b", "%ff", "%F0%9F%92%A9", "'%20OR%201=1", "9" * 400, "x" * 4000)


@pytest.mark.parametrize("odd", ODD)
async def test_an_odd_address_is_not_found_or_refused(api: Api, odd: str) -> None:
    for method, path in (
        ("GET", "/flavors/{}"),
        ("DELETE", "/flavors/{}"),
        ("GET", "/flavors/{}/os-extra_specs"),
        ("GET", "/flavors/{}/os-flavor-access"),
        ("GET", "/os-keypairs/{}"),
        ("DELETE", "/os-keypairs/{}"),
        ("GET", "/os-hypervisors/{}"),
        ("GET", "/extensions/{}"),
        ("GET", "/flavors?marker={}"),
        ("GET", "/os-keypairs?marker={}"),
        ("GET", "/os-hypervisors?marker={}"),
    ):
        answer = await api(method, path.format(odd), by="admin", v="latest")
        assert answer.status in {400, 404}, (path, answer.body)
    for path in ("/os-quota-sets/{}/detail", "/limits?tenant_id={}", "/os-keypairs?user_id={}"):
        answer = await api("GET", path.format(odd), by="admin", v="latest")
        assert answer.status in {200, 400, 404}, (path, answer.body)


@pytest.mark.parametrize("body", [None, [], "x", 1, {}, {"flavor": None}, {"keypair": []}, {"flavor": "x"}])
@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/flavors"),
        ("PUT", "/flavors/x"),
        ("POST", "/flavors/x/action"),
        ("POST", "/flavors/x/os-extra_specs"),
        ("PUT", "/flavors/x/os-extra_specs/a"),
        ("POST", "/os-keypairs"),
        ("PUT", "/os-services/11111111-2222-3333-4444-555555555555"),
    ],
)
async def test_an_odd_body_is_refused(api: Api, method: str, path: str, body: object) -> None:
    answer = await api(method, path, body, by="admin", v="latest")
    assert (answer.status, bool(answer.message)) == (400, True)
