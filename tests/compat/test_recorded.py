"""What a real Nova 34 answered, asked again of Stateward: status, fault, message, keys and values.

``nova34.json`` holds the exchanges in the order they were recorded in, as one story. Every difference is in
``deviations.py`` with its reason, and is asserted as exactly as what is the same.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from stateward.agent.simulated import Hang
from tests.cloud import Answer, Cloud, running_cloud
from tests.compat.deviations import DEVIATIONS, WITH_PORTS

_RECORDED: dict[str, Any] = json.loads((Path(__file__).parent / "nova34.json").read_text())
_PLACEHOLDER = re.compile(r"\{([A-Za-z0-9:-]+)\}")


class _Story:
    """Plays exchanges one after the other, and remembers what things are called here."""

    def __init__(self, cloud: Cloud) -> None:
        self.cloud = cloud
        self.names: dict[str, str] = {"image": cloud.image, "network": "11111111-2222-3333-4444-555555555555"}
        self.differences: list[str] = []
        self._held: list[Hang] = []

    def fill(self, value: Any) -> Any:
        """Put what things are called here in the place of what the recording calls them."""
        filled = _PLACEHOLDER.sub(lambda found: self.names[found[1]], json.dumps(value))
        return json.loads(filled)

    async def play(self, step: dict[str, Any], *, next_looks_inside: bool) -> None:
        """Ask once, and note how the answer differs from the one that is expected."""
        if not step.get("in_flight"):
            for server_id in self.servers():
                await self.cloud.settled(server_id)
        # Held in the hypervisor until the next answer is there: what is in flight is in flight, however fast we are.
        hang = self.cloud.hypervisor.hang_next("request_shutdown") if next_looks_inside else None
        if "{request:" in step["path"]:
            await self.learn_requests()
        answer = await self.cloud.ask(
            step["role"],
            step["method"],
            self.fill(step["path"]),
            *([self.fill(step["body"])] if "body" in step else []),
            microversion=step["microversion"],
        )
        self.learn(step, answer)
        self.compare(step, answer)
        if hang is not None:
            await hang.reached.wait()
            self._held.append(hang)
        elif self._held:
            self._held.pop().release()

    def servers(self) -> list[str]:
        """Return the ids of the servers that are there."""
        return [value for name, value in self.names.items() if name.startswith(("gold-", "t1", "t2"))]

    def learn(self, step: dict[str, Any], answer: Answer) -> None:
        """Remember the id of a new server."""
        if step["method"] == "POST" and step["path"] == "/servers" and answer.status == 202:
            self.names[step["body"]["server"]["name"]] = answer.body["server"]["id"]

    async def learn_requests(self) -> None:
        """Look up the requests of a server's first create and last lock."""
        path = f"/servers/{self.names['gold-lock']}/os-instance-actions"
        answer = await self.cloud.ask("member", "GET", path)
        for action in reversed(answer.body["instanceActions"]):
            self.names[f"request:{action['action']}"] = action["request_id"]

    def compare(self, step: dict[str, Any], answer: Answer) -> None:
        """Note every difference between an answer and what is expected of it."""
        expected = self.fill(expectation(step))
        found = _seen(expected, answer)
        if found != expected:
            wanted = {name: each for name, each in expected.items() if found.get(name) != each}
            instead = {name: each for name, each in found.items() if expected.get(name) != each}
            self.differences.append(f"{step['name']}:\n  expected {wanted}\n  found    {instead}")


def expectation(step: dict[str, Any]) -> dict[str, Any]:
    """Return what Nova answered, changed by what is different here on purpose."""
    expected: dict[str, Any] = json.loads(json.dumps(step["answer"]))
    if "keys" in expected and step["method"] == "GET":
        lists = expected["keys"] if isinstance(expected["keys"][0], list) else [expected["keys"]]
        for keys in lists:
            keys[:] = [name for name in keys if name not in WITH_PORTS]
    deviation = DEVIATIONS.get(step["name"])
    if deviation is not None:
        if deviation.instead is not None:
            return deviation.instead
        for path, value in deviation.changes.items():
            inner = expected
            *outer, last = path.split("/")
            for name in outer:
                inner = inner[name]
            assert inner[last] != value, f"{step['name']} does not deviate in {path}"
            inner[last] = value
    return expected


def _seen(expected: dict[str, Any], answer: Answer) -> dict[str, Any]:
    """Describe an answer in the form that the recording is kept in, as far as is expected of it."""
    seen: dict[str, Any] = {"status": answer.status}
    if "version" in expected:
        version = answer.headers.get("x-openstack-nova-api-version")
        openstack = answer.headers.get("openstack-api-version")
        assert (openstack or "").removeprefix("compute ") == (version or "")
        seen["version"] = version
    if "fault" in expected:
        if answer.status < 400:
            return seen | {"body": answer.body}
        _status, name, message = answer.fault
        return seen | {"fault": name, "code": answer.status, "message": message}
    if "kind" not in expected:
        # An aside, or an answer without a body.
        return seen if answer.status == expected["status"] else seen | {"body": answer.body}
    body = answer.body
    if answer.status >= 400:
        return seen | {"body": body}
    kind = expected["kind"]
    return seen | {"kind": kind} | _view(kind, body[kind], expected)


def _view(kind: str, content: Any, expected: dict[str, Any]) -> dict[str, Any]:
    if kind == "servers":
        return {"names": [each["name"] for each in content], "keys": [sorted(each) for each in content]}
    if kind == "instanceActions":
        (keys,) = {tuple(sorted(each)) for each in content}
        return {"keys": list(keys), "actions": [each["action"] for each in content]}
    seen: dict[str, Any] = {"keys": sorted(content)}
    if "values" in expected:
        seen["values"] = {name: content.get(name) for name in expected["values"]}
    if "event" in expected:
        (event,) = content["events"]
        told = {name: event.get(name) for name in expected["event"]["values"]}
        seen["event"] = {"keys": sorted(event), "values": told}
    for inner in ("flavor", "image"):
        if inner in expected:
            seen[inner] = sorted(content[inner])
    return seen


async def test_the_recorded_story_is_told_again(tmp_path: Path) -> None:
    """Every recorded exchange gets Nova's answer, or the one that ``deviations.py`` says."""
    steps: list[dict[str, Any]] = _RECORDED["exchanges"]
    async with running_cloud(tmp_path / "data") as cloud:
        story = _Story(cloud)
        for step, following in zip(steps, [*steps[1:], {}], strict=True):
            await story.play(step, next_looks_inside=bool(following.get("in_flight")))
    assert not story.differences, "\n".join(story.differences)


def test_every_deviation_is_of_an_exchange_and_has_a_reason() -> None:
    """No deviation outlives the exchange it is about, and none is without a reason."""
    names = {step["name"] for step in _RECORDED["exchanges"]}
    assert set(DEVIATIONS) <= names
    assert all(deviation.reason for deviation in DEVIATIONS.values())
