"""The OpenAPI document of ``/v1``, made of the resources and the types that serve it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from stateward import __version__
from stateward.api.native.call import Resource
from stateward.api.native.views import Problem
from stateward.api.once import HEADER

_REFERENCE: Final = "#/components/schemas/{name}"
_REFUSALS: Final = {
    "400": "The request is not as it must be.",
    "401": "There is no good token.",
    "403": "The caller's role is not enough.",
    "404": "There is no such thing for the caller.",
    "409": "It cannot be done now.",
    "422": "The Idempotency-Key was used for another request.",
}
_PARAMETER: Final = re.compile(r"{(\w+)}")


def document(resources: Mapping[str, Mapping[str, Resource]]) -> dict[str, Any]:
    """Describe resources, by path and method."""
    used = {
        each for methods in resources.values() for one in methods.values() for each in (one.body, one.answer)
    }
    types = [*sorted((kind for kind in used if kind is not None), key=lambda kind: kind.__name__), Problem]
    schemas, components = msgspec.json.schema_components(types, ref_template=_REFERENCE)
    schema_of = dict(zip(types, schemas, strict=True))
    return {
        "openapi": "3.1.0",
        "info": {"title": "Stateward", "version": __version__},
        "servers": [{"url": "/v1"}],
        "security": [{"token": []}],
        "paths": {
            path: {
                method.lower(): _operation(path, method, resource, schema_of)
                for method, resource in methods.items()
            }
            for path, methods in resources.items()
        },
        "components": {
            "schemas": components,
            "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
        },
    }


def _operation(path: str, method: str, resource: Resource, schema_of: Mapping[Any, Any]) -> dict[str, Any]:
    parameters = [
        {"name": name, "in": "path", "required": True, "schema": {"type": "string"}}
        for name in _PARAMETER.findall(path)
    ]
    parameters += [
        {"name": name, "in": "query", "description": says, "schema": {"type": "string"}}
        for name, says in resource.query.items()
    ]
    if method == "POST":
        parameters.append({"name": HEADER, "in": "header", "schema": {"type": "string", "maxLength": 255}})
    if resource.answer is None:
        content: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": schema_of[resource.answer]}}
    problem = {"application/problem+json": {"schema": schema_of[Problem]}}
    described: dict[str, Any] = {
        "summary": resource.summary,
        "parameters": parameters,
        "responses": {str(resource.status): {"description": resource.summary, "content": content}}
        | {status: {"description": says, "content": problem} for status, says in _REFUSALS.items()},
    }
    if resource.body is not None:
        described["requestBody"] = {"content": {"application/json": {"schema": schema_of[resource.body]}}}
    return described
