"""Asks one management controller one thing and ends: run by ``bmc``, which kills it when it takes too long.

Redfish is spoken by sushy and IPMI by pyghmi, which know what each vendor's controllers make of them.
"""

from __future__ import annotations

import contextlib
import ssl
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Final, Protocol, TypeVar
from urllib.parse import urlsplit

import msgspec

from stateward.arbiter.bmc import Request
from stateward.domain.hosts import Power, PowerSaid

#: Seconds between two looks at a power that is being taken.
_LOOK_SECONDS: Final = 1.0
#: Seconds that a controller has to take a connection, and to answer.
_CONNECT_SECONDS: Final = 5.0
_ANSWER_SECONDS: Final = 15.0
_IPMI_PORT: Final = 623
_LONGEST: Final = 200
#: What the request allows is counted from here.
_BEGAN: Final = time.monotonic()


class Managed(Protocol):
    """A machine, as a controller that may have several says which it is."""

    @property
    def uuid(self) -> str | None:
        """Its own, where it says one."""
        ...


M = TypeVar("M", bound=Managed)


class Refused(Exception):
    """It does not do what it is asked; ``str()`` says why, for people."""


def by_redfish(request: Request) -> Power:
    """Ask a controller that speaks Redfish.

    Raises:
        Refused: it does not answer, or not as it must.
    """
    from sushy import ResetType, Sushy  # noqa: PLC0415 (takes its time, and only one of the two is needed)
    from sushy.auth import SessionOrBasicAuth  # noqa: PLC0415
    from sushy.exceptions import AccessError, SushyError  # noqa: PLC0415

    said = request.controller
    try:
        # Closed at the end: a controller has few sessions to give.
        with SessionOrBasicAuth(username=said.user, password=request.password) as auth:
            root = Sushy(
                said.address.rstrip("/"),
                auth=auth,
                verify=(said.certificate or True) if said.verify else False,
                server_side_retries=2,
                server_side_retries_delay=1,
                connect_timeout=_CONNECT_SECONDS,
                read_timeout=_ANSWER_SECONDS,
            )
            system = meant(said.uuid, root.get_system_collection().get_members())

            def power() -> Power:
                system.refresh(force=True)
                return _POWERS.get(getattr(system.power_state, "value", ""), Power.UNKNOWN)

            return _act(request, power, lambda: system.reset_system(ResetType.FORCE_OFF))
    except AccessError as error:
        raise Refused(
            "it does not let the user in: name and password are wrong, or the rights too few"
        ) from error
    except SushyError as error:
        raise Refused(_reason(error)) from error


def _reason(error: Exception) -> str:
    """Return why a controller could not be reached, from under what libraries have wrapped it in."""
    inner: BaseException | None = error
    while inner is not None:
        if isinstance(inner, ssl.SSLCertVerificationError):
            return (
                f"its certificate is not trusted ({inner.verify_message}); name the file of it, or of who signed it, "
                "as certificate"
            )
        if isinstance(inner, OSError) and inner.strerror:
            return inner.strerror
        inner = inner.__cause__ or inner.__context__
    return str(error)


def meant(wanted: uuid.UUID | None, machines: Sequence[M]) -> M:
    """Return the machine that is meant; where that is not certain none is, for its power may be taken."""
    there = [str(each.uuid).lower() for each in machines]
    found = [each for each in machines if wanted is None or str(each.uuid).lower() == str(wanted)]
    if len(found) == 1:
        return found[0]
    if wanted is None:
        raise Refused(f"it manages {len(machines)} machines: say which by its uuid, of {sorted(there)}")
    raise Refused(f"it manages {sorted(there)}, and {'not' if not found else 'more than one'} {wanted}")


#: What Redfish's PowerState says of it; what is going on or off has power.
_POWERS: Final = {
    "On": Power.ON,
    "Off": Power.OFF,
    "PoweringOn": Power.ON,
    "PoweringOff": Power.ON,
    "Paused": Power.ON,
}


def by_ipmi(request: Request) -> Power:
    """Ask a controller that speaks IPMI over LAN.

    Raises:
        Refused: it does not answer, or not as it must.
    """
    from pyghmi.exceptions import PyghmiException  # noqa: PLC0415 (see above)
    from pyghmi.ipmi.command import Command  # noqa: PLC0415

    said = request.controller
    where = urlsplit(said.address)
    try:
        command = Command(
            bmc=where.hostname, port=where.port or _IPMI_PORT, userid=said.user, password=request.password
        )
        if said.uuid is not None:
            _check_guid(said.uuid, bytes(command.xraw_command(netfn=0x06, command=0x37)["data"]))
        return _act(
            request,
            lambda: Power(command.get_power()["powerstate"]),
            lambda: command.set_power("off"),
        )
    except PyghmiException as error:
        raise Refused(str(error.args[0]) if error.args and error.args[0] else "it does not answer") from error


def _check_guid(wanted: uuid.UUID, said: bytes) -> None:
    """Compare the GUID of a system; controllers send it in each of three orders."""
    if said not in {wanted.bytes, wanted.bytes_le, wanted.bytes[::-1]}:
        raise Refused(f"it says that its machine is {said.hex()}, and not {wanted}")


def _act(request: Request, power: Callable[[], Power], off: Callable[[], object]) -> Power:
    """Look at the power, or take it and wait until it is off; asked again it does nothing more."""
    found = power()
    if request.act == "look" or found is Power.OFF:
        return found
    off()
    while (found := power()) is not Power.OFF:
        if time.monotonic() - _BEGAN > request.seconds:
            raise Refused(f"its power is {found} still, after {request.seconds:g} s")
        time.sleep(_LOOK_SECONDS)
    return found


def answer(request: Request) -> PowerSaid:
    """Ask, and say what came of it."""
    at = request.controller.address
    ask = by_ipmi if at.startswith("ipmi:") else by_redfish
    try:
        power = ask(request)
    except Refused as error:
        says = f"Its management controller at {at} cannot be asked: {_line(error)}."
        return PowerSaid(power=Power.UNKNOWN, says=says)
    return PowerSaid(power=power, says=f"Its management controller at {at} says that its power is {power}.")


def _line(error: Exception) -> str:
    return " ".join(str(error).split()).rstrip(".")[:_LONGEST]


if __name__ == "__main__":
    # What libraries print is no part of the answer.
    with contextlib.redirect_stdout(sys.stderr):
        said = answer(msgspec.json.decode(sys.stdin.buffer.read(), type=Request))
    sys.stdout.buffer.write(msgspec.json.encode(said))
