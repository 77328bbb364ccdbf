"""What stands before a server's ports: its certificates, its policy and its gate, from the files that its settings name."""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from chassis.policy import Policy, read_policy
from chassis.refusals import Refusals
from chassis.shares import NO_WEIGHTS
from chassis.tls import ServerTls
from chassis.watched import Watched
from contract.access import ROLES, gate_of
from contract.errors import Reason


class Protection(Protocol):
    """The settings of an entrance."""

    @property
    def tls(self) -> Path | None:
        """The folder of the certificates; None for plaintext."""

    @property
    def client_certificates(self) -> bool:
        """Whether each client must show a certificate."""

    @property
    def policy(self) -> Path | None:
        """The policy; None opens everything to everybody."""


class Entrance:
    """The entrance of a server, for all its ports."""

    def __init__(self, chosen: Protection, refusal: Refusals[Reason]) -> None:
        """Read the files; `refusal` makes the errors of the gate. Raises Unusable if they cannot be used."""
        self.watched: list[Watched[Any]] = []
        """The files that may be replaced while the server runs."""
        self.tls: ServerTls | None = None
        self._policy: Watched[Policy] | None = None
        if chosen.tls is not None:
            self.tls = ServerTls(chosen.tls, client_certificates=chosen.client_certificates)
            self.watched.append(self.tls.watched)
        if chosen.policy is None:
            self.gate = gate_of(refusal)
        else:
            self._policy = policy = Watched(
                partial(read_policy, chosen.policy, ROLES), what=f"the policy {chosen.policy}"
            )
            self.watched.append(policy)
            self.gate = gate_of(refusal, lambda: policy.value)

    def weights(self) -> Mapping[str, float]:
        """Return the present weights of the tenants' shares."""
        return NO_WEIGHTS if self._policy is None else self._policy.value.weights

    def rate_of(self, tenant: str) -> float | None:
        """Return the number of commands a second that a tenant may send now; None: as many as it likes."""
        return None if self._policy is None else self._policy.value.rates.get(tenant)
