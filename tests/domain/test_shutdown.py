"""How long a guest gets to shut down, and whose word counts."""

from __future__ import annotations

import pytest
from hypothesis import given, strategies as st

from stateward.domain.shutdown import DEFAULT_CAP_SECONDS, PROPERTY, ShutdownPlan, parse_seconds, plan


@pytest.mark.parametrize(
    ("requested", "metadata", "image", "seconds", "origin"),
    [
        (None, None, None, 60, "default"),
        (None, None, "30", 30, "image"),
        (None, "20", "30", 20, "metadata"),
        (10, "20", "30", 10, "request"),
        (0, "20", "30", 0, "request"),
        (None, "0", "30", 0, "metadata"),
        (None, None, "0", 0, "image"),
        # What cannot be read is passed over, and the next layer counts.
        (None, "soon", "30", 30, "image"),
        (None, "-1", "30", 30, "image"),
        (None, "", "1.5", 60, "default"),
        (None, None, "1e3", 60, "default"),
        (None, None, "9" * 5000, 60, "default"),
        # The cap bounds every layer.
        (5000, None, None, 3600, "request"),
        (None, "5000", None, 3600, "metadata"),
        (None, None, "5000", 3600, "image"),
    ],
)
def test_whose_word_counts(
    *, requested: int | None, metadata: str | None, image: str | None, seconds: int, origin: str
) -> None:
    """The request over the metadata over the image over the default, none above the cap (R9)."""
    found = plan(
        requested=requested,
        metadata={} if metadata is None else {PROPERTY: metadata},
        image={} if image is None else {PROPERTY: image},
        default=60,
    )
    assert found == ShutdownPlan(seconds=seconds, origin=origin)


@pytest.mark.parametrize(
    ("requested", "expected"),
    [
        (None, ShutdownPlan(seconds=0, origin="forced")),
        (0, ShutdownPlan(seconds=0, origin="forced")),
        (5, ShutdownPlan(seconds=5, origin="request")),
        (5000, ShutdownPlan(seconds=3600, origin="request")),
    ],
)
def test_force_knows_no_layer_but_the_request(requested: int | None, expected: ShutdownPlan) -> None:
    """Who forces a stop does not want the image's hour."""
    layers = {PROPERTY: "3000"}
    assert plan(force=True, requested=requested, metadata=layers, image=layers, default=60) == expected


def test_the_cap_bounds_the_default_too() -> None:
    """An operator who lowers the cap need not lower the default as well."""
    found = plan(requested=None, metadata={}, image={}, default=60, cap=30)
    assert found == ShutdownPlan(seconds=30, origin="default")


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
        ([60], None),
    ],
    ids=repr,
)
def test_reading_a_property(value: object, seconds: int | None) -> None:
    """Whole seconds from 0 up, or nothing at all."""
    assert parse_seconds(value) == seconds


@given(
    value=st.one_of(st.none(), st.integers(), st.text(), st.floats(), st.booleans()),
    default=st.integers(0, 10_000),
    cap=st.integers(0, 10_000),
    requested=st.one_of(st.none(), st.integers(0, 10_000)),
    force=st.booleans(),
)
def test_nothing_breaks_it(
    *, value: object, default: int, cap: int, requested: int | None, force: bool
) -> None:
    """Whatever an image says, there is a plan, between nothing and the cap."""
    text = str(value)
    found = plan(
        force=force,
        requested=requested,
        metadata={},
        image={PROPERTY: text},
        default=default,
        cap=cap,
    )
    assert 0 <= found.seconds <= cap


def test_nova_s_bound_is_the_cap() -> None:
    """The request's own bound and the default cap are one number, so no request is accepted and then cut."""
    assert DEFAULT_CAP_SECONDS == 3600
