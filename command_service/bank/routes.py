"""The rule that names the banks for a new charge: the first route that fits it, and the weights of that route's banks."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from command_service.values import Request


@dataclass(frozen=True, slots=True)
class Route:
    """Which charges it fits, and their banks. No currencies: all of them; no brands: all of them."""

    weights: Mapping[str, float]
    """By the banks' names; at least one, and all more than zero."""
    currencies: frozenset[str] = frozenset()
    brands: frozenset[str] = frozenset()
    """In lower case (`str.casefold`)."""

    @property
    def fits_all(self) -> bool:
        """Whether there is no charge that it does not fit."""
        return not self.currencies and not self.brands

    def fits(self, request: Request) -> bool:
        """Whether it is for this charge."""
        return (not self.currencies or request.amount.currency_code in self.currencies) and (
            not self.brands or request.card.brand.casefold() in self.brands
        )

    def order(self, charge_id: str) -> Sequence[str]:
        """Put its banks in an order for this charge, always the same one: each is the first as often as its weight tells.

        Weighted rendezvous hashing: where a bank is passed over, its charges go to the others by their weights, and
        another weight, or another bank, changes the choice for as few charges as it can.
        """
        if len(self.weights) == 1:
            return tuple(self.weights)
        return sorted(self.weights, key=lambda bank: -math.log(_share(charge_id, bank)) / self.weights[bank])


def rule(routes: Sequence[Route], request: Request) -> Sequence[str]:
    """Name the banks that may take a charge, the preferred one first. The last route fits all charges."""
    return next(route for route in routes if route.fits(request)).order(request.charge_id)


def _share(charge_id: str, bank: str) -> float:
    """A number above 0 and below 1 that is like a random one, and always the same for this charge and bank."""
    digest = hashlib.sha256(f"{charge_id}:{bank}".encode()).digest()
    return (int.from_bytes(digest[:6]) + 0.5) / 2**48
