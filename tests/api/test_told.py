"""What is told of a server's life is what was: events of state changes, usage, and who hears of it."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from tests.cloud import Cloud, running_cloud
from tests.harness import until
from tests.wires import accepted


async def acts(cloud: Cloud, server: str, wire: str, options: Any = None, by: str = "member") -> str:
    answer = await cloud.ask(by, "POST", f"/servers/{server}/action", {wire: options}, microversion="2.104")
    assert answer.status == accepted(wire), answer.body
    return str((await cloud.settled(server)).get("status"))


async def told(cloud: Cloud, query: str, by: str = "admin") -> list[dict[str, Any]]:
    headers = {"x-auth-token": cloud.tokens[by], "accept": "application/json"}
    answer = await cloud.send("GET", f"/v1/events?limit=1000&{query}", headers=headers)
    assert answer.status == 200, answer.body
    found: list[dict[str, Any]] = answer.body["events"]
    return found


async def test_every_change_of_state_is_told_and_billed(tmp_path: Path) -> None:
    """The operator and the owner are told the same states as the usage has, in the same order."""
    async with running_cloud(tmp_path / "data") as cloud, asyncio.timeout(60):
        server = await cloud.ready_server("web")
        for wire, options in (
            ("os-stop", None),
            ("os-start", None),
            ("pause", None),
            ("unpause", None),
            ("suspend", None),
            ("resume", None),
            ("lock", None),
            ("unlock", None),
            ("shelve", None),
            ("unshelve", None),
        ):
            await acts(cloud, server, wire, options)
        cloud.hypervisor.guest_shutdown(server)

        async def adopted() -> bool | None:
            return (await cloud.settled(server))["status"] == "SHUTOFF" or None

        await until(adopted, seconds=10, says=lambda: "the guest that shut itself down was not adopted")
        await acts(cloud, server, "os-start", None)
        cloud.hypervisor.destroy(server)

        async def restored() -> dict[str, Any] | None:
            found = await told(cloud, f"type=instance.verdict&instance={server}")
            done = found and found[-1]["data"]["detail"]["verdict"] == "restore"
            return found[-1] if done and (await cloud.settled(server))["status"] == "ACTIVE" else None

        verdict = await until(
            restored, seconds=10, says=lambda: "the guest that was destroyed was not told of"
        )
        assert verdict["data"]["detail"]["expected"] == "active"
        headers = {"x-auth-token": cloud.tokens["admin"]}
        text = (await cloud.send("GET", "/metrics", headers=headers)).raw.decode()
        assert "stateward_restore_seconds_count 1.0" in text
        assert 'stateward_conflicts_total{expected="active",observed="shutoff",verdict="restore"} 1.0' in text
        await acts(cloud, server, "os-resetState", {"state": "error"}, "admin")
        await cloud.ask("member", "DELETE", f"/servers/{server}")
        await cloud.settled(server)
        answer = await cloud.ask("member", "GET", f"/usage?intervals=true&instance={server}", api="/v1")
        (used,) = answer.body["instances"]
        billed = [each["state"] for each in used["recorded_intervals"]]
        assert {"building", "active", "stopped", "paused", "suspended", "shelved_offloaded", "error"} <= set(
            billed
        )
        for by in ("admin", "member"):
            changes = await told(cloud, f"type=instance.state-changed&instance={server}", by)
            assert [each["data"]["detail"]["to"] for each in changes] == [*billed, "deleted"]
            assert [each["data"]["detail"]["from"] for each in changes] == [None, *billed]
        assert await told(cloud, "after=0.0", "othertenant") == []
        answer = await cloud.ask("othertenant", "GET", f"/events?instance={server}", api="/v1")
        assert answer.status == 404
        kinds = {
            each["type"].removeprefix("org.stateward.") for each in await told(cloud, f"instance={server}")
        }
        assert {"operation.accepted", "operation.finished", "lock.placed", "lock.released"} <= kinds
