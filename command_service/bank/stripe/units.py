"""Amounts in Stripe's units, which are ISO 4217's minor units but for a few currencies.

Source: https://docs.stripe.com/currencies ("Minor units in API amounts", "Zero-decimal currencies", "Special cases"), read in
November 2026, against `command_service.currencies`:

- ISK and UGX have no decimals, and are told in hundredths, "to maintain backwards compatibility": 5 kronur are 500.
- MGA has two decimals in ISO 4217 and none at Stripe. What is no whole ariary cannot be charged there.
- HUF and TWD are whole in payouts only: charges have two decimals, as in ISO 4217.
- BHD, JOD, KWD, OMR and TND have three; the last digit must be 0, which is a rule of this service for every bank.
"""

from command_service.values import Money

# Stripe's units are ours times the first, divided by the second.
_SCALES = {"ISK": (100, 1), "UGX": (100, 1), "MGA": (1, 100)}
_SAME = (1, 1)


def in_stripes_units(money: Money) -> int | None:
    """Convert an amount. None: Stripe has no unit that small."""
    times, divided = _SCALES.get(money.currency_code, _SAME)
    amount, rest = divmod(money.minor_units * times, divided)
    return None if rest else amount


def in_minor_units(amount: int, currency_code: str) -> int | None:
    """Convert an amount that Stripe tells, of a currency in upper case. None: it is a part of a minor unit."""
    divided, times = _SCALES.get(currency_code, _SAME)
    minor_units, rest = divmod(amount * times, divided)
    return None if rest else minor_units
