"""What is wrong with a body of ``/v1``, as a sentence that says what to write instead of a name of a type."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any, Final, cast

import msgspec
from msgspec import inspect

_PATH: Final = re.compile(r" - at `\$\.?(?P<path>[^`]*)`$")
_NAME: Final = re.compile(r"[^.\[]+")
_TYPES: Final = {
    "str": "a text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "object": "an object",
    "array": "a list",
    "null": "null",
    "datetime": "a time of ISO 8601, as 2030-01-31T18:00:00Z",
}
_SIGNS: Final = {">=": "at least", "<=": "at most", ">": "more than", "<": "less than"}
_COUNTED: Final = {"str": "characters", "array": "entries"}


def sentence(error: msgspec.ValidationError, kind: Any) -> str:
    """Say what is wrong with a decoded body.

    Args:
        error: what the check said; it ends with the path of the offending member.
        kind: the type it was checked against.
    """
    text = str(error)
    found = _PATH.search(text)
    said, path = (text[: found.start()], found["path"]) if found else (text, "")
    for pattern, words in _SENTENCES:
        match = pattern.fullmatch(said)
        if match is not None:
            return f"{f'`{path}`' if path else 'it'} {words(match, _at(kind, path))}."
    return text


def _at(kind: Any, path: str) -> inspect.Type | None:
    """Return the type at a path of members; None below a list or a mapping."""
    info = _plain(inspect.type_info(kind))
    for name in _NAME.findall(path):
        if not isinstance(info, inspect.StructType):
            return None
        info = next((_plain(field.type) for field in info.fields if field.encode_name == name), None)
    return info


def _plain(info: inspect.Type | None) -> inspect.Type | None:
    """Take off what may be null: nothing is wrong with null there."""
    if isinstance(info, inspect.UnionType):
        return next((each for each in info.types if not isinstance(each, inspect.NoneType)), None)
    return info


def _wrong_type(match: re.Match[str], _info: inspect.Type | None) -> str:
    wanted = ", or ".join(_TYPES.get(word, word) for word in match["types"].split(" | "))
    return f"must be {wanted}, not {_TYPES.get(match['got'], match['got'])}"


def _wrong_length(match: re.Match[str], _info: inspect.Type | None) -> str:
    if (match["sign"], match["bound"]) == (">=", "1"):
        return "must not be empty"
    return f"must have {_SIGNS[match['sign']]} {match['bound']} {_COUNTED[match['type']]}"


def _not_one_of(match: re.Match[str], info: inspect.Type | None) -> str:
    words: Iterable[object] = ()
    if isinstance(info, inspect.EnumType):
        words = (each.value for each in info.cls)
    elif isinstance(info, inspect.LiteralType):
        words = info.values
    return f"is {match['value']}, which is none of: {', '.join(map(str, words))}"


def _not_as_described(match: re.Match[str], info: inspect.Type | None) -> str:
    described: object = None
    if isinstance(info, inspect.Metadata):
        extra = cast("dict[str, object] | None", info.extra_json_schema)  # pyright: ignore[reportUnknownMemberType] (msgspec's)
        described = (extra or {}).get("description")
    return f"must be {described}" if described else f"must be written as the pattern {match['pattern']} says"


_SENTENCES: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str], inspect.Type | None], str]], ...]] = (
    (re.compile(r"Expected `(?P<types>[a-z| ]+)`, got `(?P<got>[a-z]+)`"), _wrong_type),
    (
        re.compile(r"Expected `(?P<type>str|array)` of length (?P<sign><=|>=) (?P<bound>\d+)"),
        _wrong_length,
    ),
    (
        re.compile(r"Expected `(?:int|float)` (?P<sign><=|>=|<|>) (?P<bound>-?\d+)(?:\.0)?"),
        lambda match, _info: f"must be {_SIGNS[match['sign']]} {match['bound']}",
    ),
    (
        re.compile(r"Expected `str` matching regex '(?P<pattern>.*)'", re.DOTALL),
        _not_as_described,
    ),
    (
        re.compile(r"Object missing required field `(?P<name>.*)`"),
        lambda match, _info: f"needs `{match['name']}`",
    ),
    (
        re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL),
        lambda match, _info: f"has no `{match['name']}`",
    ),
    (re.compile(r"Invalid enum value (?P<value>.*)", re.DOTALL), _not_one_of),
    (re.compile(r"Invalid RFC3339 .*"), lambda _match, _info: f"must be {_TYPES['datetime']}"),
)
