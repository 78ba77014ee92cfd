"""How long a guest gets to shut down, what is done then, and whose word counts (R9)."""

from __future__ import annotations

from typing import get_args, get_type_hints

import pytest
from hypothesis import given, strategies as st

from stateward.domain.bodies import ShutdownRequest
from stateward.domain.errors import Invalid
from stateward.domain.shutdown import (
    CHOICE_PROPERTY,
    DEFAULT_CAP_SECONDS,
    PROPERTY,
    AtDeadline,
    Layer,
    Limits,
    ShutdownPlan,
    layer,
    parse_choice,
    parse_seconds,
    plan,
)

FORCE, FAIL, SAVE = AtDeadline
ORIGINS = ("request", "metadata", "image", "flavor", "host", "default")


def said(origin: str, seconds: int | None = None, at_deadline: AtDeadline | None = None) -> Layer:
    return Layer(origin=origin, seconds=seconds, at_deadline=at_deadline)


LAYERS = st.tuples(
    *(
        st.builds(
            said,
            st.just(origin),
            st.none() | st.integers(0, 10_000),
            st.none() | st.sampled_from(AtDeadline),
        )
        for origin in ORIGINS
    )
)
LIMITS = st.builds(Limits, cap=st.integers(0, 10_000), choices=st.frozensets(st.sampled_from(AtDeadline)))


@given(layers=LAYERS, limits=LIMITS, may_save=st.booleans())
def test_the_first_layer_that_can_be_used_decides(
    *, layers: tuple[Layer, ...], limits: Limits, may_save: bool
) -> None:
    """Time and choice each for itself, in the order of the layers, within what the operator allows."""
    allowed = {FORCE} | (limits.choices - (set() if may_save else {SAVE}))
    request = layers[0].at_deadline
    if request is not None and request not in allowed:
        with pytest.raises(Invalid):
            plan(layers, action="stop", may_save=may_save, limits=limits)
        return
    found = plan(layers, action="stop", may_save=may_save, limits=limits)
    times = [each for each in layers if each.seconds is not None] or [said("default", 60)]
    choices = [each for each in layers if each.at_deadline in allowed] or [said("default", None, FORCE)]
    assert found == ShutdownPlan(
        seconds=min(times[0].seconds or 0, limits.cap),
        origin=times[0].origin,
        at_deadline=choices[0].at_deadline or FORCE,
        at_deadline_origin=choices[0].origin,
    )


@given(layers=LAYERS, limits=LIMITS)
def test_force_knows_no_layer_but_the_request(*, layers: tuple[Layer, ...], limits: Limits) -> None:
    """Who forces a stop does not want the image's hour, and no choice of the operator's keeps the guest on."""
    request = said("request", layers[0].seconds)
    found = plan((request, *layers[1:]), force=True, action="stop", limits=limits)
    assert found.at_deadline is FORCE
    if request.seconds:
        assert (found.seconds, found.origin) == (min(request.seconds, limits.cap), "request")
    else:
        assert (found.seconds, found.origin) == (0, "forced")


@pytest.mark.parametrize(
    ("choice", "force", "may_save", "choices", "why"),
    [
        (
            FAIL,
            True,
            True,
            frozenset(AtDeadline),
            "'force' takes the power; with it only 'force' can be chosen",
        ),
        (
            SAVE,
            False,
            False,
            frozenset(AtDeadline),
            "'stop' cannot end with a saved memory; choose 'force' or 'fail'",
        ),
        (
            FAIL,
            False,
            True,
            frozenset({SAVE}),
            "'fail' is not one of ['force', 'save'], which the operator allows",
        ),
        (
            SAVE,
            False,
            True,
            frozenset({FAIL}),
            "'save' is not one of ['fail', 'force'], which the operator allows",
        ),
    ],
)
def test_a_request_is_told_what_it_cannot_have(
    *, choice: AtDeadline, force: bool, may_save: bool, choices: frozenset[AtDeadline], why: str
) -> None:
    """In Nova's form of a sentence about a field."""
    with pytest.raises(Invalid) as caught:
        plan(
            [said("request", None, choice)],
            force=force,
            action="stop",
            may_save=may_save,
            limits=Limits(choices=choices),
        )
    assert str(caught.value) == f"Invalid input for field/attribute at_deadline. Value: {choice}. {why}"


def test_a_layer_below_the_request_that_cannot_be_had_is_passed_over() -> None:
    """An image that says save must not make its instances impossible to delete."""
    layers = [said("request", 5), said("metadata", 20, SAVE), said("image", 30, FAIL)]
    assert plan(layers, action="delete") == ShutdownPlan(
        seconds=5, origin="request", at_deadline=FAIL, at_deadline_origin="image"
    )


def test_a_layer_is_read_from_its_properties() -> None:
    """Under Nova's name and one like it."""
    assert layer("image", {PROPERTY: "30", CHOICE_PROPERTY: "fail", "os_type": "linux"}) == said(
        "image", 30, FAIL
    )
    assert layer("flavor", {}) == said("flavor")


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("0", 0),
        ("60", 60),
        (60, 60),
        (" 60 ", 60),
        (0, 0),
        (-1, None),
        ("-1", None),
        (True, None),
        (None, None),
        (1.5, None),
        ("1.5", None),
        ("", None),
        ("1m", None),
        ("1e3", None),
        ("9" * 5000, None),
        ([60], None),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_reading_a_time(value: object, seconds: int | None) -> None:
    """Whole seconds from 0 up, or nothing at all: what cannot be read is passed over."""
    assert parse_seconds(value) == seconds


@pytest.mark.parametrize(
    ("value", "choice"),
    [("force", FORCE), ("fail", FAIL), ("save", SAVE), ("Force", None), ("", None), (None, None), ([], None)],
    ids=repr,
)
def test_reading_a_choice(value: object, choice: AtDeadline | None) -> None:
    """One of the words, or nothing at all."""
    assert parse_choice(value) == choice


def test_a_body_may_say_what_there_is() -> None:
    """The words are spelt out in the body's type for the sake of Nova's sentence; they are the choices."""
    kind = get_type_hints(ShutdownRequest)["at_deadline"]
    assert get_args(get_args(kind)[0]) == tuple(each.value for each in AtDeadline)


def test_nova_s_bound_is_the_cap() -> None:
    """The request's own bound and the default cap are one number, so no request is accepted and then cut."""
    assert DEFAULT_CAP_SECONDS == 3600
