"""What a stack of locks amounts to, and who may place and take away which."""

from __future__ import annotations

from typing import Any, Final

import msgspec
import pytest
from hypothesis import given, strategies as st

from stateward.domain.errors import Invalid
from stateward.domain.locks import (
    ALL_CLASSES,
    BINDS,
    ActorKind,
    Lock,
    LockKind,
    OperationClass,
    classes_of,
    kind_placed_by,
    may_release,
    released_by_unlock,
    summarise,
    words_of,
)

NOTHING: Final = OperationClass(0)


def lock(
    kind: LockKind, blocks: OperationClass = ALL_CLASSES, reason: str | None = None, number: int = 0
) -> Lock:
    return Lock(
        id=f"{kind}-{number}",
        instance_id="i",
        kind=kind,
        holder="h",
        reason=reason,
        blocks=blocks,
        placed_at=float(number),
    )


def test_all_classes_are_all_of_them() -> None:
    """A class that was added and left out here would be blocked by no lock."""
    union = NOTHING
    for each in OperationClass:
        union |= each
    assert union == ALL_CLASSES


def test_no_locks_amount_to_nothing() -> None:
    """The row of an unlocked instance blocks nothing and names nobody."""
    summary = summarise([])
    assert (summary.owner_blocks, summary.admin_blocks, summary.hold_blocks) == (NOTHING, NOTHING, NOTHING)
    assert (summary.locked_by, summary.locked_reason) == (None, None)


@pytest.mark.parametrize(
    ("kinds", "locked_by", "reason"),
    [
        ([LockKind.OWNER], "owner", "owner's"),
        ([LockKind.ADMIN], "admin", "admin's"),
        ([LockKind.HOLD], "admin", "hold's"),
        ([LockKind.OWNER, LockKind.ADMIN], "admin", "admin's"),
        ([LockKind.ADMIN, LockKind.OWNER], "admin", "admin's"),
        ([LockKind.OWNER, LockKind.ADMIN, LockKind.HOLD], "admin", "hold's"),
    ],
)
def test_the_strongest_is_shown(kinds: list[LockKind], locked_by: str, reason: str) -> None:
    """Whatever the order in which they were placed (R8); a hold shows as the provider's."""
    summary = summarise(lock(kind, reason=f"{kind}'s") for kind in kinds)
    assert (summary.locked_by, summary.locked_reason) == (locked_by, reason)


def test_a_strongest_lock_without_a_reason_hides_the_other_reasons() -> None:
    """A customer's reason must not be shown as the provider's."""
    summary = summarise([lock(LockKind.OWNER, reason="mine"), lock(LockKind.ADMIN)])
    assert (summary.locked_by, summary.locked_reason) == ("admin", None)


LOCKS = st.lists(
    st.builds(
        lock,
        kind=st.sampled_from(LockKind),
        blocks=st.integers(0, int(ALL_CLASSES)).map(OperationClass),
        number=st.integers(0, 99),
    ),
    max_size=6,
)


@given(stack=LOCKS)
def test_each_kind_keeps_its_own_union(stack: list[Lock]) -> None:
    """A class is blocked by a kind exactly when one lock of the kind blocks it (R5, B2)."""
    summary = summarise(stack)
    for kind, blocks in (
        (LockKind.OWNER, summary.owner_blocks),
        (LockKind.ADMIN, summary.admin_blocks),
        (LockKind.HOLD, summary.hold_blocks),
    ):
        for each in OperationClass:
            assert bool(blocks & each) == any(each in one.blocks for one in stack if one.kind is kind)
    assert (summary.locked_by is None) == (not stack)


@given(stack=LOCKS.filter(bool), data=st.data())
def test_releasing_one_never_frees_another(stack: list[Lock], data: st.DataObject) -> None:
    """What the locks that are left block, stays blocked (B2)."""
    gone = data.draw(st.integers(0, len(stack) - 1))
    left = stack[:gone] + stack[gone + 1 :]
    summary = summarise(left)
    for one in left:
        blocks = {
            LockKind.OWNER: summary.owner_blocks,
            LockKind.ADMIN: summary.admin_blocks,
            LockKind.HOLD: summary.hold_blocks,
        }[one.kind]
        assert one.blocks in blocks


