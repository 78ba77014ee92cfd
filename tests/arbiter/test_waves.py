"""Which hosts are silent together, from look to look and over a restart (B5)."""

from __future__ import annotations

from stateward.arbiter.waves import Wave
from stateward.domain.hosts import Condition, Frozen
from stateward.store.hosts import Pulse

SUSPECT, DEAD, FENCED = Condition.SUSPECT, Condition.DEAD, Condition.FENCED
#: When they fell silent.
FELL = 1000.0


def pulses(*silent: Condition, of: int = 10, since: float = FELL, maintained: int = 0) -> list[Pulse]:
    """Return so many hosts, of which the first are as is said, the first of those maintained, and all others up."""
    return [
        Pulse(
            name=f"h{number}",
            heard_seq=1,
            condition=silent[number] if number < len(silent) else Condition.UP,
            since=since if number < len(silent) and silent[number] is not SUSPECT else FELL,
            frozen=Frozen.MAINTENANCE if number < maintained else None,
            forced_down=False,
        )
        for number in range(of)
    ]


def wave() -> Wave:
    return Wave(many=3, share=0.5)


def test_a_wave_is_no_smaller_for_what_is_said() -> None:
    """Whether one is dead, fenced, or maintained; it is when one is heard again."""
    seen = wave()
    looks = (
        (pulses(SUSPECT, SUSPECT, SUSPECT, SUSPECT), 4),
        (pulses(DEAD, SUSPECT, SUSPECT, SUSPECT), 4),
        (pulses(FENCED, SUSPECT, SUSPECT, SUSPECT, maintained=1), 4),
        (pulses(FENCED, DEAD, DEAD, SUSPECT), 4),
        # One was heard: three are as many as may be.
        (pulses(Condition.RETURNED, DEAD, DEAD, SUSPECT), 0),
        (pulses(FENCED, DEAD, DEAD, SUSPECT), 0),
    )
    assert [len(seen.look(each)) for each, _ in looks] == [count for _, count in looks]


def test_a_wave_is_over_when_nobody_waits() -> None:
    """Who falls silent after that is silent by itself, however many are dead."""
    seen = wave()
    assert len(seen.look(pulses(SUSPECT, SUSPECT, SUSPECT, SUSPECT))) == 4
    assert seen.look(pulses(DEAD, DEAD, DEAD, SUSPECT, maintained=4)) == []
    assert seen.look(pulses(DEAD, DEAD, DEAD, DEAD, SUSPECT)) == []


def test_what_was_dead_before_is_not_of_it() -> None:
    """Also for a process that has just begun: only what was said since the first of those that wait fell silent."""
    before = pulses(FENCED, FENCED, FENCED, SUSPECT, since=FELL - 1)
    assert wave().look(before) == []
    seen = wave()
    assert seen.look(pulses(FENCED, FENCED, FENCED, since=FELL - 1)) == []
    assert seen.look(pulses(FENCED, FENCED, FENCED, SUSPECT)) == []
    assert len(wave().look(pulses(FENCED, FENCED, FENCED, SUSPECT, since=FELL + 1))) == 4
    assert len(wave().look(pulses(SUSPECT, SUSPECT, SUSPECT, SUSPECT, maintained=3))) == 4


def test_how_many_are_too_many() -> None:
    """More than so many, or than their share; one never is."""
    assert [len(wave().look(pulses(*([SUSPECT] * count), of=100))) for count in (1, 3, 4)] == [0, 0, 4]
    assert [len(wave().look(pulses(*([SUSPECT] * count), of=3))) for count in (1, 2)] == [0, 2]
    assert wave().look(pulses(SUSPECT, of=1)) == []
