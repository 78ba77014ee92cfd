"""What is wrong with a body, in the words Nova uses: those of JSON Schema, with Python's values.

Clients and their scripts know these sentences, and people search for them.
"""

from __future__ import annotations

import re
import types
from collections.abc import Callable, Iterator
from typing import Annotated, Any, Final, Literal, Union, cast, get_args, get_origin, get_type_hints

import msgspec

from stateward.domain.errors import Invalid

_PATH: Final = re.compile(r" - at (?P<key>`key` in )?`\$(?P<path>[^`]*)`$")
_STEP: Final = re.compile(r"\.(?P<name>[^.\[]+)|\[(?P<index>\d+)\]|(?P<some>\[\.\.\.\])")
#: Characters of a value that an answer repeats.
_LONGEST: Final = 1000
_TYPES: Final = {
    "str": "string",
    "int": "integer",
    "float": "number",
    "bool": "boolean",
    "object": "object",
    "array": "array",
    "null": "null",
}


def invalid(body: object, error: msgspec.ValidationError, *, root: str, kind: Any) -> Invalid:
    """Say in Nova's words what is wrong with a decoded body.

    Args:
        body: what was checked.
        error: what the check said; it ends with the path of the offending member.
        root: the name of the outermost member, for an error about the whole.
        kind: the type it was checked against.
    """
    text = str(error)
    found = _PATH.search(text)
    sentence = text[: found.start()] if found else text
    name, value = root, body
    for step in _STEP.finditer(found["path"] if found else ""):
        name, value, kind = _descend(name, value, kind, step)
    if found and found["key"]:
        sentence = f"One of its names is not as it must be: {_of_name(sentence)}"
    else:
        sentence = _translated(sentence, value, kind)
    return Invalid(f"Invalid input for field/attribute {name}. Value: {short(value)}. {sentence}")


def short(value: object) -> str:
    """Write a value as Nova does, and of a very long one the beginning."""
    text = str(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _shown(value: object) -> str:
    return short(repr(value))


def _descend(name: str, value: Any, kind: Any, step: re.Match[str]) -> tuple[str, Any, Any]:
    """Follow one step of a path: to the member's name, its value and the type it must have."""
    if step["index"] is not None:
        return name, cast("list[Any]", value)[int(step["index"])], _argument(kind, list)
    members = cast("dict[str, Any]", value)
    if step["name"] is not None:
        return step["name"], members.get(step["name"]), _member(kind, step["name"])
    # msgspec does not say which of a mapping's values it is: the first that is not as it must be.
    kind = _argument(kind, dict)
    return next((key, each, kind) for key, each in members.items() if not _fits(each, kind))


def _fits(value: object, kind: Any) -> bool:
    try:
        msgspec.convert(value, kind)
    except msgspec.ValidationError:
        return False
    return True


def _parts(kind: Any) -> Iterator[Any]:
    """Yield the plain types that a type allows."""
    origin = get_origin(kind)
    if origin is Annotated:
        yield from _parts(get_args(kind)[0])
    elif origin in {Union, types.UnionType}:
        for each in get_args(kind):
            yield from _parts(each)
    else:
        yield kind


def _member(kind: Any, name: str) -> Any:
    for part in _parts(kind):
        if isinstance(part, type) and issubclass(part, msgspec.Struct):
            for field in msgspec.structs.fields(part):
                if field.encode_name == name:
                    return get_type_hints(part, include_extras=True)[field.name]
    return Any


def _argument(kind: Any, origin: type) -> Any:
    """Return the type of the values in a list or mapping."""
    return next((get_args(part)[-1] for part in _parts(kind) if get_origin(part) is origin), Any)


def _translated(sentence: str, value: object, kind: Any) -> str:
    for pattern, translate in _SENTENCES:
        match = pattern.fullmatch(sentence)
        if match is not None:
            return translate(match, value, kind)
    return sentence


def _wrong_type(match: re.Match[str], value: object, _kind: Any) -> str:
    words = ", ".join(f"'{_TYPES.get(word, word)}'" for word in match["types"].split(" | "))
    return f"{_shown(value)} is not of type {words}"


def _wrong_length(match: re.Match[str], value: object, _kind: Any) -> str:
    if match["sign"] == "<=":
        return f"{_shown(value)} is too long"
    return (
        f"{_shown(value)} should be non-empty" if match["bound"] == "1" else f"{_shown(value)} is too short"
    )


def _out_of_range(match: re.Match[str], value: object, _kind: Any) -> str:
    if match["sign"] == "<=":
        return f"{_shown(value)} is greater than the maximum of {match['bound']}"
    return f"{_shown(value)} is less than the minimum of {match['bound']}"


def _not_one_of(_match: re.Match[str], value: object, kind: Any) -> str:
    allowed = [each for part in _parts(kind) if get_origin(part) is Literal for each in get_args(part)]
    return f"{_shown(value)} is not one of {allowed}"


_SENTENCES: Final[tuple[tuple[re.Pattern[str], Callable[[re.Match[str], object, Any], str]], ...]] = (
    (
        re.compile(r"Object missing required field `(?P<name>.*)`"),
        lambda match, _value, _kind: f"'{match['name']}' is a required property",
    ),
    (
        re.compile(r"Object contains unknown field `(?P<name>.*)`", re.DOTALL),
        lambda match, _value, _kind: (
            f"Additional properties are not allowed ('{match['name']}' was unexpected)"
        ),
    ),
    (re.compile(r"Expected `(?P<types>[a-z| ]+)`, got `[a-z]+`"), _wrong_type),
    (re.compile(r"Expected `[a-z| ]+` of length (?P<sign><=|>=) (?P<bound>\d+)"), _wrong_length),
    (re.compile(r"Expected `(?:int|float)` (?P<sign><=|>=) (?P<bound>-?[\d.]+)"), _out_of_range),
    (
        re.compile(r"Expected `str` matching regex (?P<pattern>.*)", re.DOTALL),
        lambda match, value, _kind: f"{_shown(value)} does not match {match['pattern']}",
    ),
    (re.compile(r"Invalid enum value .*", re.DOTALL), _not_one_of),
)


def _of_name(sentence: str) -> str:
    """Say what is wrong with a name; msgspec does not say with which."""
    length = re.fullmatch(r"Expected `str` of length (?P<sign><=|>=) \d+", sentence)
    if length is None:
        return sentence
    return "too long" if length["sign"] == "<=" else "should be non-empty"