@pytest.mark.parametrize(
    ("kind", "bound"),
    [
        (LockKind.OWNER, {ActorKind.MEMBER, ActorKind.SYSTEM}),
        (LockKind.ADMIN, {ActorKind.MEMBER, ActorKind.SYSTEM}),
        (LockKind.HOLD, {ActorKind.MEMBER, ActorKind.ADMIN, ActorKind.SYSTEM}),
    ],
)
def test_whom_a_lock_binds(kind: LockKind, bound: set[ActorKind]) -> None:
    """Admins pass owner and admin locks as in Nova, the control plane's own clean-up none (R1), nobody a hold (R6)."""
    assert BINDS[kind] == bound


@pytest.mark.parametrize(
    ("kind", "own", "placed"),
    [
        (ActorKind.MEMBER, True, LockKind.OWNER),
        (ActorKind.MEMBER, False, LockKind.OWNER),
        (ActorKind.ADMIN, True, LockKind.OWNER),
        (ActorKind.ADMIN, False, LockKind.ADMIN),
    ],
)
def test_which_lock_is_placed(kind: ActorKind, own: bool, placed: LockKind) -> None:  # noqa: FBT001
    """An admin in the server's own project counts as its owner, as in Nova 34."""
    assert kind_placed_by(kind, in_own_project=own) is placed


OWNER, ADMIN, HOLD = LockKind


@pytest.mark.parametrize(
    ("kind", "present", "released"),
    [
        (ActorKind.MEMBER, [], None),
        (ActorKind.MEMBER, [OWNER], OWNER),
        (ActorKind.MEMBER, [HOLD], None),
        (ActorKind.MEMBER, [OWNER, HOLD], OWNER),
        (ActorKind.ADMIN, [], None),
        (ActorKind.ADMIN, [OWNER], OWNER),
        (ActorKind.ADMIN, [ADMIN], ADMIN),
        (ActorKind.ADMIN, [OWNER, ADMIN], ADMIN),
        (ActorKind.ADMIN, [OWNER, ADMIN, HOLD], ADMIN),
        (ActorKind.ADMIN, [HOLD], None),
    ],
)
def test_which_lock_is_released(kind: ActorKind, present: list[LockKind], released: LockKind | None) -> None:
    """An admin's unlock takes the admin's lock first and leaves the owner's; no unlock takes a hold (R5, R6)."""
    found = released_by_unlock(kind, [lock(each) for each in present])
    assert (found.kind if found else None) is released


@pytest.mark.parametrize("present", [[ADMIN], [OWNER, ADMIN], [ADMIN, HOLD], [OWNER, ADMIN, HOLD]])
def test_a_member_cannot_unlock_while_the_provider_locks(present: list[LockKind]) -> None:
    """Not even the member's own lock, which the provider's lies over (R5)."""
    with pytest.raises(PermissionError):
        released_by_unlock(ActorKind.MEMBER, [lock(each) for each in present])


def test_a_sealed_lock_is_released_by_the_provider_alone() -> None:
    """The owner asked for that (R4)."""
    sealed = msgspec.structs.replace(lock(OWNER), sealed=True)
    with pytest.raises(PermissionError):
        released_by_unlock(ActorKind.MEMBER, [sealed])
    assert released_by_unlock(ActorKind.ADMIN, [sealed]) == sealed


@pytest.mark.parametrize("who", [ActorKind.MEMBER, ActorKind.ADMIN])
@pytest.mark.parametrize("change", [{"name": "a"}, {"instance_id": None, "project_id": "p"}])
def test_unlock_leaves_named_and_inherited_locks(who: ActorKind, change: dict[str, str | None]) -> None:
    """They are released by their ids: a script's unlock does not free what somebody else locked (B2)."""
    for kind in (OWNER, ADMIN):
        assert released_by_unlock(who, [msgspec.structs.replace(lock(kind), **change)]) is None


