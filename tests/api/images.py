"""Requests to the image service that its tests make."""

from __future__ import annotations

import json
from typing import Any

from tests.api.embedded import Embedded

V2 = "/image/v2"
PATCH = {"content-type": "application/openstack-images-v2.1-json-patch"}
DATA = {"content-type": "application/octet-stream"}
FORMATS = {"disk_format": "raw", "container_format": "bare"}


async def make(world: Embedded, headers: dict[str, str], **values: Any) -> dict[str, Any]:
    response = await world.client.post(f"{V2}/images", json=FORMATS | values, headers=headers)
    assert response.status_code == 201, response.text
    made: dict[str, Any] = response.json()
    return made


async def patch(world: Embedded, headers: dict[str, str], image_id: str, *changes: dict[str, Any]) -> Any:
    return await world.client.patch(
        f"{V2}/images/{image_id}", content=json.dumps(changes), headers=headers | PATCH
    )


async def names(world: Embedded, headers: dict[str, str], query: str = "") -> list[str]:
    response = await world.client.get(f"{V2}/images{query}", headers=headers)
    assert response.status_code == 200, response.text
    return [image["name"] for image in response.json()["images"]]
