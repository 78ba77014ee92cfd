"""What the docs say of the arbiter's table, from the table: ``docs/verdicts.md``."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

from stateward.domain.states import Cause, Observed, VmState
from stateward.domain.verdicts import VERDICTS, Kind, Verdict, judge
from stateward.domain.verdicts.alternatives import alternatives, gives_way
from tools.markdown import code, table

_SAYS: Final = {
    Kind.AGREE: "The guest is as recorded.",
    Kind.IGNORE: "Nothing is done, and nobody is told.",
    Kind.ADOPT: "The record follows the guest; *told*: the operator is told as well.",
    Kind.RESTORE: "The guest is brought back to the record, by the [action](actions.md) named.",
    Kind.ALERT: "The operator is told; nothing is changed.",
    Kind.QUARANTINE: (
        "The instance is put in error with a fault that says why, its guest is left exactly as it is, and the"
        " operator is told. Of a copy on another host: it is halted there."
    ),
}


def verdicts_md() -> str:
    """Return the table as Markdown: at a glance, and row by row."""
    return (
        "\n\n".join(
            (
                "<!-- Written by tools/docs.py from the tables in src/stateward/domain; change those. -->",
                "# Verdicts",
                (
                    "What the arbiter does when a guest is not as its record says. While an operation is in flight"
                    " nothing is judged; its result is compared instead. A host that is frozen is not judged either."
                ),
                table(("Verdict", "What it means"), ((f"`{kind}`", says) for kind, says in _SAYS.items())),
                "## At a glance",
                (
                    "Of an instance that is neither locked nor held; where the cause decides, what is done for most"
                    " causes comes first."
                ),
                table(
                    ("Recorded", *(f"`{observed}`" for observed in Observed)),
                    (
                        (f"`{state}`", *(_glance(state, observed) for observed in Observed))
                        for state in VmState
                    ),
                ),
                "## Row by row",
                (
                    "The first row that matches counts; an empty cell matches everything. *Copy* is what is known of a"
                    " copy on another host than the record's. *May become* is what a [policy](policies.md) may make of"
                    " it; where that is empty no policy counts, and neither does one for an instance that is held."
                ),
                table(
                    (
                        *("Recorded", "Observed", "Cause", "Locked", "Held", "Copy"),
                        *("Verdict", "Why", "May become"),
                    ),
                    map(_row, VERDICTS),
                ),
            )
        )
        + "\n"
    )


def _glance(state: VmState, observed: Observed) -> str:
    kinds = [judge(state, observed, cause, locked=False).kind for cause in Cause]
    return ", ".join(kind for kind, _count in Counter(kinds).most_common())


def causes_of(row: Verdict) -> str:
    """Name the causes that a row matches, the shorter way."""
    if row.causes is None:
        return ""
    others = frozenset(Cause) - row.causes
    if len(others) < len(row.causes):
        return f"any but {code(sorted(others))}"
    return code(sorted(row.causes))


def _row(row: Verdict) -> tuple[str, ...]:
    then = next((f" `{value}`" for value in (row.action, row.becomes) if value), "")
    held = "off" if row.kept_off else _yes(row.held)
    return (
        f"`{row.expected}`{', adopted' if row.adopted else ''}",
        f"`{row.observed}`",
        causes_of(row),
        _yes(row.locked),
        held,
        "" if row.stray is None else str(row.stray),
        f"{row.kind}{then}{', told' if row.alerts else ''}",
        row.says,
        ", ".join(_possible(row)),
    )


def _yes(value: bool | None) -> str:  # noqa: FBT001 (a cell of a table)
    return "" if value is None else ("yes" if value else "no")


def _possible(row: Verdict) -> Iterable[str]:
    """Name what a policy may make of a row: for any of the causes that it matches."""
    if not gives_way(row, locked=bool(row.locked), held=bool(row.held or row.kept_off)):
        return
    possible = [alternatives(row.expected, row.observed, cause) for cause in row.causes or frozenset(Cause)]
    for kind in Kind:
        if not any(kind in each.kinds for each in possible):
            continue
        if kind is Kind.RESTORE:
            actions = dict.fromkeys(action for each in possible for action in each.actions)
            yield f"restore {code(actions)}"
        elif kind is Kind.ADOPT:
            (becomes,) = {each.becomes for each in possible if each.becomes is not None}
            yield f"adopt `{becomes}`"
        else:
            yield str(kind)
