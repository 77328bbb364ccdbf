"""Nothing is open by accident: a server listens beyond loopback only with TLS and a policy, or if its operator says so."""

import ipaddress
from collections.abc import Mapping

import structlog

from chassis.settings import Address, SettingsError

log = structlog.get_logger()


def is_loopback(host: str) -> bool:
    """Whether only programs of this machine reach this host. A name other than localhost may be any machine's."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check_exposure(
    listens: Mapping[str, Address | None], needed: Mapping[str, bool], *, override: str, is_open: bool
) -> None:
    """Refuse addresses beyond loopback while a setting that protects them is missing. Raises SettingsError.

    `listens` has the addresses by their variables, and `needed` tells for each variable that protects whether it is set. With
    `is_open`, the value of the variable `override`, the log warns instead.
    """
    exposed = [
        f"{variable}={address}" for variable, address in listens.items() if address and not is_loopback(address.host)
    ]
    missing = [variable for variable, is_set in needed.items() if not is_set]
    if not exposed or not missing:
        return
    if is_open:
        log.warning("the server is open to everybody who reaches it", open=exposed, missing=missing, because=override)
        return
    verb = "is" if len(exposed) == 1 else "are"
    raise SettingsError(
        f"settings cannot be used:\n  {' and '.join(exposed)} {verb} open to other machines, without "
        f"{' and '.join(missing)}: set {'it' if len(missing) == 1 else 'both'}, or listen on 127.0.0.1, or set "
        f"{override}=yes to let everybody who reaches the port do everything"
    )
