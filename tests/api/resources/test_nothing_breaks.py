"""Whatever is in an address or a body, the answer is never a fault of our own."""

from __future__ import annotations

import pytest

from tests.api.resources.conftest import Api

ODD = ("%00", "a%00b", "%ff", "%F0%9F%92%A9", "'%20OR%201=1", "9" * 400, "x" * 4000)


@pytest.mark.parametrize("odd", ODD)
async def test_an_odd_address_is_not_found_or_refused(api: Api, odd: str) -> None:
    """Asked for by name it is not there, and as a filter it fits nothing; an address with a NUL leads nowhere."""
    for method, path, status in (
        ("GET", "/flavors/{}", 404),
        ("DELETE", "/flavors/{}", 404),
        ("GET", "/flavors/{}/os-extra_specs", 404),
        ("GET", "/flavors/{}/os-flavor-access", 404),
        ("GET", "/os-keypairs/{}", 404),
        ("DELETE", "/os-keypairs/{}", 404),
        ("GET", "/os-hypervisors/{}", 400),
        ("GET", "/extensions/{}", 404),
        ("GET", "/flavors?marker={}", 400),
        ("GET", "/os-keypairs?marker={}", 400),
        ("GET", "/os-hypervisors?marker={}", 400),
        ("GET", "/os-quota-sets/{}/detail", 200),
        ("GET", "/limits?tenant_id={}", 200),
        ("GET", "/os-keypairs?user_id={}", 200),
    ):
        answer = await api(method, path.format(odd), by="admin", v="latest")
        assert answer.status == (404 if "%00" in odd else status), (path, answer.body)


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