@pytest.mark.parametrize(
    ("change", "member", "another"),
    [
        ({}, True, True),
        ({"name": "a"}, True, False),
        ({"sealed": True}, False, False),
        ({"kind": ADMIN}, False, False),
        ({"kind": HOLD}, False, False),
    ],
)
def test_who_may_release(change: dict[str, Any], member: bool, another: bool) -> None:  # noqa: FBT001
    """A named lock is its holder's; the provider's and a sealed one are the provider's; an admin's are all."""
    one = msgspec.structs.replace(lock(OWNER), **change)
    assert may_release(one, ActorKind.MEMBER, "h") is member
    assert may_release(one, ActorKind.MEMBER, "another") is another
    assert may_release(one, ActorKind.ADMIN, "another") is True


@pytest.mark.parametrize(
    ("words", "blocks", "shown"),
    [
        (["delete"], OperationClass.DELETE, ["delete"]),
        (["power"], OperationClass.START | OperationClass.STOP, ["power"]),
        (["start", "stop"], OperationClass.START | OperationClass.STOP, ["power"]),
        (["stop", "change"], OperationClass.STOP | OperationClass.CHANGE, ["stop", "change"]),
        (["power", "delete", "change"], ALL_CLASSES, ["all"]),
        (["all"], ALL_CLASSES, ["all"]),
    ],
)
def test_the_words_for_what_a_lock_blocks(words: list[str], blocks: OperationClass, shown: list[str]) -> None:
    """People say them in any combination; the fewest are shown (B2)."""
    assert classes_of(words) == blocks
    assert words_of(blocks) == shown


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (
            ["reboot"],
            "There are no operations called 'reboot'; a lock blocks delete, stop, start, power, change, all.",
        ),
        ([], "A lock has to block something: delete, stop, start, power, change, all."),
    ],
)
def test_words_that_mean_nothing(words: list[str], says: str) -> None:
    """The sentence says which there are."""
    with pytest.raises(Invalid) as refused:
        classes_of(words)
    assert str(refused.value) == says


@given(st.integers(1, int(ALL_CLASSES)).map(OperationClass))
def test_words_mean_what_they_were_made_of(blocks: OperationClass) -> None:
    """Shown and read again, a lock blocks the same."""
    assert classes_of(words_of(blocks)) == blocks


def test_what_a_project_s_lock_is_inherited_by() -> None:
    """Its instances, and where it names a tag, those that have it (B2)."""
    whole = msgspec.structs.replace(lock(OWNER), instance_id=None, project_id="p")
    tagged = msgspec.structs.replace(whole, tag="db")
    assert [whole.holds_for("p", []), whole.holds_for("q", ["db"])] == [True, False]
    assert [
        tagged.holds_for("p", ["db", "x"]),
        tagged.holds_for("p", ["x"]),
        tagged.holds_for("q", ["db"]),
    ] == [
        True,
        False,
        False,
    ]
    assert [each.scope for each in (lock(OWNER), whole, tagged)] == [
        "instance i",
        "project p",
        "project p tag db",
    ]


@given(
    st.lists(
        st.tuples(st.booleans(), st.sampled_from([ActorKind.MEMBER, ActorKind.ADMIN]), st.booleans()),
        max_size=12,
    )
)
def test_a_history_of_locks_and_unlocks(history: list[tuple[bool, ActorKind, bool]]) -> None:
    """Any sequence leaves what a model of two independent flags says (R3, R5)."""
    present: set[LockKind] = set()
    owner_holds = provider_holds = False
    for locks, who, own in history:
        if locks:
            present.add(kind_placed_by(who, in_own_project=own))
            if who is ActorKind.ADMIN and not own:
                provider_holds = True
            else:
                owner_holds = True
        elif who is ActorKind.MEMBER and provider_holds:
            with pytest.raises(PermissionError):
                released_by_unlock(who, [lock(each) for each in present])
        else:
            released = released_by_unlock(who, [lock(each) for each in present])
            present -= {released.kind} if released else set()
            if provider_holds:
                provider_holds = False
            else:
                owner_holds = False
        assert present == {kind for kind, holds in ((OWNER, owner_holds), (ADMIN, provider_holds)) if holds}
