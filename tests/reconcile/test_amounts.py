"""Amounts as banks write them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from command_service.reconciling.amounts import amount_out, minor_units_in
from contract.currencies import EXPONENTS


@pytest.mark.parametrize(
    ("text", "decimal", "thousands", "exponent", "minor_units"),
    [
        ("12.50", ".", "", 2, 1250),
        ("12,50", ",", "", 2, 1250),
        ("1.234.567,89", ",", ".", 2, 123456789),
        ("1,234,567.89", ".", ",", 2, 123456789),
        ("12,34,567.89", ".", ",", 2, 123456789),
        ("1 234,50", ",", " ", 2, 123450),
        ("1\u202f234,50", ",", " ", 2, 123450),
        ("1'234.50", ".", "'", 2, 123450),
        ("-12.50", ".", "", 2, -1250),
        ("\u221212.50", ".", "", 2, -1250),
        ("12.50-", ".", "", 2, -1250),
        ("+12.50", ".", "", 2, 1250),
        ("(12.50)", ".", "", 2, -1250),
        ("12.50 DR", ".", "", 2, -1250),
        ("12.50CR", ".", "", 2, 1250),
        ("12", ".", "", 2, 1200),
        ("12.5", ".", "", 2, 1250),
        ("12.", ".", "", 2, 1200),
        ("1250", ".", "", 0, 1250),
        ("1250.00", ".", "", 0, 1250),
        ("1.250", ".", "", 3, 1250),
        ("  7.00 ", ".", "", 2, 700),
    ],
)
def test_an_amount_is_read_exactly(text: str, decimal: str, thousands: str, exponent: int, minor_units: int) -> None:
    assert minor_units_in(text, exponent, decimal=decimal, thousands=thousands) == minor_units


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-",
        "12,50",
        "1.234.50",
        "12.505",
        "--1",
        "1e3",
        "12.50 EUR",
        "NaN",
        "١٢",
        "1,234.5",
        "0x10",
        "(1",
        "1_000",
        "(-1)",
        "(1)-",
        "-1 DR",
        "(1) CR",
    ],
)
def test_what_is_no_amount_in_this_form_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"amount|decimals"):
        minor_units_in(text, 2, decimal=".", thousands="")


@pytest.mark.parametrize("text", ["12,50", "1,2", "1,2345", "1,234,56", ",123", "12,50.00"])
def test_a_decimal_comma_is_not_taken_for_one_of_thousands(text: str) -> None:
    with pytest.raises(ValueError, match="amount"):
        minor_units_in(text, 2, decimal=".", thousands=",")


@given(st.integers(-(10**15), 10**15), st.sampled_from(sorted(EXPONENTS)))
def test_what_is_written_is_read_again(minor_units: int, code: str) -> None:
    assert minor_units_in(amount_out(minor_units, code), EXPONENTS[code], decimal=".", thousands="") == minor_units
