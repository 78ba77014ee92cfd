"""Write what the docs say of the tables, from the tables: ``actions.md`` and the others of ``files``.

Run as ``python -m tools.docs`` after a change of a table; a test compares the files with what this gives.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path
from typing import Final, NamedTuple
from xml.sax.saxutils import escape

from stateward.domain.actions import ACTIONS, CREATE, Action, Exempt, OnFailure, Role, key
from stateward.domain.events import EVENT_TYPES, PREFIX, EventType
from stateward.domain.locks import OperationClass
from stateward.domain.states import VM_STATE_SAYS, VmState, status
from stateward.domain.steps import STEP_SAYS
from stateward.domain.verdicts import VERDICTS, Kind
from tools.markdown import code, table
from tools.verdict_docs import verdicts_md

FOLDER: Final = Path(__file__).parent.parent / "docs"

_LIVING: Final = frozenset(VmState) - {VmState.DELETED}
#: What is admitted in these at least is drawn from the frame around them.
_ALL_BUT_KEPT: Final = _LIVING - {VmState.SOFT_DELETED}


def files() -> dict[Path, str]:
    """Return each generated file with its text."""
    return {
        FOLDER / "actions.md": actions_md(),
        FOLDER / "verdicts.md": verdicts_md(),
        FOLDER / "events.md": events_md(),
        FOLDER / "states.svg": states_svg(),
    }


def events_md() -> str:
    """Return the table of events as Markdown."""
    parts = [
        "<!-- Written by tools/docs.py from the table in src/stateward/domain/events.py; change that. -->",
        "# Events",
        (
            "What is told on the event stream and to webhooks ([telling](telling.md)), as CloudEvents 1.0."
            f" All types begin with `{PREFIX}`. *Customers see* names the members of `data.detail` that a"
            " project is told of its own instances; where it says *nothing*, only the operator is told."
            " The operator is told all that the audit record says."
        ),
        table(("Type", "When", "Customers see"), map(_event_row, EVENT_TYPES)),
        (
            "`id` is the audit record's number, a dot, and which of its events it is; `subject` the instance;"
            " `data` has `number`, `record`, `action`, `operation_id`, `actor`, `request_id`, `instance` and `detail`."
            " Who did it is told to customers only of people of their own project."
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _event_row(row: EventType) -> tuple[str, str, str]:
    shown = "nothing" if row.shown is None else ", ".join(f"`{name}`" for name in row.shown)
    return f"`{row.name}`", row.says, shown + (", of what colleagues did" if row.own else "")


# ---- the tables in words


def actions_md() -> str:
    """Return the tables of states, actions and steps as Markdown."""
    parts = [
        "<!-- Written by tools/docs.py from the tables in src/stateward/domain; change those. -->",
        "# Actions and states",
        "![The states, and the actions that lead from one to another](states.svg)",
        "## States",
        table(
            ("State", "Status", "Meaning"),
            ((f"`{state}`", status(state, None), VM_STATE_SAYS[state]) for state in VmState),
        ),
        "## Actions",
        (
            "One row for each action, in the order of the table. *Wire* is the key in the body of"
            " `POST /servers/{id}/action`, with the field that tells rows of one key apart; *Since* is the first"
            " microversion. An action is admitted in the states of *When*, while no task is in flight, or over the"
            " tasks of *Over*, which it then overtakes. *Guard* names the classes of operations it belongs to,"
            " which locks can block, or says why none does."
        ),
        table(
            (
                *("Action", "Wire", "Since", "When", "Over", "Task", "Becomes"),
                *("On failure", "Guard", "Policy", "Steps", "What it does"),
            ),
            (_action_row(row) for row in ACTIONS),
        ),
        "## Steps",
        "What operations are made of. Every step may be repeated: on a guest that is already so it does nothing.",
        table(("Step", "What it does"), ((f"`{step}`", says) for step, says in STEP_SAYS.items())),
    ]
    return "\n\n".join(parts) + "\n"


def _states(states: frozenset[VmState]) -> str:
    if states == _LIVING:
        return "any but `deleted`"
    if states == _ALL_BUT_KEPT:
        return "any but `deleted` and `soft-delete`"
    return code(state for state in VmState if state in states)


def _action_row(row: Action) -> tuple[str, ...]:
    wire = f"`{row.wire}`" if row.wire else ""
    if row.variant is not None:
        field, value = row.variant
        wire += f" with `{field}` {str(value).lower() if isinstance(value, bool) else value}"
    guard = f"none: {row.guard.reason}" if isinstance(row.guard, Exempt) else _classes(row.guard)
    failure = {OnFailure.KEEP: "state stays", OnFailure.ERROR: "`error`"}[row.on_failure]
    by = "" if row.policy.role is Role.SYSTEM else f"`{row.policy.rule}` "
    return (
        f"`{key(row)}`",
        wire,
        "" if row.policy.role is Role.SYSTEM else f"2.{row.since}",
        _states(row.when),
        _tasks(row),
        f"`{row.pending}`" if row.pending else "",
        f"`{row.becomes}`" if row.becomes else "",
        failure if row.is_operation else "",
        guard,
        f"{by}({row.policy.role})",
        code(row.steps),
        row.says,
    )


def _tasks(row: Action) -> str:
    every = frozenset(action.pending for action in ACTIONS if action.pending)
    if row.over == every:
        return "any"
    missing = every - row.over
    if len(missing) == 1:
        return f"any but {code(missing)}"
    return code(sorted(row.over))


def _classes(guard: OperationClass) -> str:
    return ", ".join(str(each.name).lower() for each in OperationClass if each in guard)


# ---- the states as a picture


class Point(NamedTuple):
    """A place on the picture, in pixels from its upper left corner."""

    x: float
    y: float


class Edge(NamedTuple):
    """An arrow between two states; ``style`` says how it comes about."""

    begin: VmState
    end: VmState
    style: str


_SIZE: Final = Point(1420, 800)
_BOX: Final = Point(166, 52)
_FRAME: Final = (Point(20, 20), Point(1080, 700))
_LANE: Final = 92.0
#: How far along its arrow a label stands: not in the middle, where arrows cross.
_LABEL_AT: Final = 0.3
_LINE: Final = 15
#: Causes that a label has room for.
_FEW: Final = 2

_AT: Final = {
    VmState.BUILDING: Point(130, 640),
    VmState.ACTIVE: Point(480, 330),
    VmState.PAUSED: Point(480, 90),
    VmState.SUSPENDED: Point(940, 90),
    VmState.STOPPED: Point(940, 330),
    VmState.ERROR: Point(860, 620),
    VmState.RESCUED: Point(130, 250),
    VmState.RESIZED: Point(540, 555),
    VmState.DELETED: Point(1315, 110),
    VmState.SOFT_DELETED: Point(1315, 270),
    VmState.SHELVED: Point(1315, 440),
    VmState.SHELVED_OFFLOADED: Point(1315, 620),
}
#: Right of the frame: reached from many states, and left for the one in which an instance runs.
_OUTSIDE: Final = frozenset(
    {VmState.DELETED, VmState.SOFT_DELETED, VmState.SHELVED, VmState.SHELVED_OFFLOADED}
)

_STYLE: Final = """
  text { font: 13px system-ui, "Segoe UI", "Helvetica Neue", Arial, sans-serif; fill: #1f2933; text-anchor: middle }
  .state { font-weight: 600; font-size: 15px }
  .status { font-size: 11px; fill: #52606d }
  .label { paint-order: stroke; stroke: #fbfcfd; stroke-width: 5px; stroke-linejoin: round }
  .note { fill: #52606d; text-anchor: start }
  .box { fill: #ffffff; stroke: #323f4b; stroke-width: 1.5 }
  .error { fill: #fdecea; stroke: #a61b1b }
  .deleted { fill: #e9edf1; stroke: #616e7c }
  .frame { fill: none; stroke: #9aa5b1; stroke-width: 1.2; stroke-dasharray: 2 5 }
  .arrow { fill: none; stroke: #1f5fbf; stroke-width: 1.6; marker-end: url(#tip) }
  .adopts { stroke-dasharray: 7 4 }
  .fails { stroke: #a61b1b; stroke-dasharray: 1.5 4; marker-end: url(#red) }
"""


def edges() -> dict[Edge, list[str]]:
    """Return the arrows between single states with their labels, from the two tables."""
    found: defaultdict[Edge, list[str]] = defaultdict(list)
    for row in ACTIONS:
        if row.becomes is None or row.policy.role is Role.SYSTEM or _is_general(row) or _comes_back(row):
            continue
        begins = {VmState.BUILDING} if row is CREATE else row.when
        for begin in VmState:
            if begin in begins:
                _label(found[Edge(begin, row.becomes, "does")], row.name if row.label else key(row))
                if row.on_failure is OnFailure.ERROR and begin is not VmState.ERROR:
                    _label(found[Edge(begin, VmState.ERROR, "fails")], f"{row.name} fails")
    for verdict in VERDICTS:
        if verdict.becomes is not None and verdict.kind is Kind.ADOPT:
            labels = found[Edge(verdict.expected, verdict.becomes, "adopts")]
            label = f"seen {verdict.observed}"
            if verdict.causes is not None and len(verdict.causes) <= _FEW:
                label += f" ({', '.join(sorted(verdict.causes))})"
            _label(labels, label)
    return dict(found)


def _is_general(row: Action) -> bool:
    """Whether a row is drawn once, from the frame: what takes an instance out of it, whatever its state."""
    return row.becomes in _OUTSIDE and not row.when <= _OUTSIDE


def _comes_back(row: Action) -> bool:
    """Whether a row is drawn once, to the frame."""
    return row.becomes is VmState.ACTIVE and bool(row.when) and row.when <= _OUTSIDE


def _label(labels: list[str], label: str) -> None:
    if label not in labels:
        labels.append(label)


def states_svg() -> str:
    """Return the diagram; on a panel of its own, so that it can be read on any background."""
    lanes: defaultdict[frozenset[VmState], list[Edge]] = defaultdict(list)
    drawn = edges()
    for edge in drawn:
        lanes[frozenset(edge[:2])].append(edge)
    arrows: list[str] = []
    labels: list[str] = []
    for together in lanes.values():
        for number, edge in enumerate(together):
            bend = (number - (len(together) - 1) / 2) * _LANE
            draw = _loop if edge.begin is edge.end else _between
            arrow, label = draw(edge, drawn[edge], bend)
            arrows.append(arrow)
            labels.append(label)
    for arrow, label in _everywhere():
        arrows.append(arrow)
        labels.append(label)
    x, y = _FRAME[0]
    width, height = _FRAME[1].x - x, _FRAME[1].y - y
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_SIZE.x} {_SIZE.y}"'
            f' width="{_SIZE.x}" height="{_SIZE.y}" role="img" aria-label="The states of an instance">'
        ),
        "<!-- Written by tools/docs.py from the tables in src/stateward/domain; change those. -->",
        f"<style>{_STYLE}</style>",
        _tip("tip", "#1f5fbf"),
        _tip("red", "#a61b1b"),
        f'<rect width="{_SIZE.x}" height="{_SIZE.y}" rx="12" fill="#fbfcfd" stroke="#cbd2d9"/>',
        f'<rect class="frame" x="{x}" y="{y}" width="{width}" height="{height}" rx="18"/>',
        *arrows,
        *(_state(state) for state in VmState),
        *labels,
        *_legend(),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _tip(name: str, colour: str) -> str:
    return (
        f'<marker id="{name}" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="8" markerHeight="8"'
        f' orient="auto"><path d="M0 1L10 5L0 9z" fill="{colour}"/></marker>'
    )


def _state(state: VmState) -> str:
    at = _AT[state]
    kind = {VmState.ERROR: " error", VmState.DELETED: " deleted"}.get(state, "")
    return (
        f"<g><title>{escape(VM_STATE_SAYS[state])}</title>"
        f'<rect class="box{kind}" x="{at.x - _BOX.x / 2:g}" y="{at.y - _BOX.y / 2:g}"'
        f' width="{_BOX.x}" height="{_BOX.y}" rx="9"/>'
        f'<text class="state" x="{at.x:g}" y="{at.y - 1:g}">{state}</text>'
        f'<text class="status" x="{at.x:g}" y="{at.y + 15:g}">{status(state, None)}</text></g>'
    )


def _text(lines: list[str], at: Point) -> str:
    top = at.y - (len(lines) - 1) * _LINE / 2 + 4
    spans = "".join(
        f'<tspan x="{at.x:.1f}" y="{top + number * _LINE:.1f}">{escape(line)}</tspan>'
        for number, line in enumerate(lines)
    )
    return f'<text class="label">{spans}</text>'


def _arrow(style: str, path: str) -> str:
    return f'<path class="arrow {style}" d="{path}"/>'


def _between(edge: Edge, lines: list[str], bend: float) -> tuple[str, str]:
    """Draw an arrow from box to box, bent sideways so that several between two boxes lie apart."""
    begin, end = _AT[edge.begin], _AT[edge.end]
    first, last = sorted((edge.begin, edge.end), key=list(VmState).index)
    across = Point(_AT[last].x - _AT[first].x, _AT[last].y - _AT[first].y)
    length = (across.x**2 + across.y**2) ** 0.5
    # Upright ones must leave room for the words beside each other, flat ones for the lines of words.
    bend *= 1 + 1.3 * abs(across.y) / length
    middle = Point((begin.x + end.x) / 2, (begin.y + end.y) / 2)
    towards = Point(middle.x - across.y / length * bend, middle.y + across.x / length * bend)
    start, stop = _border(begin, towards), _border(end, towards)
    share = _LABEL_AT
    at = Point(
        *(
            (1 - share) ** 2 * a + 2 * share * (1 - share) * b + share**2 * c
            for a, b, c in zip(start, towards, stop, strict=True)
        )
    )
    path = f"M{start.x:.1f} {start.y:.1f}Q{towards.x:.1f} {towards.y:.1f} {stop.x:.1f} {stop.y:.1f}"
    return _arrow(edge.style, path), _text(lines, at)


def _border(at: Point, towards: Point) -> Point:
    """Return where the line from a box's middle leaves the box, and a little further."""
    dx, dy = towards.x - at.x, towards.y - at.y
    share = min(
        (_BOX.x / 2 + 3) / abs(dx) if dx else float("inf"), (_BOX.y / 2 + 3) / abs(dy) if dy else float("inf")
    )
    return Point(at.x + dx * share, at.y + dy * share)


def _loop(edge: Edge, lines: list[str], _bend: float) -> tuple[str, str]:
    """Draw an arrow that comes back, at the left of the box."""
    at = _AT[edge.begin]
    x = at.x - _BOX.x / 2 - 3
    path = f"M{x:g} {at.y - 14:g}C{x - 95:g} {at.y - 62:g} {x - 95:g} {at.y + 48:g} {x:g} {at.y + 10:g}"
    return _arrow(edge.style, path), _text(lines, Point(x - 82, at.y - 8))


def _everywhere() -> list[tuple[str, str]]:
    """Draw what leads out of the frame, from whatever is in it, and what leads back, to the one that runs."""
    border = _FRAME[1].x
    found: list[tuple[str, str]] = []
    for state in _AT:
        if state not in _OUTSIDE:
            continue
        at = _AT[state]
        side = at.x - _BOX.x / 2 - 3
        middle = (border + side) / 2
        out = [row for row in ACTIONS if _is_general(row) and row.becomes is state]
        if out:
            y = at.y - 12
            said = list(dict.fromkeys(row.name for row in out if row.policy.role is not Role.SYSTEM))
            found.append(
                (_arrow("does", f"M{border:g} {y:g}L{side:g} {y:g}"), _text(said, Point(middle, y - 20)))
            )
        back = [row for row in ACTIONS if _comes_back(row) and state in row.when]
        if back:
            y = at.y + 12
            said = [f"{row.name}: active" for row in back]
            found.append(
                (_arrow("does", f"M{side:g} {y:g}L{border:g} {y:g}"), _text(said, Point(middle, y + 16)))
            )
    failing = list(
        dict.fromkeys(
            f"{row.name} fails" for row in ACTIONS if _is_general(row) and row.on_failure is OnFailure.ERROR
        )
    )
    if failing:
        error = _AT[VmState.ERROR]
        x = error.x + _BOX.x / 2 + 3
        path = f"M{border:g} {error.y:g}L{x:g} {error.y:g}"
        found.append((_arrow("fails", path), _text(failing, Point((border + x) / 2, error.y))))
    return found


def _legend() -> list[str]:
    y = 730
    parts: list[str] = []
    says = (
        (
            "does",
            "an operation that somebody asked for succeeds; from the frame: out of the states that its row names",
        ),
        ("adopts", "the guest changed by itself, and the record follows it"),
        ("fails", "an operation fails (those without such an arrow leave the state as it was)"),
    )
    for number, (style, text) in enumerate(says):
        line = y + number * 22
        parts.append(_arrow(style, f"M40 {line}L100 {line}"))
        parts.append(f'<text class="note" x="112" y="{line + 4}">{escape(text)}</text>')
    return parts


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    for path, text in files().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(FOLDER.parent))


if __name__ == "__main__":
    main()
